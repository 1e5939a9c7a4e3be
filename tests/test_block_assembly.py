"""The machine code of blocks of layers for every target: it compiles, and its inner loops spill nothing."""

from __future__ import annotations

from typing import Any

import pytest

from assembly import count_fused, parse, spills
from leanconv.blocks.bands import Grouping, groupings
from leanconv.blocks.inverted_lower import grouped, lower_inverted
from leanconv.blocks.phases import phase_grouping
from leanconv.codegen.targets import Target
from leanconv.compiled import KernelSpec
from leanconv.host import Host
from leanconv.kernels.dense import DenseSpec
from leanconv.kernels.expansion import ExpansionSpec
from leanconv.kernels.inverted import InvertedSpec
from leanconv.kernels.reduction import FEW, UNROLL
from leanconv.options import make_problem
from leanconv.problem import Problem
from test_assembly import EACH_FUSED, EACH_TARGET, assembly, multiplying


def layers(
    size: int, channels: int, middle: int, out: int, stride: int = 1, dtype: str = "float32"
) -> tuple[Problem, ...]:
    options: dict[str, Any] = {"dtype": dtype, "bias": True, "layout": "NHWC"}
    expand = make_problem(2, (1, size, size, channels), (middle, channels, 1, 1), activation="relu6", **options)
    depthwise = make_problem(
        2,
        expand.out_shape,
        (middle, 1, 3, 3),
        stride=stride,
        padding=1,
        groups=middle,
        activation="relu6",
        **options,
    )
    return expand, depthwise, make_problem(2, depthwise.out_shape, (out, middle, 1, 1), **options)


BLOCKS = {
    "one group": layers(56, 24, 144, 24),  # four and a half sections of AVX-512
    "groups": layers(28, 32, 192, 64, 2),
    "shared rows": layers(14, 64, 384, 96),
    "phases": layers(7, 160, 960, 160),
    "odd": layers(13, 3, 37, 10),
}


def kernels(name: str, target: Target) -> list[KernelSpec]:
    """The kernels of a block, on one thread and on two."""
    host = Host(target, 48 << 10, 1 << 20, 32 << 20)
    lowered = [lower_inverted(BLOCKS[name], host, threads, None) for threads in (1, 2)]
    return list(dict.fromkeys(phase.spec for each in lowered for phase in each.phases))


def cores(spec: KernelSpec) -> list[DenseSpec]:
    """The dense layers in a kernel."""
    if isinstance(spec, InvertedSpec):
        return [spec.expansion.expand, spec.project]
    if isinstance(spec, ExpansionSpec):
        return [spec.expand]
    assert isinstance(spec, DenseSpec)
    return [spec]


@EACH_TARGET
@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_compiles_for_every_target(name: str, target: Target) -> None:
    for spec in kernels(name, target):
        instructions, labels = parse(assembly(spec))
        assert "kernel" in labels
        calls = {i.operands.removesuffix("@PLT") for i in instructions if i.operation in ("call", "callq", "bl")}
        assert not calls - (set() if target.fma else {"fma", "fmaf"})


@EACH_FUSED
@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "odd"])
def test_the_products_of_a_block_spill_nothing(name: str, target: Target) -> None:
    """Loops over channels hold whole tiles of the expansion and of the projection."""
    for spec in kernels(name, target):
        loops = [loop for loop in multiplying(spec) if count_fused(loop) >= 16]
        assert len(loops) >= len(cores(spec))
        for loop in loops:
            assert not spills(loop)
        sizes = {count_fused(loop) for loop in loops}
        for core in cores(spec):
            if core.panels.whole:
                assert core.rows[0] * core.panels.vectors * UNROLL in sizes


def test_groups_share_their_kernels() -> None:
    """However many groups there are, and though the last one is smaller."""
    from leanconv.codegen.targets import AVX512

    phases = lower_inverted(BLOCKS["phases"], Host(AVX512, 48 << 10, 1 << 20, 32 << 20), 2, None).phases
    first, second = dict.fromkeys(phase.spec for phase in phases)
    assert isinstance(first, ExpansionSpec) and isinstance(second, DenseSpec) and second.grouped
    assert {phase.fields["channels_whole"] for phase in phases if phase.spec == second} == {256, 192}


@EACH_TARGET
def test_groups_have_two_rounds_of_terms(target: Target) -> None:
    """Kernels of sums that are not unrolled wholly begin with one and go on with at least one more."""
    host = Host(target, 48 << 10, 1 << 20, 32 << 20)
    for middle in range(4, 100, 4):
        for dtype in ("float32", "float64"):
            block = layers(8, 8, middle, 8, dtype=dtype)
            chosen = phase_grouping(block, host)
            for grouping in (*groupings(block, host), *([chosen] if chosen else [])):
                assert grouping.least > FEW or grouping.least == grouping.channels


def test_sums_end_beside_their_activation() -> None:
    """The bias of a short sum is added right before the sum is activated and stored, one after the other."""
    from leanconv.codegen.targets import AVX512

    spec = grouped(BLOCKS["one group"], Grouping(2, 5, 144, 16), Host(AVX512, 48 << 10, 1 << 20, 32 << 20), 1, None)
    instructions, _ = parse(assembly(spec.phases[0].spec))
    steps = [i.operation for i in instructions if i.operation in ("vaddps", "vmaxps", "vminps")]
    runs = max(len(run) for run in "".join("a" if s == "vaddps" else "." for s in steps).split("."))
    assert runs < 6
