"""The machine code of kernels with vectors along the last axis: it compiles, and its inner loops spill nothing."""

from __future__ import annotations

from typing import Any

import pytest

from assembly import count_fused, parse, spills
from leanconv.codegen.targets import Target
from leanconv.layouts import shape_in
from leanconv.options import make_problem
from leanconv.problem import Problem
from strategies import EPILOGUES, POINTWISE, WINDOWS, Case
from test_assembly import EACH_FUSED, EACH_TARGET, assembly, lowered, multiplying

EACH_NAME = pytest.mark.parametrize("name", ["direct", "im2win", "im2win_band"])
CHANNELS = [(3, 40), (8, 8), (13, 24), (300, 7), (1, 1), (20, 33)]


def problems() -> list[Problem]:
    """One of each geometry, each with other channels, images, epilogue, layout and element type."""
    result = []
    flat = [geometry for geometry in POINTWISE + WINDOWS if len(geometry.kernel) < 3]
    for i, geometry in enumerate(flat):
        c, k = CHANNELS[i % len(CHANNELS)]
        layout = ("CHWN", "CHWN8")[i % 2]
        dtype = ("float32", "float64")[i % 3 == 2]
        size = tuple(n + 9 for n in geometry.smallest)
        epilogue = EPILOGUES[i % len(EPILOGUES)]
        plain = Case((1, c, *size), (k, c, *geometry.kernel), geometry, layout=layout, epilogue=epilogue)
        flags = {name: bool(epilogue.get(name)) for name in ("bias", "residual")}
        x_shape = shape_in(((3, 8, 16, 37)[i % 4], c, *size), layout)
        options = plain.options | flags
        result.append(make_problem(len(size), x_shape, plain.w_shape, dtype=dtype, **options))
    return result


@EACH_TARGET
@EACH_NAME
def test_every_kernel_compiles_for_every_target(name: str, target: Target) -> None:
    for problem in problems()[:: 1 if target.masks else 2]:  # masks are what these kernels have beyond others
        for phase, spec in lowered(problem, name, target):
            instructions, labels = parse(assembly(spec))
            assert "kernel" in labels, phase
            calls = {i.operands.removesuffix("@PLT") for i in instructions if i.operation in ("call", "callq", "bl")}
            assert not calls - (set() if target.fma else {"fma", "fmaf", "rint", "rintf"}), phase


@EACH_FUSED
@EACH_NAME
@pytest.mark.parametrize(
    ("images", "layout"), [(64, "CHWN"), (16, "CHWN8"), (20, "CHWN")], ids=["whole", "blocks", "ragged"]
)
def test_inner_loops_hold_whole_tiles_and_spill_nothing(images: int, layout: str, name: str, target: Target) -> None:
    x_shape = shape_in((images, 64, 14, 14), layout)
    problem = make_problem(2, x_shape, (64, 64, 3, 3), dtype="float32", padding=1, layout=layout)
    core: Any = next(spec for phase, spec in lowered(problem, name, target) if phase == "core")
    loops = multiplying(core)
    counts = [count_fused(loop) for loop in loops]
    assert counts[0] >= 2 * core.rows
    for loop in loops:
        if target.masks or name != "direct":  # masked loads without masks are loops over lanes, in pieces
            assert any(count_fused(loop) % (rows * v) == 0 for rows in (core.rows, core.rows - 1) for v in (1, 2))
        if count_fused(loop) == counts[0]:
            assert not spills(loop)
