"""Kernels of large programs compiled in several processes: the same code, whatever happens to the processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import leanconv
from leanconv import compiled, compilers
from leanconv.cache import ObjectCache
from leanconv.codegen import llvm
from leanconv.errors import ArgumentValueError, CompileError

MANY = 3


@pytest.fixture(autouse=True)
def nothing_compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    """Neither in memory nor on disk; three kernels are many."""
    cache = ObjectCache(str(tmp_path))
    monkeypatch.setattr(compiled, "object_cache", lambda: cache)
    monkeypatch.setattr(compiled, "_kernels", {})
    monkeypatch.setattr(compilers, "MANY", MANY)
    monkeypatch.setenv(compilers.SETTING, "2")
    yield


def specs() -> list[Any]:
    """Specifications of five kernels."""
    plans = [
        leanconv.plan(
            (1, 4, 8, 8) if layout == "NCHW" else (1, 8, 8, 4),
            (8, 4, r, r),
            layout=layout,
            algorithm="direct",
            padding=r // 2,
        )
        for r, layout in ((1, "NCHW"), (1, "NHWC"), (3, "NCHW"), (3, "NHWC"), (5, "NCHW"))
    ]
    return [plan.lowering.phases[0].spec for plan in plans]


def check(wanted: list[Any]) -> None:
    """All are there, in memory and on disk, and hold what one process makes of them."""
    assert set(wanted) <= set(compiled._kernels)
    cache = compiled.object_cache()
    for spec in wanted:
        fields, code = compiled.object_code(spec)
        assert compiled._kernels[spec].fields == fields
        assert cache.get(compiled.cache_key(compiled.identity(spec))) == " ".join(fields).encode() + b"\0" + code


def test_the_code_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered: list[Any] = []
    keep = compiled._keep
    monkeypatch.setattr(compiled, "_keep", lambda *parts: (delivered.append(parts[0]), keep(*parts)))
    together = compilers.compile_together

    def waits_for_others(wanted: Any, deliver: Any, local: Any) -> None:
        # One process would often be done before the other has started.
        together(wanted, deliver, lambda spec: _until(lambda: delivered) and local(spec))

    monkeypatch.setattr(compilers, "compile_together", waits_for_others)
    wanted = specs()
    compiled.prepare(wanted)
    check(wanted)
    assert delivered


def _until(condition: Any) -> bool:
    import time

    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("command", ["raise SystemExit(3)", "print('no pickle')", "import os; os.kill(os.getpid(), 9)"])
def test_processes_that_die(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(compilers, "_COMMAND", command)
    wanted = specs()
    compiled.prepare(wanted)
    check(wanted)


def test_no_interpreter_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "/opt/program-that-embeds", "/nowhere/python3"):
        monkeypatch.setattr(compilers.sys, "executable", name)
        compiled._kernels.clear()
        compiled.object_cache().clear()
        wanted = specs()
        compiled.prepare(wanted)
        check(wanted)


def test_what_is_there_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = specs()
    compiled.prepare(wanted)
    monkeypatch.setattr(compilers, "compile_together", lambda *_: pytest.fail("compiled again"))
    compiled.prepare(wanted)
    compiled._kernels.clear()
    compiled.prepare(wanted)  # on disk
    assert not compiled._kernels
    for spec in wanted:
        compiled.kernel(spec)
    assert compiled.object_cache().info().hits == len(wanted)


def test_few_kernels_and_one_process_start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilers, "compile_together", lambda *_: pytest.fail("started"))
    wanted = specs()[: MANY - 1]
    compiled.prepare(wanted)  # on threads
    check(wanted)
    compiled._kernels.clear()
    compiled.object_cache().clear()
    monkeypatch.setenv(compilers.SETTING, "1")
    compiled.prepare(specs())
    assert not compiled._kernels


@pytest.mark.parametrize("text", ["0", "-1", "two", "1.5"])
def test_the_setting_is_checked(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(compilers.SETTING, text)
    with pytest.raises(ArgumentValueError, match=compilers.SETTING):
        compilers.processes()


def test_layers_run_on_what_others_compiled() -> None:
    compiled.prepare(specs())
    x, w = np.ones((1, 4, 8, 8), np.float32), np.ones((8, 4, 3, 3), np.float32)
    plan = leanconv.plan(x.shape, w.shape, padding=1, algorithm="direct")
    assert plan.lowering.phases[0].spec in compiled._kernels
    assert np.allclose(plan.bind(w)(x)[:, :, 1:-1, 1:-1], 36)


def test_another_release_of_llvmlite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions may want other arguments."""
    import llvmlite

    monkeypatch.setattr(llvmlite, "__version__", "0.51.0")
    with pytest.raises(CompileError, match=r"llvmlite 0\.51\.0 .* 0\.50\.x"):
        llvm._library.__wrapped__()
