"""Our own loader: the same results as LLVM's linker, right encodings, memory never writable and executable at once."""

from __future__ import annotations

import copy
import ctypes
import os
import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import leanconv
from guard import run_python
from leanconv import compiled
from leanconv.codegen import elf, jit, loader, relocate
from leanconv.codegen.targets import NEON
from leanconv.errors import CompileError

pytestmark = pytest.mark.skipif(loader.host_machine() is None, reason="objects are loaded by LLVM here")

BASE = 0x7F00_1234_5000
FAR = 0x7FFF_0000_1110  # of what is defined elsewhere
# A constant reached by its address, one loaded, a function's address through the GOT, a call of what is elsewhere.
TEXT = """
@table = private constant [4 x i64] [i64 11, i64 22, i64 33, i64 44], align 64
@wide = private constant [2 x double] [double 1.5, double 2.5], align 16
declare i64 @elsewhere(i64)
define i64 @callee(i64 %x) nounwind { %y = add i64 %x, 5
  ret i64 %y }
define i64 @kernel(i64 %i, ptr %out) nounwind {
  %p = getelementptr [4 x i64], ptr @table, i64 0, i64 %i
  %a = load i64, ptr %p
  %v = load <2 x double>, ptr @wide
  store <2 x double> %v, ptr %out
  %slot = getelementptr i8, ptr %out, i64 16
  store ptr @callee, ptr %slot
  %b = call i64 @elsewhere(i64 %a)
  ret i64 %b
}
"""


@pytest.fixture(scope="module")
def data() -> bytes:
    return jit.compile_object(TEXT, jit.host_target())


def of_elsewhere() -> tuple[Any, int]:
    """A function `x + 1000` and its address; ctypes keeps it while the first is held."""
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(lambda x: x + 1000)
    return function, ctypes.cast(function, ctypes.c_void_p).value or 0


def run(addresses: dict[str, int]) -> tuple[list[int], list[float], bool]:
    """What the kernel of `TEXT` returns for each index, what it stores, and whether it knows the callee's address."""
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(addresses["kernel"])
    out = np.zeros(3)
    results = [call(i, out.ctypes.data) for i in range(4)]
    return results, out[:2].tolist(), int(out.view(np.int64)[2]) == addresses["callee"]


def test_the_same_as_llvm_links(data: bytes) -> None:
    held, address = of_elsewhere()
    names, imports = ("kernel", "callee"), {"elsewhere": address}
    own = loader.link(data, names, imports)
    theirs = jit.link_by_llvm(data, names, imports)
    assert own is not None
    assert run(own[1]) == run(theirs[1]) == ([1011, 1022, 1033, 1044], [1.5, 2.5], True)
    assert held
    with pytest.raises(TypeError, match="machine code cannot be copied"):
        copy.deepcopy(own[0])


