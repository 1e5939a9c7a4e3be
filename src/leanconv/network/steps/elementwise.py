"""Element-wise operators, alone and in chains (`leanconv.Pointwise`): one formula, one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.kernels.net_expression import Formula, Step
from leanconv.network.graph import Node, ValueType
from leanconv.network.operators.pointwise import chain
from leanconv.network.places import Place
from leanconv.network.steps.base import FLOATS, Arrays, Built, Call, Lowerer, Memory, Option, Registry, Setting, Types
from leanconv.network.steps.maps import map_phase
from leanconv.planning.model import phases_seconds

_BINARY = {"Add": "add", "Sub": "sub", "Mul": "mul", "Div": "div"}
_MANY = {"Sum": "add", "Max": "max", "Min": "min", "Mean": "add"}
_UNARY = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Softplus": "softplus",
    "HardSwish": "hardswish",
    "Exp": "exp",
    "Log": "log",
    "Sqrt": "sqrt",
    "Neg": "neg",
    "Abs": "abs",
    "Reciprocal": "reciprocal",
    "Floor": "floor",
    "Ceil": "ceil",
    "Round": "round",
    "Erf": "erf",
    "Sign": "sign",
}
_NUMBERS = {
    "LeakyRelu": ("leaky_relu", (("alpha", 0.01),)),
    "HardSigmoid": ("hard_sigmoid", (("alpha", 0.2), ("beta", 0.5))),
    "Elu": ("elu", (("alpha", 1.0),)),
    "ThresholdedRelu": ("thresholded_relu", (("alpha", 1.0),)),
    "Shrink": ("shrink", (("lambd", 0.5), ("bias", 0.0))),
    "Selu": ("selu", (("alpha", 1.67326319217681884765625), ("gamma", 1.05070102214813232421875))),
}
OPERATORS = (*_BINARY, *_MANY, *_UNARY, *_NUMBERS, "Clip", "PRelu", "Pow", "Gelu", "Swish", "Mish", "Softsign", "Celu")


class UnknownFormulaError(Exception):
    """There is no formula for a node; says why."""


@dataclass(slots=True)
class _Writer:
    """Collects the steps of a formula.  Values are numbered: operands first, then steps."""

    types: Types
    constants: Arrays
    operands: list[int] = field(default_factory=list)  # which inputs of the node they are
    steps: list[Step] = field(default_factory=list)

    def number(self, position: int) -> float | None:
        """An input's value if it is a single number known beforehand."""
        value = self.constants[position]
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def input(self, position: int) -> int:
        """The value of an input: -1 - k for the k-th operand until all are known, so that steps can be counted."""
        found = self.number(position)
        if found is not None:
            return self.const(found)
        if position not in self.operands:
            self.operands.append(position)
        return -1 - self.operands.index(position)

    def const(self, number: float) -> int:
        """A number."""
        return self.add("const", (), (number,))

    def add(self, op: str, args: Sequence[int], numbers: Sequence[float] = ()) -> int:
        """One more step; the place of its result."""
        self.steps.append(Step(op, tuple(args), tuple(float(n) for n in numbers)))
        return len(self.steps) - 1

    def formula(self, result: int) -> Formula:
        """The formula, its last step being the result."""
        count = len(self.operands)
        if result >= 0:
            assert result == len(self.steps) - 1, "the result must be the last step"
        steps = tuple(Step(s.op, tuple(-1 - a if a < 0 else count + a for a in s.args), s.numbers) for s in self.steps)
        return Formula(count, steps)


