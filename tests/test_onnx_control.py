"""If, Loop and Scan: conditions that are known, given and computed; loops written out; what is wrong with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import leanconv.onnx
from leanconv.errors import LeanconvError, ModelError, UnsupportedModelError
from leanconv.network.graph import ValueType

node = helper.make_node
info = helper.make_tensor_value_info
FLOAT, INT, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> Any:
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_graph(nodes, "g", inputs, outputs, tensors)


def model(*parts: Any, **constants: Any) -> Any:
    found = graph(*parts, **constants)
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def any_float(name: str) -> Any:
    return info(name, FLOAT, None)


def same_as_reference(proto: Any, **inputs: Any) -> leanconv.onnx.Session:
    session = leanconv.onnx.load(proto, threads=2)
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    wanted = ReferenceEvaluator(proto).run(None, arrays)
    for (name, got), array in zip(session.run(arrays).items(), wanted, strict=True):
        np.testing.assert_allclose(got, array, rtol=1e-5, atol=1e-6, err_msg=name)
        assert got.dtype == array.dtype
    return session


def branches(then: list[Any], orelse: list[Any], **constants: Any) -> dict[str, Any]:
    return {
        "then_branch": graph(then, [], [any_float("r")], **constants),
        "else_branch": graph(orelse, [], [any_float("r")], **constants),
    }


X = np.random.default_rng(0).standard_normal((1, 4, 6, 5)).astype("f4")


@pytest.mark.parametrize("last", [1, 5])
def test_a_squeeze_as_exporters_write_it(last: int) -> None:
    """The condition depends on shapes only, so one branch takes the place of the node, and the run is native."""
    nodes = [
        node("Shape", ["x"], ["s"], start=3),
        node("Equal", ["s", "one"], ["c"]),
        node("Relu", ["x"], ["h"]),
        node(
            "If", ["c"], ["y"], **branches([node("Squeeze", ["h", "three"], ["r"])], [node("Identity", ["h"], ["r"])])
        ),
    ]
    proto = model(nodes, [info("x", FLOAT, [1, 4, 6, None])], [any_float("y")], one=np.array([1]), three=np.array([3]))
    session = same_as_reference(proto, x=X[..., :last].copy())
    assert session.prepare({"x": (1, 4, 6, last)}).native_calls == 1


def test_a_condition_that_is_computed() -> None:
    """Both branches run, and one result is chosen; weights of a branch are its own."""
    w = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype("f4")
    parts = branches(
        [node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), node("Relu", ["c"], ["r"])],
        [node("Neg", ["x"], ["r"])],
        w=w,
    )
    nodes = [
        node("ReduceMean", ["x"], ["m"], keepdims=0),
        node("Greater", ["m", "zero"], ["c"]),
        node("If", ["c"], ["y"], **parts),
    ]
    proto = model(nodes, [info("x", FLOAT, [1, 4, 6, 5])], [any_float("y")], zero=np.float32(0))
    session = same_as_reference(proto, x=np.abs(X))
    network = session.prepare()
    for x in (X + 3, X - 3):
        wanted = ReferenceEvaluator(proto).run(None, {"x": x})[0]
        np.testing.assert_allclose(session.run({"x": x})["y"], wanted, rtol=1e-5, atol=1e-5)
    assert session.prepare() is network


def test_a_condition_of_which_shapes_depend() -> None:
    nodes = [node("If", ["flag"], ["y"], **branches([node("Flatten", ["x"], ["r"])], [node("Neg", ["x"], ["r"])]))]
    proto = model(nodes, [info("x", FLOAT, [1, 4, 6, 5]), info("flag", BOOL, [1])], [any_float("y")])
    for flag in (True, False):
        session = same_as_reference(proto, x=X, flag=np.array([flag]))
        assert session.shape_inputs == {"flag"}


def test_branches_within_branches() -> None:
    inner = node("If", ["b"], ["r"], **branches([node("Add", ["h", "w"], ["r"])], [node("Sub", ["h", "w"], ["r"])]))
    outer = branches([node("Relu", ["x"], ["h"]), inner], [node("Neg", ["x"], ["h"]), inner], w=np.float32(2))
    proto = model(
        [node("If", ["a"], ["y"], **outer)],
        [info("x", FLOAT, [1, 4, 6, 5]), info("a", BOOL, []), info("b", BOOL, [])],
        [any_float("y")],
    )
    for a in (True, False):
        for b in (True, False):
            same_as_reference(proto, x=X, a=np.array(a), b=np.array(b))


def loop(nodes: list[Any], outputs: list[str], **constants: Any) -> Any:
    inputs = [info("i", INT, []), info("going", BOOL, []), any_float("v")]
    return graph(nodes, inputs, [info("again", BOOL, []), *map(any_float, outputs)], **constants)


TURN = [
    node("Identity", ["going"], ["again"]),
    node("Mul", ["v", "half"], ["w"]),
    node("ReduceSum", ["w"], ["s"], keepdims=1),
]


@pytest.mark.parametrize("given", [True, False])
def test_a_loop_of_so_many_turns(given: bool) -> None:
    body = loop(TURN, ["w", "s"], half=np.float32(0.5))
    nodes = [node("Relu", ["x"], ["h"]), node("Loop", ["n", "", "h"], ["y", "sums"], body=body)]
    inputs, outputs = [info("x", FLOAT, [1, 4, 6, 5])], [any_float("y"), any_float("sums")]
    arrays = {"x": X}
    if given:
        arrays["n"] = np.array(3)
        session = leanconv.onnx.load(model(nodes, [*inputs, info("n", INT, [])], outputs))
    else:
        session = leanconv.onnx.load(model(nodes, inputs, outputs, n=np.array(3)))
        assert session.prepare().native_calls == 1
    found, h = session.run(arrays), np.maximum(X, 0)
    np.testing.assert_allclose(found["y"], h / 8, rtol=1e-6)
    # Along a new axis, of one entry for each turn.
    wanted = np.array([h.sum() / 2, h.sum() / 4, h.sum() / 8]).reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(found["sums"], wanted, rtol=1e-5)


def test_a_loop_that_ends_itself() -> None:
    body = loop([node("Less", ["i", "two"], ["again"]), node("Add", ["v", "x"], ["w"])], ["w"], two=np.array(2))
    nodes = [node("Loop", ["", "yes", "x"], ["y"], body=body)]
    same_as_reference(model(nodes, [info("x", FLOAT, [1, 4, 6, 5])], [any_float("y")], yes=np.array(True)), x=X)


def test_a_scan_both_ways() -> None:
    body = graph(
        [node("Add", ["state", "slice"], ["next"]), node("Mul", ["next", "x0"], ["made"])],
        [any_float("state"), any_float("slice")],
        [any_float("next"), any_float("made")],
    )
    for back in (0, 1):
        scan = node(
            "Scan",
            ["s", "x"],
            ["end", "y"],
            body=body,
            num_scan_inputs=1,
            scan_input_axes=[2],
            scan_input_directions=[back],
            scan_output_axes=[1],
            scan_output_directions=[1 - back],
        )
        proto = model(
            [scan], [info("x", FLOAT, [1, 4, 6, 5])], [any_float("end"), any_float("y")], s=X[:, :, 0], x0=X[:, :, 1]
        )
        session = leanconv.onnx.load(proto)
        found, state, made = session.run({"x": X}), X[:, :, 0], []
        for at in range(6):
            state = state + X[:, :, 5 - at if back else at]
            made.append(state * X[:, :, 1])
        np.testing.assert_allclose(found["end"], state, rtol=1e-5, atol=1e-5)
        wanted = np.stack(made if back else made[::-1], 1)
        np.testing.assert_allclose(found["y"], wanted, rtol=1e-5, atol=1e-5)


def test_what_is_wrong_with_them() -> None:
    x = info("x", FLOAT, [1, 4, 6, 5])
    endless = loop([node("Identity", ["going"], ["again"]), node("Neg", ["v"], ["w"])], ["w"])
    growing = loop(
        [
            node("ReduceSum", ["v"], ["s"], keepdims=0),
            node("Less", ["s", "zero"], ["again"]),
            node("Neg", ["v"], ["w"]),
        ],
        ["w"],
        zero=np.float32(0),
    )
    never = loop(TURN, ["w", "s"], half=np.float32(1))
    cases = {
        "more than": model([node("Loop", ["", "", "x"], ["y"], body=endless)], [x], [any_float("y")]),
        "whether it goes on": model([node("Loop", ["", "", "x"], ["y"], body=growing)], [x], [any_float("y")]),
        "never runs": model(
            [node("Loop", ["n", "", "x"], ["y", "s"], body=never)], [x], [any_float("s")], n=np.array(0)
        ),
        "not those of its graph": model([node("Loop", ["", ""], ["y"], body=endless)], [x], [any_float("y")]),
        "does not exist": model(
            [node("If", ["c"], ["y"], **branches([node("Neg", ["nobody"], ["r"])], [node("Neg", ["x"], ["r"])]))],
            [x],
            [any_float("y")],
            c=np.array(True),
        ),
    }
    for complaint, proto in cases.items():
        with pytest.raises(ModelError, match=complaint):
            session = leanconv.onnx.load(proto)
            session.graph({"x": ValueType(X.shape, "float32")})
            session.run({"x": X})
    lacking = model([node("If", ["c"], ["y"])], [x], [any_float("y")], c=np.array(True))
    with pytest.raises(LeanconvError, match="must be graphs"):
        leanconv.onnx.load(lacking)
    unknown = branches([node("Multinomial", ["x"], ["r"])], [node("Neg", ["x"], ["r"])])
    with pytest.raises(UnsupportedModelError, match="Multinomial"):
        leanconv.onnx.load(model([node("If", ["c"], ["y"], **unknown)], [x], [any_float("y")], c=np.array(False)))
