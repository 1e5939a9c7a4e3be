"""The machine code of every kernel for every target: it compiles, and its inner loops multiply and spill nothing."""

from __future__ import annotations

import functools
import zlib
from dataclasses import replace
from typing import Any

import pytest

import leanconv
from assembly import Loop, count_fused, innermost_loops, parse, spills
from leanconv.algorithms import REGISTRY
from leanconv.cache import ObjectCache
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.compiled import KernelSpec, cache_key, identity
from leanconv.host import Host
from leanconv.kernels.columns import ColumnSpec
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.rowtiles import RowTiles
from leanconv.kernels.tile import Tile
from leanconv.options import make_problem
from leanconv.problem import Problem, to_user
from strategies import EPILOGUES, POINTWISE, WINDOWS, Case

EACH_TARGET = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
BY_NAME = {algorithm.name: algorithm for algorithm in REGISTRY}


def lowered(problem: Problem, name: str, target: Target, threads: int = 1) -> list[tuple[str, KernelSpec]]:
    """Name and kernel of each phase of a problem on a machine with that target."""
    host = Host(target, 32 << 10, 512 << 10, 8 << 20)
    low = BY_NAME[name].lower(problem, host, threads, None, {})
    phases = [*low.phases, *([low.packing.phase] if low.packing else [])]
    return [(phase.name, phase.spec) for phase in phases]


@functools.cache
def texts() -> ObjectCache:
    """What all processes of a run have compiled."""
    return ObjectCache(folder="assembly")


@functools.lru_cache(maxsize=64)
def assembly(spec: KernelSpec) -> str:
    key = cache_key(f"assembly of {identity(spec)}")
    known = texts().get(key)
    if known is not None:
        return zlib.decompress(known).decode()
    module = Module()
    spec.emit(module, "kernel")
    text = jit.compile_assembly(module.text(), spec.target)
    texts().put(key, zlib.compress(text.encode(), 1), {})
    return text


def multiplying(spec: KernelSpec) -> list[Loop]:
    """The innermost loops with multiply-adds, the busiest first."""
    loops = [loop for loop in innermost_loops(assembly(spec)) if count_fused(loop)]
    return sorted(loops, key=count_fused, reverse=True)


# -- everything compiles ---------------------------------------------------------------------------------------------


# Input and output channels, and groups.
CHANNELS = [(3, 40, 1), (8, 8, 1), (13, 24, 1), (32, 17, 1), (800, 16, 1), (1, 1, 1), (20, 33, 1)]
FEW_A_GROUP = [(40, 40, 40), (8, 16, 8), (5, 15, 5), (64, 64, 16), (48, 24, 6), (33, 33, 33), (14, 28, 7)]


