"""From ONNX's messages to a `Model`; everything about them is checked here."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from leanconv.arrays import Array
from leanconv.errors import ArgumentTypeError, LeanconvError, ModelError, UnsupportedModelError
from leanconv.network.constants import Constants
from leanconv.network.graph import Node
from leanconv.network.operators import operator
from leanconv.network.operators.creation import ELEMENT_TYPES, constant_value
from leanconv.onnx.constants import Stamp, Stored
from leanconv.onnx.model import BODIES, Model, Port, check_memory
from leanconv.onnx.package import onnx_package
from leanconv.onnx.subgraphs import Body, bodies, check_node
from leanconv.onnx.tensors import Place, array_of, constant_of, element_type
from leanconv.onnx.wire import Slim

_DOMAINS = ("", "ai.onnx")
# What a message that is well-formed and makes no sense may cause.
_FAILURES = (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, OSError, MemoryError)
_FLOAT, _INT, _STRING, _TENSOR, _GRAPH, _FLOATS, _INTS, _STRINGS = range(1, 9)


def parsed(source: Any, folder: Path | None) -> Model:
    """The model in bytes or a ModelProto; see `source.read`."""
    onnx = onnx_package()
    if isinstance(source, bytes | bytearray | memoryview):
        proto = _parse(onnx, bytes(source), "the model")
    elif isinstance(source, onnx.ModelProto):
        proto = source
    else:
        raise ArgumentTypeError("source", source, "must be a path, bytes or an onnx.ModelProto")
    return _converted(onnx, proto, folder, {})


def parsed_file(found: Slim, path: Path, stamp: Stamp, folder: Path) -> Model:
    """The model in a file, of which all but large tensors was read; those stay there."""
    onnx = onnx_package()
    proto = _parse(onnx, found.data, str(path))
    places = {number: Place(path, *span, stamp) for number, span in found.lifted.items()}
    return _converted(onnx, proto, folder, places)


def _converted(onnx: Any, proto: Any, folder: Path | None, places: dict[int, Place]) -> Model:
    try:
        return _convert(onnx, proto, folder, places)
    except LeanconvError:
        raise
    except _FAILURES as error:
        raise ModelError(f"the model is damaged: {type(error).__name__}: {error}") from error


def _parse(onnx: Any, data: bytes, what: str) -> Any:
    from google.protobuf.message import DecodeError

    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelError(f"{what} is no ONNX model, or is damaged: {error}") from error
    return proto


def _convert(onnx: Any, proto: Any, folder: Path | None, places: dict[int, Place]) -> Model:
    version = _version(proto)
    if proto.functions:
        try:
            proto = onnx.inliner.inline_local_functions(proto)
        except Exception as error:  # a C++ exception of any kind
            raise ModelError(f"the model's functions cannot be expanded: {error}") from error
    graph = proto.graph
    if not graph.node and not graph.output:
        raise ModelError("the model has no graph")
    reasons: list[str] = []
    constants = _constants(graph, folder, places, reasons)
    check_memory(constants)
    inputs = _ports(graph.input, "input", constants, reasons)
    outputs = _ports(graph.output, "output", {}, reasons)
    nodes = _nodes(onnx, proto, graph, version, folder, reasons)
    if not reasons:
        nodes, constants = _without_constants(nodes, inputs, constants)
    if reasons:
        raise UnsupportedModelError(list(dict.fromkeys(reasons)))
    _check_order(nodes, {*inputs, *constants}, outputs)
    return Model(graph.name, version, nodes, inputs, outputs, constants)


def _version(proto: Any) -> int:
    versions = {opset.domain: int(opset.version) for opset in proto.opset_import}
    for domain in _DOMAINS:
        if domain in versions:
            if versions[domain] < 1:
                raise ModelError(f"version {versions[domain]} of the operator set does not exist")
            return versions[domain]
    if any(node.domain in _DOMAINS for node in proto.graph.node):
        raise ModelError("the model does not say which version of ONNX's operator set it needs")
    return 1  # it has operators of others only, which are reported each


def text(value: Any) -> str:
    """A text of a message; those that are no UTF-8 come as bytes.

    Raises:
        ModelError: it is no UTF-8.
    """
    if not isinstance(value, str):
        raise ModelError(f"the model is damaged: {value!r:.60} is no text")
    return value


def _constants(graph: Any, folder: Path | None, places: dict[int, Place], reasons: list[str]) -> Constants:
    found: dict[str, Array | Stored] = {}
    for number, tensor in enumerate(graph.initializer):
        text(tensor.name)
        if not tensor.name or tensor.name in found:
            raise ModelError(f"two initialisers are named {tensor.name!r}, or one has no name")
        if element_type(tensor) is None:
            reasons.append(f"initialiser {tensor.name!r}: its element type {tensor.data_type} is not supported")
            continue
        found[tensor.name] = constant_of(tensor, folder, places.get(number))
    for sparse in graph.sparse_initializer:
        reasons.append(f"initialiser {sparse.values.name!r}: sparse tensors are not supported")
    return Constants(found)


def _ports(
    infos: Any, what: str, constants: Collection[str], reasons: list[str], *, typed: bool = True
) -> dict[str, Port]:
    found: dict[str, Port] = {}
    for info in infos:
        if text(info.name) in constants:
            continue  # a weight that older models list among the inputs
        if not info.name or info.name in found:
            raise ModelError(f"two {what}s are named {info.name!r}, or one has no name")
        tensor = info.type.tensor_type
        if info.type.WhichOneof("value") not in ("tensor_type", None) or (
            tensor.elem_type and tensor.elem_type not in ELEMENT_TYPES
        ):
            kind = info.type.WhichOneof("value")
            kind = f"element type {tensor.elem_type}" if kind == "tensor_type" else kind
            reasons.append(f"{what} {info.name!r}: {kind} is not supported")
            continue
        dtype = ELEMENT_TYPES.get(tensor.elem_type)
        if what == "input" and typed and dtype is None:
            raise ModelError(f"input {info.name!r} has no element type")
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(_extent(info.name, extent) for extent in tensor.shape.dim)
        found[info.name] = Port(info.name, shape, dtype)
    return found


def _extent(name: str, extent: Any) -> int | str | None:
    kind = extent.WhichOneof("value")
    if kind == "dim_value":
        if extent.dim_value < 0:
            # Some exporters write -1 for a free extent.
            return None
        return int(extent.dim_value)
    # Some exporters write a question mark for every free extent, whether or not they are equal.
    name = text(extent.dim_param) if kind == "dim_param" else ""
    return None if name in ("", "?") else name


def _nodes(onnx: Any, proto: Any, graph: Any, version: int, folder: Path | None, reasons: list[str]) -> list[Node]:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = max(int(proto.ir_version), 3)
    context.opset_imports = {opset.domain: int(opset.version) for opset in proto.opset_import}
    if version > onnx.defs.onnx_opset_version():
        newest = onnx.defs.onnx_opset_version()
        rule = f"only versions up to {newest} are known to the package onnx that is installed"
        raise UnsupportedModelError([f"version {version} of the operator set: {rule}"])
    nodes: list[Node] = []
    names: set[str] = set()

    def body(inner: Any) -> Body:
        """A graph within a node."""
        constants = _constants(inner, folder, {}, reasons)
        _ports(inner.input, "input", constants, reasons, typed=False)
        inputs = tuple(text(info.name) for info in inner.input if info.name not in constants)
        outputs = tuple(text(info.name) for info in inner.output)
        return Body(_nodes(onnx, proto, inner, version, folder, reasons), inputs, outputs, constants)

    for number, raw in enumerate(graph.node):
        name = text(raw.name) if raw.name and raw.name not in names else f"{text(raw.op_type)}_{number}"
        while name in names:
            name += "_"
        names.add(name)
        ours = text(raw.domain) in _DOMAINS and "." not in text(raw.op_type)
        found = operator(raw.op_type) if ours else None
        check = check_node if ours and raw.op_type in BODIES else None if found is None else found.check
        if check is None:
            op = f"{raw.domain}.{raw.op_type}" if raw.domain not in _DOMAINS else raw.op_type
            reasons.append(f"node {name!r}: the operator {op} is not supported")
            continue
        try:
            if found is not None:  # graphs within a node are checked node by node
                onnx.checker.check_node(raw, context)
        except Exception as error:  # ValidationError, and whatever else its C++ raises
            raise ModelError(f"node {name!r} ({raw.op_type}): {' '.join(str(error).split())[:300]}") from error
        attributes = {
            text(attribute.name): value
            for attribute in raw.attribute
            if (value := _attribute(attribute, name, folder, reasons, body)) is not None
        }
        inputs, outputs = tuple(map(text, raw.input)), tuple(map(text, raw.output))
        node = Node(raw.op_type, name, inputs, outputs, attributes, version)
        reason = check(node)
        if reason is not None:
            reasons.append(f"node {name!r} ({node.op}): {reason}")
        nodes.append(node)
    return nodes


def _without_constants(
    nodes: list[Node], inputs: Collection[str], constants: Constants
) -> tuple[list[Node], Constants]:
    """Constants that are written as nodes become constants; each graph of the model would compute them again."""
    rest, found = [], {}
    for node in nodes:
        name = node.outputs[0] if node.outputs else ""
        if node.op != "Constant" or not name or name in found or name in inputs or name in constants:
            rest.append(node)  # also what computes a value twice, which is told later
            continue
        try:
            found[name] = constant_value(node)
        except ValueError as error:
            raise ModelError(f"node {node.name!r} (Constant): {error}") from error
    return rest, constants.with_more(found)


def _attribute(attribute: Any, node: str, folder: Path | None, reasons: list[str], body: Callable[[Any], Body]) -> Any:
    kind = attribute.type
    if kind == _GRAPH:
        return body(attribute.g)
    if kind == _FLOAT:
        return float(attribute.f)
    if kind == _INT:
        return int(attribute.i)
    if kind == _STRING:
        return attribute.s.decode(errors="replace")
    if kind == _FLOATS:
        return tuple(map(float, attribute.floats))
    if kind == _INTS:
        return tuple(map(int, attribute.ints))
    if kind == _STRINGS:
        return tuple(text.decode(errors="replace") for text in attribute.strings)
    if kind == _TENSOR and element_type(attribute.t) is not None:
        return array_of(attribute.t, folder)
    what = f"tensors of element type {attribute.t.data_type}" if kind == _TENSOR else f"attributes of type {kind}"
    reasons.append(f"node {node!r}: its attribute {attribute.name!r}: {what} are not supported")
    return None


def _check_order(
    nodes: list[Node], known: Collection[str], outputs: Collection[str], around: Collection[str] = ()
) -> None:
    """Check that each value is computed once, before it is read; so there are no cycles.

    `around`: values of the graphs around this one, which it may read, and name anew.
    """
    seen = set(known)
    for node in nodes:
        for name in node.inputs:
            if name and name not in seen and name not in around:
                later = any(name in other.outputs for other in nodes)
                rule = "is computed only later: the graph has a cycle, or a wrong order" if later else "does not exist"
                raise ModelError(f"node {node.name!r} ({node.op}) reads {name!r}, which {rule}")
        for body in bodies(node):
            _check_order(body.nodes, {*body.inputs, *body.constants}, body.outputs, {*seen, *around})
        for name in node.outputs:
            if name and name in seen:
                raise ModelError(f"node {node.name!r} ({node.op}) computes {name!r}, which exists already")
            seen.add(name)
    for name in outputs:
        if name not in seen and name not in around:
            raise ModelError(f"output {name!r} is computed by no node")