@pytest.mark.parametrize("name", ["direct", "im2row_strip", "winograd_f4", "fft", "depthwise", "reference"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kernels_compute_the_same_bits(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    groups = 12 if name == "depthwise" else 1
    x = rng.standard_normal((1, 12, 11, 13)).astype(dtype)
    w = rng.standard_normal((12, 12 // groups, 3, 3)).astype(dtype)
    results = []
    for link in (loader.link, lambda *_: None):
        monkeypatch.setattr(loader, "link", link)
        monkeypatch.setattr(compiled, "_kernels", {})
        plan = leanconv.plan(
            x.shape, w.shape, padding=1, groups=groups, algorithm=name, dtype=dtype, activation="sigmoid", threads=1
        )
        results.append(plan.bind(w)(x))
    assert np.array_equal(*results)


def test_the_c_library_is_known() -> None:
    text = """declare float @fmaf(float, float, float)
define float @f(float %a) nounwind { %r = call float @fmaf(float %a, float %a, float 1.0)
  ret float %r }"""
    found = loader.link(jit.compile_object(text, jit.host_target()), ("f",))
    assert found is not None
    assert ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)(found[1]["f"])(3.0) == 10.0


def test_what_nobody_defines(data: bytes) -> None:
    with pytest.raises(CompileError, match="'elsewhere', which nothing here defines"):
        loader.link(data, ("kernel",))
    with pytest.raises(CompileError, match="does not define nothing"):
        loader.link(data, ("kernel", "nothing"), {"elsewhere": 1})


# -- memory ------------------------------------------------------------------------------------------------------------


def protections(address: int) -> str:
    """What the kernel says may be done at an address; nothing if nothing is there."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            span, flags = line.split()[:2]
            first, last = (int(word, 16) for word in span.split("-"))
            if first <= address < last:
                return flags
    return ""


def test_code_is_never_writable_and_executable(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = relocate.relocated

    def watched(*arguments: Any) -> bytearray:
        seen.append(protections(arguments[3]))
        return real(*arguments)

    monkeypatch.setattr(loader, "relocated", watched)
    found = loader.link(data, ("kernel",), {"elsewhere": 1})
    assert found is not None
    address = found[1]["kernel"]
    assert seen == ["rw-p"]
    assert protections(address) == "r-xp"
    start, nbytes = found[0].address, found[0].nbytes
    assert start <= address < start + nbytes
    del found
    # Another mapping may have come to lie there meanwhile, but none that can be executed.
    assert "x" not in protections(address)


def test_a_system_that_forbids_it(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbids:
        def mprotect(self, *_: int) -> int:
            return -1

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    real = loader._libc()
    monkeypatch.setattr(loader, "_libc", Forbids)
    with pytest.raises(CompileError, match="lets no code run"):
        loader.link(data, ("kernel",), {"elsewhere": 1})


# -- what is damaged, and what is unknown ------------------------------------------------------------------------------


def outcome(data: bytes) -> str:
    try:
        return "loaded" if loader.link(data, ("kernel",), {"elsewhere": 1}) else "left to LLVM"
    except CompileError:
        return "refused"


def test_truncated_objects_are_refused(data: bytes) -> None:
    assert {outcome(data[:length]) for length in range(0, len(data), 3)} == {"refused"}


def test_mutated_objects_never_crash(data: bytes) -> None:
    """Nothing is run: where the object says that something is, it must lie inside of it."""
    draw = random.Random(7)
    structures = [i for i in range(len(data)) if i < 64 or i >= len(data) - 64 * 12]
    seen = set()
    for turn in range(1500):
        changed = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 8))):
            changed[draw.choice(structures) if turn % 2 else draw.randrange(len(data))] = draw.choice(
                (0, 1, 2, 127, 128, 255, draw.randrange(256))
            )
        seen.add(outcome(bytes(changed)))
    assert seen == {"loaded", "left to LLVM", "refused"}


def test_objects_of_other_machines(data: bytes) -> None:
    other = elf.AARCH64 if loader.host_machine() == elf.X86_64 else elf.X86_64
    changed = bytearray(data)
    struct.pack_into("<H", changed, 18, other)
    with pytest.raises(CompileError, match="for machine"):
        loader.link(bytes(changed), ("kernel",), {"elsewhere": 1})


def test_unknown_relocations_and_data_that_is_written_are_left_to_llvm(data: bytes) -> None:
    found = elf.read_object(data)
    with pytest.raises(elf.UnsupportedObjectError, match="relocation 250"):
        relocate.Layout(found._replace(relocations=(found.relocations[0]._replace(kind=250),)))
    text = "@counter = global i64 7\ndefine i64 @kernel() nounwind { %v = load i64, ptr @counter\n ret i64 %v }"
    written = jit.compile_object(text, jit.host_target())
    assert loader.link(written, ("kernel",)) is None
    linked = jit.Linked(written, ("kernel",))
    assert ctypes.CFUNCTYPE(ctypes.c_int64)(linked.addresses["kernel"])() == 7


def test_too_large_an_object(data: bytes) -> None:
    found = elf.read_object(data)
    number, section = next(iter(found.sections.items()))
    with pytest.raises(CompileError, match="it would take"):
        relocate.Layout(found._replace(sections={number: section._replace(size=1 << 40, stored=False)}))


# -- AArch64, whatever this machine is ---------------------------------------------------------------------------------


def arm_addresses(image: bytes, code: int) -> list[int]:
    """Addresses that instructions form: page and low bits together, and targets of calls; as an ARM CPU reads them."""
    pages: dict[int, int] = {}
    result = []
    for at in range(0, code, 4):
        (word,) = struct.unpack_from("<I", image, at)
        if word & 0x9F000000 == 0x90000000:  # adrp: 21 bits of pages, the two lowest apart
            pages_away = ((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3) ^ 1 << 20
            pages[word & 31] = ((BASE + at) & ~0xFFF) + ((pages_away - (1 << 20)) << 12)
        elif word & 0xFFC00000 == 0x91000000 and word >> 5 & 31 in pages:  # add, 64 bits
            result.append(pages[word >> 5 & 31] + (word >> 10 & 0xFFF))
        elif word & 0xFFC00000 == 0xF9400000 and word >> 5 & 31 in pages:  # ldr, 64 bits
            result.append(pages[word >> 5 & 31] + (word >> 10 & 0xFFF) * 8)
        elif word & 0xFFC00000 == 0x3DC00000 and word >> 5 & 31 in pages:  # ldr, 128 bits
            result.append(pages[word >> 5 & 31] + (word >> 10 & 0xFFF) * 16)
        elif word & 0x7C000000 == 0x14000000:  # b, bl: 26 bits of words
            away = (word & 0x3FFFFFF) ^ 1 << 25
            result.append(BASE + at + 4 * (away - (1 << 25)))
    return result


def test_arm_code_forms_the_addresses_meant() -> None:
    data = jit.compile_object(TEXT, replace(NEON, triple="aarch64-unknown-linux-gnu"))
    found = elf.read_object(data)
    layout = relocate.Layout(found)
    image = bytes(relocate.relocated(data, found, layout, BASE, lambda name: {"elsewhere": FAR}[name]))
    starts = relocate.addresses(found, layout, BASE, ["kernel", "callee"])
    code = next(section.size for section in found.sections.values() if section.code)
    reached = arm_addresses(image, code)
    read = {address: image[address - BASE : address - BASE + 32] for address in reached if address < BASE + len(image)}
    assert len(read) == len(set(reached)), "an address outside of the object"
    assert struct.pack("<4q", 11, 22, 33, 44) in read.values()
    assert any(value.startswith(struct.pack("<2d", 1.5, 2.5)) for value in read.values())
    assert any(value.startswith(struct.pack("<Q", starts["callee"])) for value in read.values()), "through the GOT"
    jump = struct.pack("<IIQ", 0x58000050, 0xD61F0200, FAR)  # ldr x16, 8 bytes on; br x16; the address
    assert any(value.startswith(jump) for value in read.values())


@pytest.mark.parametrize(
    ("kind", "word", "target", "want"),
    [
        (283, 0x94000000, 0x1000, 0x94000400),  # bl forwards
        (282, 0x14000000, -0x400, 0x17FFFF00),  # b backwards
        (275, 0x90000003, 0x5000, 0xB0000023),  # adrp x3: five pages on
        (275, 0x90000003, -0x1000, 0xF0FFFFE3),  # adrp x3: one page back
        (277, 0x91000021, 0x123, 0x91048C21),  # add x1, x1, 0x123
        (278, 0x39400000, 0x123, 0x39448C00),  # ldrb
        (284, 0x79400000, 0x124, 0x79424800),  # ldrh
        (285, 0xBD400000, 0x124, 0xBD412400),  # ldr s0
        (286, 0xFD400000, 0x128, 0xFD409400),  # ldr d0
        (299, 0x3DC00000, 0x120, 0x3DC04800),  # ldr q0
        (261, 0, 0x120, 0x120),
    ],
)
def test_arm_encodings(kind: int, word: int, target: int, want: int) -> None:
    image = bytearray(struct.pack("<I", word))
    section = elf.Section(0, 4, 4, True, True)
    relocate._patch_arm(image, 0x40000000, 0, target, elf.Relocation(1, 0, kind, 1, 0), section)
    assert struct.unpack("<I", image)[0] == want


def test_arm_addresses_that_cannot_be() -> None:
    section = elf.Section(0, 4, 4, True, True)
    with pytest.raises(CompileError, match="not aligned"):
        relocate._patch_arm(bytearray(4), 0, 0, 0x121, elf.Relocation(1, 0, 299, 1, 0), section)
    with pytest.raises(elf.UnsupportedObjectError):
        relocate._patch_arm(bytearray(4), 0, 0, 1 << 28, elf.Relocation(1, 0, 283, 1, 0), section)
    with pytest.raises(CompileError, match="outside its section"):
        relocate._patch_arm(bytearray(8), 0, 2, 0, elf.Relocation(1, 2, 283, 1, 0), section)


# -- processes that compile nothing ------------------------------------------------------------------------------------

WARM = """
import numpy as np, leanconv
x, w = np.ones((1, 6, 9, 9), "f4"), np.ones((5, 6, 3, 3), "f4")
for algorithm in ("auto", "direct", "winograd_f2"):
    y = leanconv.conv2d(x, w, padding=1, algorithm=algorithm, threads=2)
assert abs(float(y.sum()) - float(leanconv.conv2d(x, w, padding=1, algorithm="im2row").sum())) < 1e-2
"""
WARM_ONNX = """
import numpy as np, leanconv.onnx, onnx_models
session = leanconv.onnx.load(onnx_models.small_network(np.random.default_rng(0)))
session.run({"x": np.ones((1, 3, 10, 12), "f4")})
"""
WARM_TORCH = """
import torch, leanconv.torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1)).eval()
leanconv.torch.swap(model)
with torch.inference_mode():
    model(torch.ones(1, 3, 12, 12))
"""
LOADED = """
print("llvmlite" in open("/proc/self/maps").read())
"""


def loads_llvm(script: str) -> bool:
    """Whether a second process that does the same loads LLVM. (This one may have kernels that are not on disk.)"""
    run_python(script)
    return run_python(script + LOADED).split()[-1] == "True"


@pytest.mark.skipif(os.environ.get("LEANCONV_CACHE") not in (None, "", "rw"), reason="needs the cache")
class TestWarmProcesses:
    def test_convolutions(self) -> None:
        assert not loads_llvm(WARM)

    def test_onnx(self) -> None:
        pytest.importorskip("onnx")
        assert not loads_llvm(WARM_ONNX)

    def test_torch(self) -> None:
        pytest.importorskip("torch")
        assert not loads_llvm(WARM_TORCH)
