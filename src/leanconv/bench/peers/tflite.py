"""A .tflite model of one layer, written with the schema that the package ai-edge-litert brings along."""

from __future__ import annotations

from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, as_image

_VERSION = 3
# Version of each operator: the lowest that has what is used here (bias, dilation, groups).
_PAD, _CONV, _DEPTHWISE = (34, 1), (3, 5), (4, 2)


def model(layer: Layer, arrays: Arrays) -> bytes:
    """Return the model; a signal is an image of one row.

    Padding that the format's two schemes cannot say is an operator of its own, which XNNPACK merges into the
    convolution.
    """
    size, kernel, stride, low, high, dilation = as_image(layer)
    depthwise = 1 < layer.groups == layer.in_channels == layer.out_channels
    writer = _Writer()
    image = writer.tensor("x", (layer.batch, *size, layer.in_channels))
    source = image
    scheme = _scheme(size, kernel, stride, low, high, dilation)
    if scheme is None:
        ends = np.array([(0, 0), *zip(low, high, strict=True), (0, 0)], np.int32)
        padded = tuple(n + a + b for n, a, b in zip(size, low, high, strict=True))
        source = writer.tensor("padded", (layer.batch, *padded, layer.in_channels))
        writer.operator(_PAD, [image, writer.constant("ends", ends)], source, None, None)
    w = arrays.w.reshape(arrays.w.shape[:2] + kernel)
    # Depthwise weights are (1, R, S, K), others (K, R, S, C/g).
    w = np.moveaxis(w, 1, -1) if not depthwise else np.moveaxis(w[:, 0], 0, -1)[None]
    inputs = [source, writer.constant("w", w), writer.constant("b", arrays.bias)]
    out = writer.tensor("y", layer.problem("NHWC").out_shape if layer.ndim == 2 else _row(layer))
    options = schema.DepthwiseConv2DOptionsT() if depthwise else schema.Conv2DOptionsT()
    options.padding = schema.Padding.VALID if scheme is None else scheme
    options.strideH, options.strideW = stride
    options.dilationHFactor, options.dilationWFactor = dilation
    if depthwise:
        options.depthMultiplier = 1
    kind = schema.BuiltinOptions.DepthwiseConv2DOptions if depthwise else schema.BuiltinOptions.Conv2DOptions
    writer.operator(_DEPTHWISE if depthwise else _CONV, inputs, out, kind, options)
    return writer.finish(image, out)


def _row(layer: Layer) -> tuple[int, ...]:
    n, q, k = layer.problem("NHWC").out_shape
    return n, 1, q, k


def _scheme(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    low: tuple[int, int],
    high: tuple[int, int],
    dilation: tuple[int, int],
) -> Any:
    """Return the padding scheme that means these numbers, or None."""
    if not any(low + high):
        return schema.Padding.VALID
    for n, k, s, a, b, d in zip(size, kernel, stride, low, high, dilation, strict=True):
        total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
        if (a, b) != (total // 2, total - total // 2):
            return None
    return schema.Padding.SAME


class _Writer:
    """Collects tensors and operators of a model."""

    def __init__(self) -> None:
        self._graph = schema.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model = schema.ModelT()
        self._model.version = _VERSION
        self._model.buffers, self._model.operatorCodes = [schema.BufferT()], []

    def tensor(self, name: str, shape: tuple[int, ...], kind: int = schema.TensorType.FLOAT32, buffer: int = 0) -> int:
        """Add a tensor and return its number; buffer 0 is no constant."""
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, list(shape), kind, buffer
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def constant(self, name: str, array: NDArray[Any]) -> int:
        """Add a constant tensor of float32 or int32 and return its number."""
        buffer = schema.BufferT()
        buffer.data = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
        self._model.buffers.append(buffer)
        kind = schema.TensorType.INT32 if array.dtype == np.int32 else schema.TensorType.FLOAT32
        return self.tensor(name, array.shape, kind, len(self._model.buffers) - 1)

    def operator(self, what: tuple[int, int], inputs: list[int], output: int, kind: Any, options: Any) -> None:
        """Add an operator, (code, version)."""
        code = schema.OperatorCodeT()
        code.builtinCode = code.deprecatedBuiltinCode = what[0]
        code.version = what[1]
        self._model.operatorCodes.append(code)
        operator = schema.OperatorT()
        operator.opcodeIndex = len(self._model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, [output]
        if options is not None:
            operator.builtinOptionsType, operator.builtinOptions = kind, options
        self._graph.operators.append(operator)

    def finish(self, source: int, target: int) -> bytes:
        """Return the file's bytes."""
        self._graph.inputs, self._graph.outputs = [source], [target]
        self._model.subgraphs = [self._graph]
        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
