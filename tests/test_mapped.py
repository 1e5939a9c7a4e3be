"""Mapped convolution: the definition, every kind of map and array, exact memory, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import leanconv
from assembly import parse
from definitions_indirect import mapped, sample
from guard import GuardedAllocator, run_python
from leanconv.algorithms.mapped import Mapped
from leanconv.codegen import jit
from leanconv.codegen.ir import Module
from leanconv.codegen.targets import TARGETS, Target
from leanconv.errors import ArgumentTypeError, ArgumentValueError, MemoryLimitError
from leanconv.host import Host
from leanconv.options import make_problem
from leanconv.problem import to_user
from strategies import READ_VIEWS, WRITE_VIEWS, check_untouched, spread

Array = np.ndarray[Any, Any]
MODES = ("zeros", "replicate", "circular")


def random_map(rng: np.random.Generator, shape: tuple[int, ...], size: tuple[int, int], dtype: str) -> Array:
    """Positions in the image and around it, some of them whole numbers and halves, some far away."""
    at = rng.uniform(-3, np.array(size) + 3, (*shape, 2))
    kind = rng.integers(0, 5, shape)
    at[kind == 0] = np.round(at[kind == 0])
    at[kind == 1] = np.round(2 * at[kind == 1]) / 2
    at[kind == 2, 0] = np.round(at[kind == 2, 0])
    at[rng.random(shape) < 0.02] *= 1e4
    return at.astype(dtype)


@dataclass(frozen=True)
class Layer:
    batch: int
    groups: int
    channels: int  # of a group
    filters: int  # of a group
    size: tuple[int, int]
    kernel: tuple[int, int]
    grid: tuple[int, int]
    dtype: str
    map_dtype: str
    layout: str
    interpolation: str
    modes: tuple[str, str]
    bias: bool
    activation: str | None
    views: tuple[str, str, str, str]
    seed: int


LAYERS = st.builds(
    Layer,
    batch=st.sampled_from([0, 1, 1, 2]),
    groups=st.sampled_from([1, 1, 2]),
    channels=st.sampled_from([1, 3, 8, 9, 16, 21]),
    filters=st.sampled_from([1, 5, 16, 20]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    kernel=st.sampled_from([(1, 1), (3, 3), (2, 4)]),
    grid=st.tuples(st.integers(1, 8), st.integers(1, 9)),
    dtype=st.sampled_from(["float32", "float32", "float64"]),
    map_dtype=st.sampled_from(["float32", "float64"]),
    layout=st.sampled_from(["NCHW", "NHWC"]),
    interpolation=st.sampled_from(["nearest", "bilinear"]),
    modes=st.tuples(st.sampled_from(MODES), st.sampled_from(MODES)),
    bias=st.booleans(),
    activation=st.sampled_from([None, "relu"]),
    views=st.tuples(*[st.sampled_from(READ_VIEWS)] * 3, st.sampled_from(WRITE_VIEWS)),
    seed=st.integers(0, 2**32 - 1),
)


@settings(settings.get_profile("engine"), max_examples=120)
@given(LAYERS)
def test_random_maps(layer: Layer) -> None:
    """Right, in guarded memory, on arrays that lie anyhow, and the same bits for any number of threads."""
    n, rng = layer, np.random.default_rng(layer.seed)
    x = rng.standard_normal((n.batch, n.groups * n.channels, *n.size)).astype(n.dtype)
    w = rng.standard_normal((n.groups * n.filters, n.channels, *n.kernel)).astype(n.dtype)
    at = random_map(rng, (*n.grid, *n.kernel), n.size, n.map_dtype)
    bias = rng.standard_normal(len(w)).astype(n.dtype) if n.bias else None
    wanted = mapped(x, w, at, n.interpolation, n.modes, n.groups)
    # Rounding of the positions themselves is part of the answer: both work with what the map holds.
    scale = mapped(np.abs(x), np.abs(w), at, n.interpolation, n.modes, n.groups).max(initial=1e-3)
    tolerance = (1e-6 if "float32" in (n.dtype, n.map_dtype) else 1e-14) * scale
    if bias is not None:
        wanted += bias[:, None, None]
    if n.activation:
        wanted = np.maximum(wanted, 0)
    user = x if n.layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    out_shape = to_user(wanted.shape, n.layout)
    first = None
    for threads, viewed in ((1, False), (2, True), (4, False)):
        arrays = [user, w, at]
        with GuardedAllocator():
            views = n.views if viewed else ("dense",) * 4
            image, filters, places = (
                spread(a, view if view != "broadcast" else "gaps", "right", n.seed)
                for a, view in zip(arrays, views, strict=False)
            )
            out = spread(np.full(out_shape, np.nan, n.dtype), views[3], "right", n.seed, writable=True)
            got = leanconv.mapped_conv2d(
                image,
                filters,
                places,
                bias,
                n.groups,
                interpolation=n.interpolation,
                pad_mode=n.modes,
                layout=n.layout,
                activation=n.activation,
                threads=threads,
                out=out,
            )
        assert got is out
        check_untouched(out)
        canonical = np.asarray(out if n.layout == "NCHW" else np.moveaxis(out, -1, 1))
        assert np.abs(canonical - wanted).max(initial=0) <= tolerance
        first = canonical.copy() if first is None else first
        np.testing.assert_array_equal(canonical, first)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("pad_mode", MODES)
def test_a_regular_map_is_a_convolution(layout: str, interpolation: str, pad_mode: str) -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal(to_user((2, 12, 10, 13), layout)).astype("float32")
    w, bias = rng.standard_normal((20, 12, 3, 5)).astype("float32"), rng.standard_normal(20).astype("float32")
    geometry: dict[str, Any] = {"stride": (2, 1), "padding": ((1, 2), (4, 0)), "dilation": (2, 1)}
    at = leanconv.regular_map((10, 13), (3, 5), **geometry)
    got = leanconv.mapped_conv2d(x, w, at, bias, interpolation=interpolation, pad_mode=pad_mode, layout=layout)
    same = leanconv.conv2d(x, w, bias, **geometry, pad_mode=pad_mode, layout=layout, algorithm="im2row_strip")
    assert got.tobytes() == same.tobytes()


@pytest.mark.parametrize(
    ("mode", "scipy_mode"), [("zeros", "grid-constant"), ("replicate", "nearest"), ("circular", "grid-wrap")]
)
def test_sampling_is_that_of_scipy(mode: str, scipy_mode: str) -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    rng = np.random.default_rng(4)
    x = rng.standard_normal((1, 1, 7, 8))
    at = random_map(rng, (20, 21, 1, 1), (7, 8), "float64")
    wanted = ndimage.map_coordinates(x[0, 0], np.moveaxis(at, -1, 0), order=1, mode=scipy_mode)
    got = leanconv.mapped_conv2d(x, np.ones((1, 1, 1, 1)), at, pad_mode=mode)
    np.testing.assert_allclose(got[0, 0], wanted[..., 0, 0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(sample(x, at, "bilinear", (mode, mode))[0, 0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("channels", [3, 16])
def test_special_values_reach_the_samples_that_touch_them(layout: str, channels: int) -> None:
    x = np.zeros((1, channels, 5, 5), "float32")
    x[0, :, 2, 2] = np.nan
    positions = [(2, 2), (2, 1), (1, 2), (1.5, 1.5), (2, 1.5), (2.5, 3), (-1, 0), (4.5, 4.5), (5, 2), (1, 1.999)]
    touched = [True, False, False, True, True, False, False, False, False, False]
    at = np.array(positions, "float32").reshape(-1, 1, 1, 1, 2)
    image = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    w = np.ones((1, channels, 1, 1), "float32")
    got = leanconv.mapped_conv2d(image, w, at, layout=layout)
    assert np.isnan(got).ravel().tolist() == touched
    x[0, :, 2, 2] = np.inf
    image = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    got = leanconv.mapped_conv2d(image, w, at[:1], layout=layout)
    assert got.ravel() == np.inf


def test_single_images_and_results() -> None:
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((4, 6, 7)), rng.standard_normal((3, 4, 3, 3))
    at = leanconv.regular_map((6, 7), 3, padding=1, dtype="float64")
    result = leanconv.mapped_conv2d(x, w, at)
    assert result.shape == (3, 6, 7) and result.dtype == np.float64
    out = np.empty_like(result)
    assert leanconv.mapped_conv2d(x, w, at, out=out) is out
    np.testing.assert_array_equal(out, result)
    np.testing.assert_array_equal(leanconv.mapped_conv2d(x[None], w, at)[0], result)


# -- memory ------------------------------------------------------------------------------------------------------


def test_memory_is_bounded_by_the_limit() -> None:
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal((1, 30, 31, 32)).astype("f"), rng.standard_normal((16, 32, 3, 3)).astype("f")
    at = leanconv.regular_map((30, 31), 3, padding=1)
    packed, pixel = 16 * 9 * 32 * 4, 9 * 32 * 4
    results = []
    for limit in (None, 2 * 8 * pixel, 2 * pixel, pixel):  # the last on one thread
        with GuardedAllocator() as guard:
            results.append(leanconv.mapped_conv2d(x, w, at, layout="NHWC", threads=2, memory_limit=limit))
        assert limit is None or sum(guard.sizes) <= limit + packed
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
    np.testing.assert_array_equal(results[3], results[0])
    with leanconv.memory_limit(pixel - 1), pytest.raises(MemoryLimitError) as caught:
        leanconv.mapped_conv2d(x, w, at, layout="NHWC", threads=2)
    assert caught.value.needed == pixel


# -- what is refused ---------------------------------------------------------------------------------------------

X, W = np.zeros((1, 4, 6, 7), "float32"), np.zeros((3, 4, 3, 2), "float32")
AT = np.zeros((5, 6, 3, 2, 2), "float32")


def with_one(value: float) -> Array:
    at = AT.copy()
    at[2, 3, 1, 1, 0] = value
    return at


@pytest.mark.parametrize(
    ("arguments", "argument", "rule"),
    [
        ({"sample_map": AT[0]}, "sample_map", "(P, Q, R, S, 2)"),
        ({"sample_map": AT[..., :1]}, "sample_map", "(P, Q, R, S, 2)"),
        ({"sample_map": AT[:0]}, "sample_map", "at least 1"),
        ({"sample_map": AT[:, :, :2]}, "sample_map", "(R, S) = (3, 2)"),
        ({"sample_map": with_one(np.nan)}, "sample_map", "finite"),
        ({"sample_map": with_one(-np.inf)}, "sample_map", "finite"),
        ({"x": X[0, 0]}, "x", "4 axes"),
        ({"x": X[:, :3]}, "w_shape", "C/groups = 3/1"),
        ({"w": W[0]}, "w", "4 axes"),
        ({"bias": np.zeros(4, "float32")}, "bias", "shape (3,)"),
        ({"groups": 3}, "groups", "divide"),
        ({"groups": 0}, "groups", "at least 1"),
        ({"interpolation": "cubic"}, "interpolation", "'bilinear'"),
        ({"pad_mode": "reflect"}, "pad_mode", "'circular'"),
        ({"pad_mode": ("zeros",)}, "pad_mode", "two, for y and x"),
        ({"layout": "CHWN"}, "layout", "'NHWC'"),
        ({"activation": "step"}, "activation", "'relu'"),
        ({"threads": 0}, "threads", "at least 1"),
        ({"memory_limit": "much"}, "memory_limit", ""),
        ({"out": np.zeros((1, 3, 5, 5), "float32")}, "out", "shape (1, 3, 5, 6)"),
        ({"out": np.zeros((3, 5, 6), "float32")}, "out", "shape (1, 3, 5, 6)"),
    ],
)
def test_values_that_are_refused(arguments: dict[str, Any], argument: str, rule: str) -> None:
    with pytest.raises(ArgumentValueError) as caught:
        leanconv.mapped_conv2d(**{"x": X, "w": W, "sample_map": AT, **arguments})
    assert caught.value.argument == argument
    assert rule in caught.value.rule


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ({"sample_map": AT.astype(int)}, "sample_map"),
        ({"sample_map": AT.tolist()}, "sample_map"),
        ({"w": W.astype("float64")}, "w"),
        ({"pad_mode": 0}, "pad_mode"),
        ({"groups": 1.0}, "groups"),
        ({"interpolation": None}, "interpolation"),
        ({"out": np.zeros((1, 3, 5, 6))}, "out"),
    ],
)
def test_types_that_are_refused(arguments: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        leanconv.mapped_conv2d(**{"x": X, "w": W, "sample_map": AT, **arguments})
    assert caught.value.argument == argument


def test_a_result_may_not_lie_in_the_map_or_the_image() -> None:
    memory = np.zeros(6000, "float32")
    at, out = memory[:360].reshape(AT.shape), memory[300:390].reshape(1, 3, 5, 6)
    with pytest.raises(ArgumentValueError, match="sample_map"):
        leanconv.mapped_conv2d(X, W, at, out=out)
    x = memory[360:528].reshape(X.shape)
    with pytest.raises(ArgumentValueError, match="overlap x"):
        leanconv.mapped_conv2d(x, W, AT, out=out)


def test_huge_sums_of_a_map_are_not_mistaken_for_infinite_positions() -> None:
    got = leanconv.mapped_conv2d(X + 1, W + 1, np.full_like(AT, 3e38), pad_mode="replicate")
    assert (got == 24).all()


# -- the example -------------------------------------------------------------------------------------------------


def test_the_panorama_example_finds_spots_at_all_latitudes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    example = Path(__file__).parent.parent / "examples" / "panorama.py"
    script = "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    printed = run_python(script, str(example), "--out", str(tmp_path / "panorama.png"))
    flat, sphere = map(float, printed.partition("least of the largest")[2].split()[:2])
    assert flat < 0.5 and sphere > 0.9
    assert (tmp_path / "panorama.png").stat().st_size > 10_000


# -- maps and code -----------------------------------------------------------------------------------------------


def test_regular_maps() -> None:
    at = leanconv.regular_map((5, 4), (3, 1), stride=(2, 1), padding=((1, 0), (0, 2)), dilation=(1, 1))
    assert at.shape == (2, 6, 3, 1, 2) and at.dtype == np.float32
    assert at[1, 5, 2, 0].tolist() == [2 * 1 - 1 + 2, 5]
    for arguments in ({"kernel": 7}, {"kernel": 0}, {"kernel": 3, "stride": -1}):
        with pytest.raises(ArgumentValueError):
            leanconv.regular_map((5, 4), **arguments)
    with pytest.raises(ArgumentTypeError):
        leanconv.regular_map((5, 4), 3, dtype="int32")


@pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize(("channels", "layout"), [(3, "NHWC"), (20, "NHWC"), (20, "NCHW")])
def test_kernels_compile_for_every_target(target: Target, interpolation: str, channels: int, layout: str) -> None:
    """Without calls into any library, but for the multiply-add that the portable target lacks."""
    p = make_problem(
        2, to_user((1, channels, 9, 9), layout), (16, channels, 3, 3), dtype="float32", padding=1, layout=layout
    )
    for map_dtype in ("float32", "float64"):
        algorithm = Mapped((9, 9), (8,) * 5, map_dtype, interpolation, ("zeros", "circular"))
        (phase,) = algorithm.lower(p, Host(target, 32 << 10, 512 << 10, 8 << 20), 1, None, {}).phases
        module = Module()
        phase.spec.emit(module, "kernel")
        instructions, labels = parse(jit.compile_assembly(module.text(), target))
        assert "kernel" in labels
        calls = {i.operands.removesuffix("@PLT") for i in instructions if i.operation in ("call", "callq", "bl")}
        assert not calls