def _translate(writer: _Writer, node: Node, args: Sequence[int | None], numbers: Sequence[float | None]) -> int:
    """The result of one operator on values that are known by their places; `numbers` are those that are constant."""
    op, attributes = node.op, node.attributes
    if node.version < 7 and "axis" in attributes:
        raise UnknownFormulaError("operands are aligned at an axis, as before version 7")
    x = args[0]
    assert x is not None
    if op in _BINARY:
        y = args[1]
        assert y is not None
        return writer.add(_BINARY[op], (x, y))
    if op in _MANY:
        for other in args[1:]:
            assert other is not None
            x = writer.add(_MANY[op], (x, other))
        return writer.add("mul", (x, writer.const(1.0 / len(args)))) if op == "Mean" else x
    if op in _UNARY:
        return writer.add(_UNARY[op], (x,))
    if op in _NUMBERS:
        name, wanted = _NUMBERS[op]
        return writer.add(name, (x,), [float(attributes.get(key, default)) for key, default in wanted])
    if op == "Clip":
        return _clip(writer, node, args, numbers)
    if op == "PRelu":
        slope = args[1]
        assert slope is not None
        if node.version < 7:
            raise UnknownFormulaError("slopes are aligned as before version 7")
        return writer.add("prelu", (x, slope))
    if op == "Pow":
        exponent = numbers[1]
        if exponent is None or exponent * 4 != int(exponent * 4) or abs(exponent) > 8:
            raise UnknownFormulaError("the exponent is not a constant multiple of 1/4")
        return writer.add("power", (x,), (exponent,))
    if op == "Gelu":
        if attributes.get("approximate") in ("tanh", b"tanh"):
            return _tanh_gelu(writer, x)
        return writer.add("gelu", (x,))
    if op == "Swish":
        alpha = float(attributes.get("alpha", 1.0))
        if alpha == 1.0:
            return writer.add("silu", (x,))
        return writer.add("mul", (x, writer.add("sigmoid", (writer.add("mul", (x, writer.const(alpha))),))))
    if op == "Celu":
        alpha = float(attributes.get("alpha", 1.0))
        if alpha <= 0:
            raise UnknownFormulaError("alpha not above 0")
        below = writer.add("elu", (writer.add("mul", (x, writer.const(1.0 / alpha))),), (1.0,))
        return writer.add("mul", (below, writer.const(alpha)))
    if op == "Mish":
        return writer.add("mul", (x, writer.add("tanh", (writer.add("softplus", (x,)),))))
    if op == "Softsign":
        return writer.add("div", (x, writer.add("add", (writer.add("abs", (x,)), writer.const(1.0)))))
    raise UnknownFormulaError(f"no formula for {op}")


def _tanh_gelu(writer: _Writer, x: int) -> int:
    """Half of x, times 1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))."""
    cube = writer.add("mul", (writer.add("power", (x,), (3.0,)), writer.const(0.044715)))
    inner = writer.add("mul", (writer.add("add", (x, cube)), writer.const(math.sqrt(2 / math.pi))))
    half = writer.add("mul", (x, writer.const(0.5)))
    return writer.add("mul", (half, writer.add("add", (writer.add("tanh", (inner,)), writer.const(1.0)))))


def _clip(writer: _Writer, node: Node, args: Sequence[int | None], numbers: Sequence[float | None]) -> int:
    x = args[0]
    assert x is not None
    low: float | None = None
    high: float | None = None
    if node.version < 11 and len(args) == 1:
        low, high = node.attributes.get("min"), node.attributes.get("max")
    else:
        for place, arg in enumerate(args[1:3], 1):
            if arg is not None and numbers[place] is None:
                raise UnknownFormulaError("a bound that is not constant")
        low = numbers[1] if len(numbers) > 1 else None
        high = numbers[2] if len(numbers) > 2 else None
    if low is not None:
        x = writer.add("max", (x, writer.const(low)))
    if high is not None:
        x = writer.add("min", (x, writer.const(high)))
    return x


def formula_of(node: Node, types: Types, constants: Arrays) -> tuple[Formula, tuple[int, ...]]:
    """What a node computes, and which of its inputs are the operands.

    Raises:
        UnknownFormulaError: there is no formula for it.
    """
    writer = _Writer(types, constants)
    count = len(types)
    if node.op != "leanconv.Pointwise":
        args = [None if types[i] is None else _argument(writer, node.op, i, i) for i in range(count)]
        numbers = [writer.number(i) if types[i] is not None else None for i in range(count)]
        return _finished(writer, _translate(writer, node, args, numbers))
    known: list[tuple[int | None, float | None]] = []
    for i in range(count):
        number = writer.number(i) if types[i] is not None else None
        known.append((None, number))
    for part, step, places in chain(node):
        if part.name == "Cast":
            raise UnknownFormulaError("a change of element type within the chain")
        args = [
            None if p < 0 else _argument(writer, step.op, i, p) if p < count else known[p][0]
            for i, p in enumerate(places)
        ]
        numbers = [None if place < 0 else known[place][1] for place in places]
        known.append((_translate(writer, step, args, numbers), None))
    result = known[-1][0]
    assert result is not None
    return _finished(writer, result)