def every_problem(channels: list[tuple[int, int, int]]) -> list[Problem]:
    """One of each geometry, each with other channels, epilogue, layout and element type."""
    result = []
    for i, geometry in enumerate(POINTWISE + WINDOWS):
        c, k, groups = channels[i % len(channels)]
        size = tuple(n + 9 for n in geometry.smallest)
        case = Case(
            (2, c, *size),
            (k, c // groups, *geometry.kernel),
            geometry,
            groups,
            dtype=("float32", "float64")[i % 3 == 2],
            layout=("NCHW", "NHWC")[i % 2],
            epilogue=EPILOGUES[i % len(EPILOGUES)],
        )
        result.append(case.problem)
    return result


@EACH_TARGET
@pytest.mark.parametrize("name", BY_NAME)
def test_every_kernel_compiles_for_every_target(name: str, target: Target) -> None:
    shapes = FEW_A_GROUP if name in ("depthwise", "fft_depthwise", "grouped") else CHANNELS
    problems = [p for p in every_problem(shapes) if BY_NAME[name].refusal(p) is None]
    assert problems
    for problem in problems:
        for phase, spec in lowered(problem, name, target):
            instructions, labels = parse(assembly(spec))
            assert "kernel" in labels, phase
            assert any(i.operation.startswith("ret") for i in instructions)
            calls = {i.operands.removesuffix("@PLT") for i in instructions if i.operation in ("call", "callq", "bl")}
            if not target.fma:  # the C library has what the instruction set lacks
                calls -= {"fma", "fmaf", "rint", "rintf"}
            if phase == "gemm":
                calls = {name for name in calls if not name.startswith("*")}
            assert not calls, f"{phase} calls {calls}"


@EACH_TARGET
def test_the_runtime_compiles_for_every_target(target: Target) -> None:
    from leanconv.kernels.runtime import emit_runtime

    module = Module()
    names = emit_runtime(module, target)
    _, labels = parse(jit.compile_assembly(module.text(), target))
    assert set(names) <= set(labels)


def test_assembly_and_object_agree() -> None:
    """What these tests read is what runs: the object of the same module has the same symbols."""
    module = Module()
    spec = lowered(every_problem(CHANNELS)[0], "direct", jit.host_target())[0][1]
    spec.emit(module, "kernel")
    assert b"kernel" in jit.compile_object(module.text(), spec.target)
    linked = jit.Linked(jit.compile_object(module.text(), spec.target), ("kernel",))
    assert linked.addresses["kernel"]


# -- inner loops -----------------------------------------------------------------------------------------------------


def typical(channels: int, filters: int, layout: str, kernel: int = 3, **options: Any) -> Problem:
    x_shape = to_user((1, channels, 28, 28), layout)
    return make_problem(
        2, x_shape, (filters, channels, kernel, kernel), dtype="float32", padding=kernel // 2, layout=layout, **options
    )


TYPICAL = {
    "adjacent": typical(64, 64, "NHWC"),  # 6x2 on AVX2, 12x2 on AVX-512, 14x2 on NEON
    "strided": typical(64, 64, "NCHW"),
    "stride2": typical(64, 128, "NHWC", stride=2),
    "odd-panel": typical(64, 24, "NHWC"),  # 4x3 on AVX2
    "narrow": typical(64, 8, "NHWC"),  # 12x1 on AVX2
    "narrow-strided": typical(64, 4, "NCHW"),
    "sections": typical(1024, 64, "NHWC", kernel=1),
    "float64": replace(typical(64, 32, "NHWC"), dtype="float64"),
}
FUSED_TARGETS = [target for target in TARGETS.values() if target.fma]
EACH_FUSED = pytest.mark.parametrize("target", FUSED_TARGETS, ids=[t.name for t in FUSED_TARGETS])


def tiles(spec: Any) -> set[int]:
    """Accumulators of the tiles that a kernel has, or of the pixels of one that are inside the image."""
    if isinstance(spec, DenseSpec) and isinstance(spec.source, RowTiles):
        widths = ((spec.panels.vectors * spec.panels.whole, False), (spec.panels.last, spec.pairs))
        return {
            sums(height, width, left, right, pairs)
            for rows, (width, pairs) in zip(spec.rows, widths, strict=True)
            for height in ((rows, rows - 1) if spec.ragged else (rows,))
            for outside in spec.source.outside
            for left in {0, outside[0]}
            for right in {0, outside[1]}
            if width
        }
    if hasattr(spec, "heights"):
        widths = (spec.panels.vectors * spec.panels.whole, spec.panels.last)
        return {rows * width for width, heights in zip(widths, spec.heights, strict=True) for rows in heights if width}
    if hasattr(spec, "panels"):
        shapes = {(spec.rows[0], spec.panels.vectors)} if spec.panels.whole else set()
        shapes |= {(spec.rows[1], spec.panels.last)} if spec.panels.last else set()
        if isinstance(spec, DenseSpec) and spec.pairs:
            last = Tile(spec.target, spec.dtype, spec.rows[1], spec.panels.last, spec.bias, pairs=True)
            whole = {(spec.rows[0], spec.panels.vectors)} if spec.panels.whole else set()
            lower = {rows * vectors for rows, vectors in whole} | {(rows - 1) * vectors for rows, vectors in whole}
            return lower | {last.sums, replace(last, rows=last.rows - 1).sums}
    else:
        shapes = {(spec.rows, 2)} | ({(spec.rows, spec.tail)} if spec.tail else set())
    low = {(rows - 1, vectors) for rows, vectors in shapes if rows > 1}
    return {rows * vectors for rows, vectors in shapes | low}


def sums(rows: int, vectors: int, left: int, right: int, pairs: bool) -> int:
    """Accumulators of the pixels of a tile without some first and last ones."""
    if not pairs:
        return (rows - left - right) * vectors
    return (rows - left - right) * (vectors - 1) + (rows - right - 1) // 2 - left // 2 + 1


def cores(case: str, name: str, target: Target) -> list[KernelSpec]:
    if BY_NAME[name].refusal(TYPICAL[case]) is not None:
        pytest.skip("refused")
    found = [spec for phase, spec in lowered(TYPICAL[case], name, target) if phase == "core"]
    assert found
    return found


CORE_NAMES = [
    "direct",
    "direct_blocks",
    "direct_band",
    "pointwise",
    "im2row",
    "im2col",
    "im2row_strip",
    "im2col_strip",
    "implicit_gemm",
    "indirect",
    "mec",
    "mec_a",
    "mec_rows",
    "im2win",
    "im2win_band",
]
CORE_NAMES += ["kn2row_exact", "kn2col_aa", "kn2row_aa", "kn2col_as", "kn2row_as", "kn2col", "kn2row"]


@EACH_FUSED
@pytest.mark.parametrize("name", CORE_NAMES)
@pytest.mark.parametrize("case", TYPICAL)
def test_inner_loops_hold_whole_tiles(case: str, name: str, target: Target) -> None:
    for spec in cores(case, name, target):
        loops = multiplying(spec)
        allowed = tiles(spec)
        assert loops
        assert count_fused(loops[0]) >= max(allowed)
        if target.masks or hasattr(spec, "panels"):  # masked loads without masks are loops over lanes, in pieces
            for loop in loops:
                assert any(count_fused(loop) % tile == 0 for tile in allowed), (count_fused(loop), allowed)


@EACH_FUSED
@pytest.mark.parametrize("name", CORE_NAMES)
@pytest.mark.parametrize("case", TYPICAL)
def test_inner_loops_spill_nothing(case: str, name: str, target: Target) -> None:
    """Whole windows, the busiest loop of each tile: no vector goes to the stack. Edges: fewer than multiply-adds."""
    for spec in cores(case, name, target):
        loops = multiplying(spec)
        counts = [count_fused(loop) for loop in loops]
        busiest = {max((n for n in counts if n % tile == 0), default=0) for tile in tiles(spec)}
        for loop in loops:
            found = spills(loop)
            if count_fused(loop) in busiest:
                assert not found, f"{len(found)} beside {count_fused(loop)} multiply-adds: {found[:4]}"
            assert len(found) < count_fused(loop)


@EACH_FUSED
@pytest.mark.parametrize("padding", [0, 3])
def test_pixels_of_three_channels_from_a_table_spill_nothing(padding: int, target: Target) -> None:
    shape, w_shape = (1, 60, 60, 3), (64, 3, 7, 7)
    problem = make_problem(2, shape, w_shape, dtype="float32", layout="NHWC", stride=2, padding=padding, bias=True)
    loops = multiplying(lowered(problem, "indirect", target)[0][1])
    assert loops
    for loop in loops:
        assert not spills(loop)


@EACH_FUSED
@pytest.mark.parametrize(("height", "outputs", "asks"), [(1 << 20, 32, True), (1, 32, False), (1 << 20, 640, False)])
def test_rows_from_afar_are_asked_for_where_little_else_is_read(
    height: int, outputs: int, asks: bool, target: Target
) -> None:
    shape, w_shape = (1, height, 56, 64), (outputs, 64, 1, 1)
    spec = lowered(make_problem(2, shape, w_shape, dtype="float32", layout="NHWC"), "pointwise", target)[0][1]
    assert isinstance(spec, DenseSpec)
    rows, vectors = spec.rows[0], spec.panels.vectors
    loops = [loop for loop in multiplying(spec) if count_fused(loop) == 4 * rows * vectors]
    assert loops
    for loop in loops:
        assert not (target.name.startswith("avx") and spills(loop))
        lines = sum(i.operation.startswith(("prefetch", "prf")) for i in loop)
        of_weights = 4 * target.vector_bytes * vectors // 64 if spec.reduction.stream else 0
        assert lines == (-(-rows * 4 * 4 // 64) if asks else 0) + of_weights + spec.later


@EACH_FUSED
@pytest.mark.parametrize(("height", "channels", "asks"), [(1 << 20, 32, True), (1, 32, False), (1 << 20, 1024, False)])
def test_columns_from_afar_are_asked_for_where_they_stay_near(
    height: int, channels: int, asks: bool, target: Target
) -> None:
    problem = make_problem(2, (1, channels, height, 64), (24, channels, 1, 1), dtype="float32")
    spec = lowered(problem, "pointwise", target)[0][1]
    assert isinstance(spec, ColumnSpec)
    assert spec.ahead == asks
    loops = [loop for loop in multiplying(spec) if count_fused(loop) == 4 * spec.rows * 2]
    assert loops
    for loop in loops:
        lines = sum(i.operation.startswith(("prefetch", "prf")) for i in loop)
        assert not (target.name.startswith("avx") and spills(loop))
        # Each step: the next tile's lines, or else that of a later channel if there are many.
        assert lines == 4 * (max(1, 2 * target.vector_bytes // 64) if asks else spec.reduction.stream)


@pytest.mark.parametrize("name", ["pointwise", "direct"])
@pytest.mark.parametrize(("channels", "kernel"), [(64, 1), (1024, 1), (64, 3)])
def test_addresses_of_even_rows_stay_in_registers(channels: int, kernel: int, name: str) -> None:
    """AVX-512 has twelve rows, and loops over sections leave few registers: nothing of a round is on the stack."""
    if name == "pointwise" and kernel > 1:
        pytest.skip("refused")
    problem = typical(channels, 64, "NHWC", kernel)
    (spec,) = (spec for phase, spec in lowered(problem, name, TARGETS["avx512"]) if phase == "core")
    even = [loop for loop in multiplying(spec) if count_fused(loop) == count_fused(multiplying(spec)[0])]
    assert any(not any("(%rsp" in i.operands for i in loop) for loop in even)


def test_one_register_of_outputs_reads_pixels_in_the_multiply_add() -> None:
    spec = lowered(typical(64, 16, "NHWC", 1), "pointwise", TARGETS["avx512"])[0][1]
    loop = multiplying(spec)[0]
    assert count_fused(loop) == 4 * 24
    assert sum("{1to16}" in i.operands for i in loop if i.fused) == 4 * 24
    assert not any("(%rsp" in i.operands for i in loop)


@EACH_FUSED
@pytest.mark.parametrize(("outputs", "paired"), [(24, True), (40, True), (20, True), (25, False), (8, False)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_half_empty_registers_hold_two_pixels(outputs: int, paired: bool, kernel: int, target: Target) -> None:
    """AVX-512: a multiply-add less for two pixels, no more loads, nothing spilled; elsewhere as without."""
    spec = lowered(typical(64, outputs, "NHWC", kernel), "direct", target)[0][1]
    assert isinstance(spec, DenseSpec)
    assert spec.pairs == (paired and target.name == "avx512")
    if not spec.pairs:
        return
    rows, vectors = spec.rows[1], spec.panels.last
    loop = multiplying(spec)[0]
    assert count_fused(loop) == 4 * (rows * vectors - rows // 2)
    loads = [i for i in loop if i.operation.startswith(("vbroadcast", "vmov")) and "(" in i.operands]
    assert len(loads) == 4 * (rows + vectors)
    assert not spills(loop)


@EACH_FUSED
@pytest.mark.parametrize("outputs", [5, 17, 39])
def test_weights_without_gaps_spill_next_to_nothing(outputs: int, target: Target) -> None:
    """What a limit of nothing runs: the last register of each row of weights is read in pieces."""
    sizes = {"x_shape": (1, 20, 20, 64), "w_shape": (outputs, 64, 3, 3), "layout": "NHWC", "padding": 1}
    problem = leanconv.plan(**sizes, algorithm="reference").problem
    low = BY_NAME["direct"].lower(problem, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, 0, {})
    spec = low.phases[0].spec
    assert isinstance(spec, DenseSpec) and spec.tight and low.packing and low.packing.nbytes == problem.w_bytes
    for loop in multiplying(spec):
        assert len(spills(loop)) * 5 < count_fused(loop)


def test_the_reader_of_assembly() -> None:
    x86 = """
kernel:                                 # @kernel
# %bb.0:
    vmovups %ymm1, 32(%rsp)
.LBB0_1:                                # outer
    xorl %ecx, %ecx
.LBB0_2:
    vfmadd231ps (%rax), %ymm0, %ymm1    # ymm1 = (ymm0 * mem) + ymm1
    vmovups 32(%rsp), %ymm2             # 32-byte Reload
    movq 8(%rsp), %rdx
    jle .LBB0_3
    vfmadd231ss (%rax), %xmm0, %xmm1
.LBB0_3:
    jne .LBB0_2
    jne .LBB0_1
    retq
"""
    (loop,) = innermost_loops(x86)
    assert [i.operation for i in loop][0::6] == ["vfmadd231ps"] and len(loop) == 6
    assert count_fused(loop) == 1
    assert spills(loop) == ["vmovups 32(%rsp), %ymm2"]
    neon = """
kernel:
.LBB0_1:
    ldp q0, q1, [sp, #16]               // 32-byte Folded Reload
    ldr x0, [sp, #8]
    fmla v2.4s, v0.4s, v1.s[0]
    fmadd s0, s1, s2, s3
    cbnz x1, .LBB0_1
    ret
"""
    (loop,) = innermost_loops(neon)
    assert count_fused(loop) == 1
    assert spills(loop) == ["ldp q0, q1, [sp, #16]"]
