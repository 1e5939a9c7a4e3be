"""What importing costs and offers."""

from __future__ import annotations

import inspect

import leanconv
from guard import run_python


def test_import_loads_no_compiler() -> None:
    """LLVM (50 ms and 40 MB) is loaded by the first kernel, not by the import; optional libraries never."""
    loaded = run_python(
        "import sys, leanconv; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    for name in ("llvmlite", "scipy", "rich", "matplotlib", "torch", "asyncio", "pytest"):
        assert name not in loaded, name


def test_exported_names() -> None:
    assert list(leanconv.__all__) == sorted(leanconv.__all__)
    modules = {name for name, value in vars(leanconv).items() if inspect.ismodule(value)}
    public = {name for name in vars(leanconv) if not name.startswith("_")} - modules
    assert public | {"__version__"} == set(leanconv.__all__)
    assert not modules & set(leanconv.__all__)
    for name in leanconv.__all__:
        value = getattr(leanconv, name)
        assert name == "__version__" or value.__doc__, name


def test_submodules_do_not_hide_functions() -> None:
    """`leanconv.plan`, `.threads` and `.algorithms` are functions, though modules have these names too."""
    script = """
import leanconv, importlib, pkgutil
for module in pkgutil.iter_modules(leanconv.__path__):
    if module.name not in ("__main__", "torch"):  # leanconv.torch needs an extra
        importlib.import_module(f"leanconv.{module.name}")
print(*(callable(getattr(leanconv, name)) for name in ("plan", "threads", "algorithms")))
"""
    assert run_python(script) == "True True True"


def test_errors_are_also_builtin_ones() -> None:
    pairs = {
        "ArgumentValueError": ValueError,
        "ArgumentTypeError": TypeError,
        "NotApplicableError": ValueError,
        "MemoryLimitError": MemoryError,
        "AllocationError": MemoryError,
        "CompileError": RuntimeError,
        "CacheError": RuntimeError,
    }
    for name, builtin in pairs.items():
        kind = getattr(leanconv, name)
        assert issubclass(kind, leanconv.LeanconvError) and issubclass(kind, builtin)
