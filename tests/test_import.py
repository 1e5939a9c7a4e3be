"""What importing costs and offers."""

from __future__ import annotations

import ast
import inspect
import pydoc
import typing
from pathlib import Path

import pytest

import leanconv
from guard import run_python


def test_import_loads_no_compiler() -> None:
    """LLVM (50 ms and 40 MB) is loaded by the first kernel, not by the import; optional libraries never."""
    loaded = run_python(
        "import sys, leanconv; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    ).split()
    for name in ("llvmlite", "scipy", "rich", "matplotlib", "torch", "asyncio", "pytest"):
        assert name not in loaded, name


def test_import_loads_what_every_call_needs() -> None:
    """Algorithms, networks and what few programs use are imported when they are first asked for."""
    script = "import sys, leanconv; print(*(name for name in sys.modules if name.startswith('leanconv.')))"
    loaded = run_python(script).split()
    assert "leanconv.bound" in loaded
    for name in ("band", "winograd", "depthwise", "reference"):
        assert f"leanconv.algorithms.{name}" not in loaded
    for name in ("cli", "decomp", "network", "backward", "blocks", "transposed_api", "planning.model", "cache"):
        assert f"leanconv.{name}" not in loaded


def test_exported_names() -> None:
    assert list(leanconv.__all__) == sorted(leanconv.__all__)
    assert dir(leanconv) == list(leanconv.__all__)
    for name in leanconv.__all__:
        value = getattr(leanconv, name)
        assert name == "__version__" or value.__doc__, name
    modules = {name for name, value in vars(leanconv).items() if inspect.ismodule(value)}
    public = {name for name in vars(leanconv) if not name.startswith("_")} - modules
    assert public - {"Any", "TYPE_CHECKING", "import_module"} | {"__version__"} == set(leanconv.__all__)
    assert not modules & set(leanconv.__all__)
    with pytest.raises(AttributeError, match="'leanconv' has no attribute 'conv4d'"):
        leanconv.conv4d  # noqa: B018


def test_type_checkers_see_what_is_imported_later() -> None:
    """The imports that only they see are those that the table of names makes."""
    tree = ast.parse(Path(leanconv.__file__ or "").read_text(encoding="utf-8"))
    seen = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in seen.body if isinstance(node, ast.ImportFrom)]
    found = {alias.name: (node.module or "").removeprefix("leanconv.") for node in imports for alias in node.names}
    assert found == leanconv._MODULES


def test_signatures_and_hints() -> None:
    for name in ("conv2d", "conv_transpose2d", "explain", "plan_network", "conv2d_backward_weights"):
        function = getattr(leanconv, name)
        assert "options" not in inspect.signature(function).parameters
        assert set(typing.get_type_hints(function)) >= {"return"}
    assert "stride" in pydoc.render_doc(leanconv.conv2d)


def test_names_are_found_by_all_threads_at_once() -> None:
    script = """
import threading, leanconv
start, found = threading.Barrier(8), []
def look():
    start.wait()
    told = leanconv.algorithms((1, 8, 8, 8), (8, 8, 3, 3))
    found.append((leanconv.conv_transpose2d, leanconv.cp, leanconv.explain, str(told)))
threads = [threading.Thread(target=look) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(found), len(set(found)))
"""
    assert run_python(script) == "8 1"


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