def _argument(writer: _Writer, op: str, position: int, input_: int) -> int:
    """The place of an operand; bounds and exponents are numbers of the formula, and only count as there."""
    return 0 if op in ("Clip", "Pow") and position > 0 else writer.input(input_)


def _finished(writer: _Writer, result: int) -> tuple[Formula, tuple[int, ...]]:
    if result < 0 or result != len(writer.steps) - 1:
        # An operand itself, or a value computed before others: multiplying by one keeps it, NaN and all.
        result = writer.add("mul", (result, writer.const(1.0)))
    if not writer.operands:
        raise UnknownFormulaError("all operands are numbers")
    return writer.formula(result), tuple(writer.operands)


class Elementwise(Lowerer):
    """Element-wise operators and their chains."""

    follows: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """One floating-point type, and a formula."""
        try:
            _, operands = formula_of(node, types, constants)
        except UnknownFormulaError as error:
            return str(error)
        dtypes = {t.dtype for i in operands if (t := types[i]) is not None}
        if len(dtypes) != 1 or not dtypes <= set(FLOATS):
            return "kernels compute in one type, float32 or float64"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One pass."""
        types = tuple(None if o is None else ValueType(o.place.shape, o.place.dtype) for o in call.inputs)
        constants = tuple(None if o is None else o.constant for o in call.inputs)
        formula, which = formula_of(call.node, types, constants)
        operands = [call.given(i) for i in which]
        phase = map_phase(call.node.name, formula, operands, call.output, setting)
        roles = {f"in{k}": place for k, place in enumerate(operands)} | {"out": call.output}
        seconds = phases_seconds((phase,), setting.threads)
        return [Option("element-wise", seconds, lambda: Built((phase,), roles))]


class BatchNorm(Lowerer):
    """BatchNormalization with constant statistics: a multiply and an add for each channel."""

    follows: ClassVar[bool] = True
    in_place: ClassVar[tuple[int, ...]] = (0,)

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Constants only, and no training."""
        x = types[0]
        if x is None or x.dtype not in FLOATS or len(x.shape) < 2:
            return "kernels compute on float32 and float64 with a channel axis"
        if any(constants[i] is None for i in range(1, 5)) or node.attributes.get("training_mode", 0):
            return "statistics that are not constant"
        if any(node.outputs[1:]):
            return "statistics are outputs"
        return None

    def options(self, call: Call, setting: Setting) -> list[Option]:
        """One pass."""
        x, out = call.given(0), call.output
        scale, shift = affine(call.node.attributes, *(_constant(call, i) for i in range(1, 5)))
        item = out.item
        strides = tuple(int(axis == 1) for axis in range(len(x.shape)))
        channel = Place("", 0, (1, x.shape[1], *(1,) * (len(x.shape) - 2)), strides, out.dtype)
        phase = map_phase(call.node.name, AFFINE, [x, channel, channel], out, setting)
        roles: dict[str, Place | Memory | int] = {
            "in0": x,
            "in1": scale.astype(out.dtype),
            "in2": shift.astype(out.dtype),
            "out": out,
        }
        kept = 2 * x.shape[1] * item
        seconds = phases_seconds((phase,), setting.threads)
        return [Option("element-wise", seconds, lambda: Built((phase,), roles), (), kept)]


AFFINE = Formula(3, (Step("mul", (0, 1)), Step("add", (3, 2))))


def affine(
    attributes: Mapping[str, Any], scale: Array, shift: Array, mean: Array, variance: Array
) -> tuple[Array, Array]:
    """Factor and summand of each channel of a batch normalization, in float64."""
    root = np.sqrt(variance.astype(np.float64) + float(attributes.get("epsilon", 1e-5)))
    factor = scale.astype(np.float64) / root
    return factor, shift.astype(np.float64) - mean.astype(np.float64) * factor


def _constant(call: Call, position: int) -> Array:
    found = call.inputs[position]
    assert found is not None and found.constant is not None
    return found.constant


def register(registry: Registry) -> None:
    """Enter what this module knows."""
    registry.add(Elementwise(), *OPERATORS, "leanconv.Pointwise")
    registry.add(BatchNorm(), "BatchNormalization")
