"""The copy strategies: all write the same matrix, bit for bit, and it is that of the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import definitions_copies as definitions
import leanconv
from guard import GuardedAllocator, guarded, guarded_copy
from leanconv.host import this_host
from leanconv.program import Compiled, Job, Program
from leanconv.threads import pool
from strategies import ALGORITHMS, WINDOWS, Case, Geometry, applies

STRATEGIES = ["im2col", "im2col_scan", "im2col_copy_self", "im2col_copy_long"]
STRATEGIES += ["im2row", "im2row_scan", "im2row_copy_self", "im2row_copy_long"]
WRAPPING = Geometry((3, 5), (1, 1), (1, 2), ((3, 0), (5, 3)))  # moved by more than the image's rows and columns
PLANES = Geometry((3, 3, 3), (1, 1, 1), (2, 1, 1), ((2, 1), (1, 1), (1, 1)))
EACH_GEOMETRY = pytest.mark.parametrize("geometry", [*WINDOWS, WRAPPING, PLANES], ids=range(len(WINDOWS) + 2))


def case_of(geometry: Geometry, layout: str) -> Case:
    size = tuple(n + 5 for n in geometry.smallest)
    return Case((1, 6, *size), (4, 3, *geometry.kernel), geometry, groups=2, layout=layout)


def staged(case: Case, name: str) -> np.ndarray[Any, Any]:
    """The matrix that the staging phase of an algorithm writes: (groups, taps * C/g, pixels)."""
    p = case.plan(name, 2).problem
    low = ALGORITHMS[name].lower(p, this_host(), 2, None, {})
    phase, (buffer,) = low.phases[0], low.workspace
    assert phase.name == "stage"
    matrix = guarded((buffer.nbytes // p.itemsize,), p.dtype)
    x = guarded_copy(case.values["x"])
    job = Job(Compiled(Program((phase,), (), 2, {buffer.name: matrix.ctypes.data})))
    job.table[0] = x.ctypes.data
    pool().run(job.address, 2)
    depth = p.taps * p.group_in
    if name.startswith("im2row"):
        return matrix.reshape(p.groups, -1, depth).swapaxes(1, 2)
    return matrix.reshape(p.groups, depth, -1)


@EACH_GEOMETRY
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_matrix_is_that_of_the_definition(name: str, geometry: Geometry) -> None:
    applied = 0
    for layout in ("NCHW", "NHWC"):
        case = case_of(geometry, layout)
        if applies(name, case.problem):
            x = case.values["x"] if layout == "NCHW" else np.moveaxis(case.values["x"], -1, 1)
            wanted = np.stack([definitions.im2col(case.problem, group) for group in np.split(x[0], 2)])
            np.testing.assert_array_equal(staged(case, name), wanted)
            applied += 1
    if name in ("im2col", "im2row", "im2col_scan", "im2row_scan"):
        assert applied == 2


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_takes_the_papers_layers(name: str) -> None:
    """Stride 1, padding that keeps the size."""
    for kernel in (3, 5):
        geometry = Geometry((kernel, kernel), (1, 1), (1, 1), ((kernel // 2,) * 2,) * 2)
        layout = "NHWC" if name.startswith("im2row") else "NCHW"
        case = Case((1, 5, 9, 11), (4, 5, kernel, kernel), geometry, layout=layout)
        x = case.values["x"] if layout == "NCHW" else np.moveaxis(case.values["x"], -1, 1)
        np.testing.assert_array_equal(staged(case, name)[0], definitions.im2col(case.problem, x[0]))


@EACH_GEOMETRY
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("pad_mode", ["zeros", "replicate"])
def test_strips_of_less_than_a_row_are_of_the_same_bits(geometry: Geometry, layout: str, pad_mode: str) -> None:
    """A limit that leaves no room for a row of the output leaves room for a part of one."""
    case = case_of(replace(geometry, mode=pad_mode), layout)
    problem, name = case.problem, "im2col_strip"
    inputs = case.guarded_inputs(viewed=False)
    whole = case.plan(name, parameters={"strip": 1})
    with GuardedAllocator():
        wanted = whole.bind(inputs["w"])(inputs["x"])
    case.check(wanted, name)
    sizes = set()
    for pixels in range(1, problem.out_size[-1]):
        room = 64 + pixels * problem.taps * problem.group_in * problem.itemsize
        plan = case.plan(name, workspace_limit=room)
        assert plan.workspace_bytes <= room
        sizes.add(plan.workspace_bytes)
        with GuardedAllocator():
            np.testing.assert_array_equal(plan.bind(inputs["w"])(inputs["x"]), wanted)
    assert min(sizes) < whole.workspace_bytes or whole.workspace_bytes == 64


@pytest.mark.parametrize("strategy", ["scan", "copy_short", "copy_self", "copy_long"])
def test_the_definitions_agree(strategy: str) -> None:
    function: Callable[..., Any] = getattr(definitions, strategy)
    same = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
    strided = Geometry((5, 3), (2, 1), (1, 2), ((1, 0), (2, 3)))
    spread = Geometry((3, 3), (2, 3), (3, 1), ((3, 3), (0, 1)))
    for geometry in (same, WRAPPING, *((strided, spread) if strategy != "copy_long" else ())):
        size = tuple(n + 4 for n in geometry.smallest)
        problem = Case((1, 3, *size), (4, 3, *geometry.kernel), geometry).problem
        x = np.random.default_rng(1).standard_normal((3, *size))
        np.testing.assert_array_equal(function(problem, x), definitions.im2col(problem, x))


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("im2col_copy_self", {"stride": 3}, "no windows share rows of the image: 3 taps, stride 3, dilation 1"),
        ("im2row_copy_self", {"dilation": (4, 1)}, "windows share rows 4 outputs apart, the output has 1"),
        ("im2col_copy_long", {"stride": (1, 2)}, "planes are copied whole, the stride is 1x2"),
        ("im2col_copy_long", {}, "rows of the output are not as long as those of the image: (8,) and (10,)"),
        ("im2col_copy_long", {"padding": 1, "pad_mode": "reflect"}, "pad_mode='reflect'"),
        ("im2row_copy_long", {"layout": "NHWC", "dilation": (1, 2)}, "taps of a row are 2 pixels apart"),
        ("im2row_copy_long", {}, "pixels of a row, with all their channels, are not adjacent in memory"),
    ],
)
def test_refusals(name: str, options: dict[str, Any], reason: str) -> None:
    x_shape = (1, 9, 10, 4) if options.get("layout") == "NHWC" else (1, 4, 9, 10)
    with pytest.raises(leanconv.NotApplicableError, match="does not apply") as caught:
        leanconv.plan(x_shape, (5, 4, 3, 3), algorithm=name, **options)
    assert reason in caught.value.reason
