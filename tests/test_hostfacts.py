"""What LLVM says about the host is asked once for each CPU and library, and kept as safely as kernels are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from leanconv import machine
from leanconv.codegen import hostfacts, jit
from leanconv.codegen.hostfacts import HostFacts, host_facts
from leanconv.errors import CompileError

pytestmark = pytest.mark.skipif(not machine.cpu_identity(), reason="LLVM is asked in every process here")

FACTS = HostFacts("1.2.3", "x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma,-avx512f")


class Asked:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> HostFacts:
        self.times += 1
        return FACTS


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Asked]:
    """A fresh cache, and an LLVM that counts how often it is asked."""
    result = Asked()
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("LEANCONV_CACHE", "rw")
    monkeypatch.setattr(jit, "ask_llvm", result)
    host_facts.cache_clear()
    yield result
    host_facts.cache_clear()


def again() -> HostFacts:
    """What another process would be told."""
    host_facts.cache_clear()
    return host_facts()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("facts/*/*.lco"))


def test_asked_once(asked: Asked, tmp_path: Path) -> None:
    assert again() == FACTS
    assert again() == FACTS
    assert asked.times == 1
    assert len(files(tmp_path)) == 1


def test_another_cpu_or_library_is_another_question(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    again()
    identity = machine.cpu_identity()
    monkeypatch.setattr(machine, "cpu_identity", lambda: identity + " avx1024")
    again()
    assert asked.times == 2
    monkeypatch.setattr(hostfacts, "_library", lambda: "0.99 1 2")
    again()
    assert asked.times == 3
    again()
    assert asked.times == 3


@pytest.mark.parametrize("what", [b"", b"\0" * 400, b"cut"])
def test_a_damaged_answer_is_asked_for_again(asked: Asked, tmp_path: Path, what: bytes) -> None:
    again()
    (file,) = files(tmp_path)
    file.write_bytes(file.read_bytes()[:-3] if what == b"cut" else what)
    assert again() == FACTS
    assert asked.times == 2
    assert again() == FACTS
    assert asked.times == 2


def test_modes(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for mode in ("off", "ro"):
        monkeypatch.setenv("LEANCONV_CACHE", mode)
        again()
    assert asked.times == 2
    assert not files(tmp_path)
    monkeypatch.setenv("LEANCONV_CACHE", "rw")
    again()
    monkeypatch.setenv("LEANCONV_CACHE", "ro")
    again()
    assert asked.times == 3


@pytest.mark.skipif(os.name != "posix", reason="permissions")
@pytest.mark.filterwarnings("ignore:leanconv cache:RuntimeWarning")
def test_what_others_may_write_is_not_believed(asked: Asked, tmp_path: Path) -> None:
    again()
    files(tmp_path)[0].chmod(0o666)
    again()
    assert asked.times == 2


def test_unknown_systems_ask_every_time(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpu_identity", lambda: "")
    again()
    again()
    assert asked.times == 2


def test_the_target_that_is_asked_for(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    choose = jit.host_target.__wrapped__
    assert (choose().name, choose().cpu, choose().features) == ("avx2", "haswell", FACTS.features)
    monkeypatch.setenv("LEANCONV_TARGET", "portable")
    assert (choose().name, choose().cpu) == ("portable", "x86-64")
    monkeypatch.setenv("LEANCONV_TARGET", "avx512")
    with pytest.raises(CompileError, match="this CPU runs avx2, portable"):
        choose()


def test_the_real_answer_is_what_llvm_says() -> None:
    assert host_facts() == jit.ask_llvm()


X86 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model\t\t: 1
cpu MHz\t\t: 2445.402
flags\t\t: fpu  avx2

processor\t: 1
vendor_id\t: never read
"""
ARM = """processor\t: 0
BogoMIPS\t: 50.00
Features\t: fp asimd
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd
CPU part\t: 0xd05
"""


def test_what_describes_a_cpu() -> None:
    assert machine._described(X86.splitlines()) == [
        "vendor_id: AuthenticAMD",
        "cpu family: 25",
        "model: 1",
        "flags: fpu avx2",
    ]
    assert machine._described(ARM.splitlines()) == ["Features: fp asimd", "CPU part: 0xd0b", "CPU part: 0xd05"]
    assert machine._described(["nothing", ""]) == []
