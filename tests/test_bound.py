"""What a bound plan remembers, arrays that lie otherwise than planned, and arrays of other libraries."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import leanconv
from guard import GuardedAllocator
from leanconv.algorithms import REGISTRY
from leanconv.errors import ArgumentError, ArgumentTypeError
from leanconv.memory import Block
from strategies import READ_VIEWS, WRITE_VIEWS, Case, Geometry, applies, check_untouched, convolve, is_blas, spread

EACH = pytest.mark.parametrize("name", [algorithm.name for algorithm in REGISTRY])
WINDOW = Geometry((3, 2), (1, 2), (1, 1), ((1, 1), (0, 1)))
SAME = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)))
SINGLE = Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)))


def case_for(name: str, layout: str | None = None, epilogue: dict[str, Any] | None = None) -> Case:
    """The first of some geometries and groups, and of the layouts unless one is named, that an algorithm accepts."""
    plain = [(geometry, 17, 1) for geometry in (WINDOW, SAME, SINGLE)]
    for geometry, filters, groups in (*plain, (WINDOW, 18, 6), (WINDOW, 18, 2)):
        for order in ("NCHW", "NHWC") if layout is None else (layout,):
            w_shape = (filters, 6 // groups, *geometry.kernel)
            rest = epilogue or {"bias": True}
            case = Case((2, 6, 8, 9), w_shape, geometry, groups, layout=order, epilogue=rest)
            if applies(name, case.problem):
                return case
    pytest.skip(f"{name} refuses {layout}")


# -- weights -----------------------------------------------------------------------------------------------------


@EACH
def test_a_bound_plan_keeps_its_weights(name: str) -> None:
    case = case_for(name)
    x, w, b = (case.values[key].copy() for key in ("x", "w", "bias"))
    bound = case.plan(name).bind(w, b)
    w[...], b[...] = np.nan, np.nan
    case.check(bound(x), name)
    del w, b
    for _ in range(50):
        np.empty((17, 6, 3, 2), np.float32)[...] = np.nan  # whatever memory was freed
    case.check(bound(x), name)
    view = spread(x, "gaps", "right", 3)
    case.check(bound(view), name)


@EACH
def test_an_unbound_call_sees_changed_weights(name: str) -> None:
    case = case_for(name)
    values = {key: value.copy() for key, value in case.values.items()}
    first = convolve(case, values, algorithm=name)
    case.check(first, name)
    values["w"] *= 2
    values["bias"] *= 2
    np.testing.assert_array_equal(convolve(case, values, algorithm=name), 2 * first)


@EACH
@pytest.mark.parametrize("view", READ_VIEWS)
def test_weights_in_any_memory_order(name: str, view: str) -> None:
    case = case_for(name)
    x, w, b = (case.values[key] for key in ("x", "w", "bias"))
    shift = spread(np.stack([b, b * np.nan], axis=1), "dense", "right", 0)[:, 0]
    for seed in range(4):
        turned = spread(w, view, "left", seed)
        with GuardedAllocator():
            case.check(case.plan(name, 2).bind(turned, shift)(x), name)
            case.check(convolve(case, {"x": x, "w": turned, "bias": shift}, algorithm=name), name)


# -- strides other than planned ----------------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_bound_plan_takes_other_strides(name: str, layout: str, order: str) -> None:
    case = case_for(name, layout, {"residual": True, "residual_order": order, "activation": "relu"})
    values = case.values
    bound = case.plan(name, 2).bind(values["w"])
    first = bound(values["x"], residual=values["residual"])
    case.check(first, name)
    seed = 0
    for x_view in ("dense", "gaps", "permuted", "negative"):
        for out_view in WRITE_VIEWS:
            for r_view in ("dense", "gaps", "permuted", "negative"):
                seed += 1
                x, residual = (
                    spread(values["x"], x_view, "left", seed),
                    spread(values["residual"], r_view, "right", seed),
                )
                out = spread(np.full_like(first, np.nan), out_view, "right", seed, writable=True)
                assert bound(x, out=out, residual=residual) is out
                case.check(out, name)
                assert is_blas(name) or out.tobytes() == first.tobytes()
                check_untouched(out)
    np.testing.assert_array_equal(bound(values["x"], residual=values["residual"]), first)


def test_broadcast_images_and_residuals() -> None:
    case = case_for("direct", "NHWC", {"residual": True})
    rng = np.random.default_rng(1)
    shape = case.problem.out_shape
    for axis in range(4):
        x = rng.standard_normal([1 if i == axis else n for i, n in enumerate(case.user_x_shape)]).astype("f4")
        r = rng.standard_normal([1 if i == axis else n for i, n in enumerate(shape)]).astype("f4")
        wide = {"x": np.broadcast_to(x, case.user_x_shape), "residual": np.broadcast_to(r, shape)}
        dense = {key: value.copy() for key, value in wide.items()}
        bound = case.plan("direct").bind(case.values["w"])
        np.testing.assert_array_equal(bound(**wide), bound(**dense))
        np.testing.assert_array_equal(convolve(case, {**wide, "w": case.values["w"]}), bound(**dense))


def test_many_kinds_of_strides_stay_bounded() -> None:
    case = case_for("direct")
    x, bound = case.values["x"], case.plan("direct").bind(case.values["w"], case.values["bias"])
    for seed in range(60):
        case.check(bound(spread(x, "gaps", "right", seed)))
    assert len(bound._siblings) <= 16


# -- other libraries ---------------------------------------------------------------------------------------------


class Foreign:
    """An array of a library that offers DLPack and nothing else of NumPy's."""

    def __init__(self, array: Any, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = np.asarray(array), device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __array_namespace__(self) -> Any:
        class Namespace:
            @staticmethod
            def from_dlpack(array: Any) -> Foreign:
                return Foreign(array)

        return Namespace


def test_foreign_arrays_in_and_out() -> None:
    case = case_for("direct", epilogue={"bias": True, "residual": True})
    wrapped = {key: Foreign(value.copy()) for key, value in case.values.items()}
    result = convolve(case, wrapped)
    assert type(result) is Foreign
    case.check(result.array)
    out = Foreign(np.empty(case.problem.out_shape, np.float32))
    assert convolve(case, wrapped, out=out) is out
    case.check(out.array)

    bound = case.plan("direct").bind(wrapped["w"], wrapped["bias"])
    result = bound(wrapped["x"], residual=wrapped["residual"])
    assert type(result) is Foreign
    case.check(result.array)
    out.array[...] = np.nan
    assert bound(case.values["x"], out=out, residual=wrapped["residual"]) is out
    case.check(out.array)

    strided = Foreign(spread(case.values["x"], "gaps", "right", 5, writable=True))
    case.check(convolve(case, {**case.values, "x": strided}).array)


def test_foreign_arrays_that_cannot_be_read() -> None:
    case = case_for("direct")
    values = case.values
    bound = case.plan("direct").bind(values["w"], values["bias"])
    for bad in (
        Foreign(values["x"], (2, 0)),  # a GPU
        Foreign(values["x"].astype(np.float16)),
        Foreign(values["x"].astype(np.int32)),
        values["x"].astype(">f4"),
        values["x"].tolist(),
        memoryview(values["x"]),
        None,
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            convolve(case, {**values, "x": bad})
        assert caught.value.argument == "x"
        with pytest.raises(ArgumentError):
            bound(bad)
    raw = np.empty(values["x"].nbytes + 1, np.uint8)
    crooked = raw[1:].view(np.float32).reshape(values["x"].shape)
    for call in (bound, lambda x: convolve(case, {**values, "x": x})):
        with pytest.raises(ArgumentError, match="multiples of their size"):
            call(crooked)
    room = np.empty(4 * np.prod(case.problem.out_shape) + 1, np.uint8)
    with pytest.raises(ArgumentError, match="multiples of their size"):
        bound(values["x"], out=room[1:].view(np.float32).reshape(case.problem.out_shape))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    case = case_for("direct")
    tensors = {key: torch.from_numpy(value.copy()) for key, value in case.values.items()}
    result = convolve(case, tensors)
    assert isinstance(result, torch.Tensor)
    case.check(result.numpy())
    last = tensors["x"].to(memory_format=torch.channels_last)
    case.check(convolve(case, {**tensors, "x": last}).numpy())
    options = {"stride": case.geometry.stride, "padding": [1, 0]}
    image = torch.nn.functional.pad(tensors["x"], (0, 1, 0, 0))
    theirs = torch.nn.functional.conv2d(image, tensors["w"], tensors["bias"], **options)
    case.check(theirs.numpy())
    bound = case.plan("direct").bind(tensors["w"], tensors["bias"])
    out = torch.empty(case.problem.out_shape)
    assert bound(tensors["x"], out=out) is out
    case.check(out.numpy())
    needs = tensors["w"].clone().requires_grad_()
    with pytest.raises(ArgumentTypeError, match="detach"):
        convolve(case, {**tensors, "w": needs})


def test_subclasses_of_ndarray() -> None:
    class Tagged(np.ndarray[Any, Any]):
        pass

    case = case_for("direct")
    tagged = {key: value.view(Tagged) for key, value in case.values.items()}
    case.check(np.asarray(convolve(case, tagged)))
    out = np.empty(case.problem.out_shape, np.float32).view(Tagged)
    assert convolve(case, tagged, out=out) is out
    case.check(np.asarray(out))
    masked = np.ma.masked_array(case.values["x"])
    with pytest.raises(ArgumentTypeError, match="masked"):
        convolve(case, {**case.values, "x": masked})


# -- copies ------------------------------------------------------------------------------------------------

COPIES = {"pickle": lambda found: pickle.loads(pickle.dumps(found)), "copy": copy.copy, "deepcopy": copy.deepcopy}


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("name", ["direct", "im2col", "indirect", "reference", "winograd_f4", "fft"])
def test_copies_own_their_memory(name: str, how: str) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in ((2, 5, 9, 11), (6, 5, 3, 3)))
    plan = leanconv.plan(x.shape, w.shape, algorithm=name, memory_limit="8MiB", padding=1)
    bound = plan.bind(w)
    want = bound(x)
    for found in (COPIES[how](plan).bind(w), COPIES[how](bound)):
        assert repr(found) == repr(bound)
        np.testing.assert_array_equal(found(x), want)
        np.testing.assert_array_equal(found(x[:, :, ::-1]), bound(x[:, :, ::-1]))
        del found
    np.testing.assert_array_equal(bound(x), want)
    block, copied = bound.packed_block, COPIES[how](bound).packed_block
    if how != "copy" and isinstance(block, Block) and isinstance(copied, Block):
        assert copied.address != block.address
        assert bytes(copied.array("u1", (copied.nbytes,))) == bytes(block.array("u1", (block.nbytes,)))


def test_packed_weights_are_not_read_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = pickle.dumps(leanconv.plan((1, 8, 6, 6), (4, 8, 3, 3)).bind(np.ones((4, 8, 3, 3), np.float32)))
    monkeypatch.setattr(leanconv, "__version__", "9.9")
    with pytest.raises(leanconv.LeanconvError, match=r"packed by leanconv 0.* this is 9\.9 on .* bind them here"):
        pickle.loads(sent)
