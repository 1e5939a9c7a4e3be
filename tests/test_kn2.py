"""The kn2row family: its definitions, the memory of the papers, and what the general tests do not draw."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import definitions_kn2 as definitions
import leanconv
from guard import GuardedAllocator
from leanconv import oracle
from leanconv.errors import ArgumentValueError, NotApplicableError
from leanconv.host import this_host
from leanconv.kernels.panels import Panels
from strategies import Case, Geometry
from test_algorithms import run_every_way, same_bits

ROWS = ["kn2row", "kn2row_as", "kn2row_aa"]
COLS = ["kn2col", "kn2col_as", "kn2col_aa"]
FAMILY = [*ROWS, *COLS, "kn2row_exact"]
LAYOUTS = {name: ("NCHW",) if name in ROWS else ("NHWC",) if name in COLS else ("NCHW", "NHWC") for name in FAMILY}
SAME = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))


def cases_of(name: str, case: Case) -> list[Case]:
    return [replace(case, layout=layout) for layout in LAYOUTS[name]]


# -- definitions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kn2row", "kn2row_as", "kn2row_aa", "kn2row_exact"])
@pytest.mark.parametrize("high", [1, 0])
def test_definitions(name: str, high: int) -> None:
    pads = ((2, 1), (2, 2))
    geometry = Geometry((3, 5), (1, 1), (2, 1), pads)
    strided = replace(geometry, stride=(2, 3))
    for at in (geometry, strided) if name == "kn2row_exact" else (geometry,):
        case = Case((1, 3, 9, 8 + high), (4, 3, 3, 5), at, dtype="float64")
        x, w = case.values["x"][0], case.values["w"]
        more = {"stride": at.stride} if name == "kn2row_exact" else {}
        got = getattr(definitions, name)(x, w, (2, 2), at.dilation, case.problem.out_size, **more)
        np.testing.assert_allclose(got, oracle.reference(case.problem, **case.values)[0], atol=1e-13)


@pytest.mark.parametrize("name", FAMILY)
def test_kernels_compute_what_is_defined(name: str) -> None:
    for case in cases_of(name, Case((1, 5, 11, 12), (6, 5, 3, 3), SAME, dtype="float64")):
        x = case.values["x"][0] if case.layout == "NCHW" else np.moveaxis(case.values["x"][0], -1, 0)
        define = getattr(definitions, name.replace("kn2col", "kn2row"))
        want = define(x, case.values["w"], (1, 1), (1, 1), (11, 12))
        got = leanconv.conv2d(**case.values, **case.options, algorithm=name)[0]
        np.testing.assert_allclose(got if case.layout == "NCHW" else np.moveaxis(got, -1, 0), want, atol=1e-13)


# -- memory ----------------------------------------------------------------------------------------------------------

# What the papers say, in elements: taps K H W for all maps at once, K H W for one, S W for holes, nothing if exact.
Formula = Callable[[int, int, int, int, int], int]
FORMULAS: dict[str, tuple[str, Formula]] = {
    "kn2row": ("R S K H W", lambda k, h, w, r, s: r * s * k * h * w),
    "kn2col": ("R S K H W", lambda k, h, w, r, s: r * s * k * h * w),
    "kn2row_as": ("K H W", lambda k, h, w, r, s: k * h * w),
    "kn2col_as": ("K H W", lambda k, h, w, r, s: k * h * w),
    "kn2row_aa": ("S W", lambda k, h, w, r, s: s * w),
    "kn2col_aa": ("S W", lambda k, h, w, r, s: s * w),
    "kn2row_exact": ("0", lambda k, h, w, r, s: 0),
}
LAYERS = [(64, 64, 56, 56, 3), (96, 256, 28, 28, 5), (512, 512, 16, 16, 3), (3, 17, 16, 32, 7), (64, 64, 224, 224, 3)]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: "x".join(map(str, layer)))
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("name", FAMILY)
def test_workspace_is_what_the_papers_say(name: str, threads: int, layer: tuple[int, ...]) -> None:
    """Run with `-s` to see the table."""
    c, k, h, w, size = layer
    words, formula = FORMULAS[name]
    elements = formula(k, h, w, size, size)
    geometry = replace(SAME, kernel=(size, size), pads=((size // 2,) * 2,) * 2)
    for batch in (1, 2):
        for case in cases_of(name, Case((batch, c, h, w), (k, c, size, size), geometry)):
            plan = case.plan(name, threads)
            print(f"{plan.problem.describe():60} {name:14} {words:10} {elements:>12} {plan.workspace_bytes:>12} B")
            declared = sum(buffer.nbytes for buffer in plan._lowering.workspace)
            assert declared == 4 * elements
            assert plan.workspace_bytes == -(-4 * elements // 64) * 64  # on cache lines of its own


def widest(channels: int) -> int:
    """The most output channels that the registers of a panel hold: of 40 channels 24 on eight lanes, 48 on sixteen."""
    lanes = this_host().target.lanes("float32")
    panels = Panels.of(channels, lanes)
    return max(panels.vectors if panels.count else 0, panels.last) * lanes


@pytest.mark.parametrize("name", ["kn2row_as", "kn2col_as"])
def test_strips_and_limits_make_the_map_smaller_and_change_no_bit(name: str) -> None:
    (case,) = cases_of(name, Case((2, 20, 23, 19), (40, 20, 3, 3), SAME, epilogue={"bias": True}))
    inputs = case.guarded_inputs(viewed=False)
    whole = leanconv.conv2d(**inputs, **case.options, algorithm=name, threads=2)
    weights = {key: inputs.pop(key) for key in ("w", "bias")}
    largest = case.plan(name).workspace_bytes
    rest = case.plan(name).extra_bytes - largest
    plans = [case.plan(name, threads, parameters={"strip": rows}) for threads in (1, 3) for rows in (1, 4, 100)]
    plans += [case.plan(name, 1, memory_limit=limit + rest) for limit in (24 * 4 * 7, 24 * 4 * 19 * 3, 10000)]
    for plan in plans:
        assert plan.workspace_bytes < largest or plan.tunables["strip"] == 100
        with GuardedAllocator():
            assert same_bits(plan.bind(**weights)(**inputs), whole)
    strips = [case.plan(name, 1, parameters={"strip": rows}).workspace_bytes for rows in (1, 2)]
    assert strips == [-(-4 * min(40, widest(40)) * 19 * rows // 64) * 64 for rows in (1, 2)]
    with pytest.raises(ArgumentValueError):
        case.plan(name, parameters={"strips": 1})


@pytest.mark.parametrize("name", FAMILY)
def test_sums_have_memory_of_their_own_where_the_residual_comes_last(name: str) -> None:
    epilogue = {"residual": True, "residual_order": "after", "activation": "relu"}
    for case in cases_of(name, Case((1, 20, 23, 19), (40, 20, 3, 3), SAME, epilogue=epilogue)):
        plain = replace(case, epilogue={"residual": True, "activation": "relu"}).plan(name).workspace_bytes
        plan = case.plan(name)
        block = int(plan.parameters["block"])
        assert plan.workspace_bytes == plain + -(-block * widest(40) * 4 // 64) * 64
        rest = plan.extra_bytes - plan.workspace_bytes
        for limit in (plan.workspace_bytes - 64, plain + widest(40) * 4 + 128):
            less = case.plan(name, memory_limit=rest + limit)
            assert less.workspace_bytes <= limit
            inputs = case.guarded_inputs(viewed=False)
            with GuardedAllocator():
                case.check(less.bind(inputs.pop("w"))(**inputs))


# -- odd shapes ------------------------------------------------------------------------------------------------------

RELU: dict[str, Any] = {"bias": True, "activation": "relu"}
SHAPES = {
    "wide rows, in pieces": Case((1, 33, 1500), (17, 33, 5), Geometry((5,), (1,), (1,), ((2, 2),)), threads=3),
    "wide rows, output wider": Case((1, 40, 1200), (24, 40, 3), Geometry((3,), (1,), (2,), ((9, 5),)), threads=2),
    "wide image": Case((1, 70, 5, 700), (20, 70, 3, 3), SAME),
    "output wider than the image": Case((2, 9, 8, 7), (33, 9, 3, 3), replace(SAME, pads=((3, 3), (4, 1))), threads=4),
    "output narrower": Case((1, 24, 40, 21), (40, 24, 3, 3), replace(SAME, pads=((0, 0), (0, 0))), threads=2),
    "as wide, but moved": Case((1, 12, 9, 14), (18, 12, 3, 3), replace(SAME, pads=((0, 3), (2, 0))), threads=2),
    "dilated": Case((1, 16, 19, 20), (16, 16, 3, 3), replace(SAME, dilation=(3, 4), pads=((3, 3), (4, 4)))),
    "groups": Case((2, 36, 13, 11), (60, 12, 3, 3), SAME, groups=3, epilogue={"bias": True, "activation": "relu"}),
    "three dimensions": Case(
        (2, 10, 5, 6, 9), (20, 10, 3, 3, 3), Geometry((3,) * 3, (1,) * 3, (1,) * 3, ((1, 1),) * 3)
    ),
    "gaps between rows": Case((1, 20, 15, 13), (24, 20, 3, 3), SAME, views=("gaps", "gaps", "gaps", "gaps")),
    "one column": Case((1, 8, 30, 1), (16, 8, 3, 3), SAME),
    "taps that reach nothing": Case((1, 8, 2, 2), (16, 8, 3, 3), replace(SAME, dilation=(9, 9), pads=((9, 9), (9, 9)))),
    "residual": Case((1, 30, 9, 31), (40, 30, 3, 3), SAME, epilogue={"residual": True, "activation": "gelu"}),
    "residual last": Case((1, 7, 9, 12), (8, 7, 3, 3), SAME, epilogue={"residual": True, "residual_order": "after"}),
    "residual after the activation": Case(
        (2, 30, 9, 31), (21, 30, 3, 3), SAME, epilogue={"residual": True, "residual_order": "after", **RELU}, threads=2
    ),
    "residual after, groups": Case(
        (1, 8, 11, 7),
        (76, 4, 3, 3),
        SAME,
        groups=2,
        epilogue={"residual": True, "residual_order": "after", **RELU},
        threads=3,
    ),
    "long sums": Case((1, 512, 9, 10), (24, 512, 3, 3), SAME, threads=2),
    "doubles": Case((1, 50, 17, 16), (40, 50, 3, 3), SAME, dtype="float64", epilogue={"bias": True}, threads=2),
    "nothing": Case((0, 8, 9, 9), (16, 8, 3, 3), SAME),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", FAMILY)
def test_odd_shapes(name: str, shape: str) -> None:
    for case in cases_of(name, SHAPES[shape]):
        try:
            case.plan(name)
        except NotApplicableError as error:
            assert name.endswith("_aa") and "rows of the image have" in error.reason
            continue
        with GuardedAllocator():
            run_every_way(name, case)


@pytest.mark.parametrize("name", FAMILY)
def test_the_residual_may_be_the_output(name: str) -> None:
    after = {"residual_order": "after"}
    for order in ({"activation": "relu"}, after, {**after, "activation": "relu"}):
        for case in cases_of(name, Case((1, 12, 9, 10), (24, 12, 3, 3), SAME, epilogue={"residual": True, **order})):
            inputs = case.guarded_inputs(viewed=False)
            out = inputs.pop("residual").copy()
            leanconv.conv2d(**inputs, residual=out, out=out, **case.options, algorithm=name)
            case.check(out)


@pytest.mark.parametrize("name", FAMILY)
def test_a_hole_reads_nothing_of_its_neighbours(name: str) -> None:
    """What is not finite shows in the outputs whose windows hold it, and in no others."""
    for case in cases_of(name, Case((1, 6, 8, 9), (16, 6, 3, 3), SAME)):
        for place in [(2, 0), (3, 8), (0, 4), (7, 8), (0, 0)]:
            values = {key: value.copy() for key, value in case.values.items()}
            image = values["x"] if case.layout == "NHWC" else np.moveaxis(values["x"], 1, -1)
            image[0, *place, 3] = np.inf
            got = leanconv.conv2d(**values, **case.options, algorithm=name)
            with np.errstate(invalid="ignore"):
                want = oracle.reference(case.problem, **values)
            assert (np.isfinite(got) == np.isfinite(want)).all()


# -- refusals --------------------------------------------------------------------------------------------------------

REFUSALS: list[tuple[list[str], dict[str, Any], str]] = [
    (ROWS, {"layout": "NHWC"}, "channels first, and the layout is NHWC"),
    (COLS, {"layout": "NCHW"}, "channels last, and the layout is NCHW"),
    (ROWS + COLS, {"geometry": replace(SAME, stride=(1, 2))}, "the stride is 1x2"),
    (FAMILY, {"geometry": replace(SAME, mode="reflect")}, "padded by 'reflect'"),
    (["kn2row_aa", "kn2col_aa"], {"geometry": replace(SAME, pads=((1, 1), (0, 1)))}, "have 7 pixels, those of the "),
]


@pytest.mark.parametrize(
    ("names", "change", "words"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_refusals(names: list[str], change: dict[str, Any], words: str) -> None:
    for name in names:
        case = replace(Case((1, 4, 6, 7), (8, 4, 3, 3), SAME, layout=LAYOUTS[name][0]), **change)
        with pytest.raises(NotApplicableError) as caught:
            case.plan(name)
        assert words in caught.value.reason


def test_the_exact_form_takes_what_the_others_refuse() -> None:
    strided = replace(SAME, stride=(1, 2), pads=((4, 0), (1, 3)))
    for layout in ("NCHW", "NHWC"):
        case = Case((1, 4, 6, 7), (8, 4, 3, 3), strided, layout=layout)
        assert case.plan("kn2row_exact").workspace_bytes == 0
        case.check(leanconv.conv2d(**case.values, **case.options, algorithm="kn2row_exact"))


@pytest.mark.parametrize("channels", [512])
def test_sums_of_4608_terms_are_within_a_millionth(channels: int) -> None:
    for name in FAMILY:
        for case in cases_of(name, Case((1, channels, 8, 8), (32, channels, 3, 3), SAME, seed=7)):
            got = leanconv.conv2d(**case.values, **case.options, algorithm=name)
            want = oracle.reference(case.problem, **case.values)
            assert math.prod(case.w_shape[1:]) == 4608
            assert np.abs(got - want).max() <= 1e-6 * np.abs(want).max()
