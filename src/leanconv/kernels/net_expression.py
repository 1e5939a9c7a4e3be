"""Straight-line formulas on vectors: what a chain of element-wise operators becomes.

Values 0 to `inputs` - 1 are the operands, each step makes one more, and the last one is the result.  A formula is the
same on scalars, so that what is left behind the last whole vector gets the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import I32, I64, Function, Value, lanes_of, scalar_of, vector
from leanconv.kernels.activations import emit_activation, emit_exp
from leanconv.problem import ACTIVATIONS, Activation


@dataclass(frozen=True, slots=True)
class Step:
    """One operation on earlier values; `numbers` are its constants."""

    op: str
    args: tuple[int, ...] = ()
    numbers: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Formula:
    """A function of `inputs` operands; with no steps, the first operand itself."""

    inputs: int
    steps: tuple[Step, ...] = ()

    def emit(self, fn: Function, kind: str, operands: Sequence[Value]) -> Value:
        """The result on values of a type."""
        known = list(operands)
        for step in self.steps:
            known.append(_emit(fn, kind, step, [known[i] for i in step.args]))
        return known[-1] if self.steps else known[0]


def _emit(fn: Function, kind: str, step: Step, args: list[Value]) -> Value:
    if step.op == "const":
        return fn.const(kind, step.numbers[0])
    if step.op in BINARY:
        return BINARY[step.op](fn, *args)
    if step.op in UNARY:
        return UNARY[step.op](fn, *args)
    if step.op in ACTIVATIONS:
        return emit_activation(fn, Activation(step.op, step.numbers), *args)
    return PARAMETRIC[step.op](fn, args[0], *step.numbers)


def _plain(opcode: str) -> Callable[[Function, Value, Value], Value]:
    return lambda fn, a, b: fn.binary(opcode, a, b)


def _intrinsic(stem: str) -> Callable[..., Value]:
    return lambda fn, *args: fn.intrinsic(stem, *args)


def pick(fn: Function, mask: Value, a: Value, b: Value) -> Value:
    """Lane by lane a where the mask is set, else b."""
    return fn.op(a.type, f"select {mask.type} {mask.name}, {a.type} {a.name}, {b.type} {b.name}")


def _prelu(fn: Function, x: Value, slope: Value) -> Value:
    return pick(fn, fn.fcmp("olt", x, fn.const(x.type, 0.0)), fn.binary("fmul", x, slope), x)


def _neg(fn: Function, x: Value) -> Value:
    return fn.op(x.type, f"fneg {x.type} {x.name}")


def _reciprocal(fn: Function, x: Value) -> Value:
    return fn.binary("fdiv", fn.const(x.type, 1.0), x)


def emit_log(fn: Function, x: Value) -> Value:
    """log(x) within an ulp or two: 2 atanh((m - 1) / (m + 1)) + e log 2 for x = m * 2**e, m in [sqrt(1/2), sqrt(2))."""
    kind, single = x.type, scalar_of(x.type) == "float"
    word, shift, bias = (I32, 23, 127) if single else (I64, 52, 1023)
    wide = vector(word, lanes_of(kind)) if kind.startswith("<") else word

    def splat(number: int) -> str:
        return f"splat ({word} {number})" if kind.startswith("<") else str(number)

    # Numbers below the normal ones are multiplied into their range first.
    lift = 24 if single else 54
    tiny = fn.const(kind, 2.0 ** (1 - bias))
    below = fn.fcmp("olt", x, tiny)
    lifted = pick(fn, below, fn.binary("fmul", x, fn.const(kind, 2.0**lift)), x)
    bits = fn.op(wide, f"bitcast {kind} {lifted.name} to {wide}")
    # Bits of sqrt(1/2): taking them off moves the exponent's step to that number.
    half = (0x3F3504F3 if single else 0x3FE6A09E667F3BCD) - (bias << shift)
    moved = fn.op(wide, f"sub {wide} {bits.name}, {splat(half)}")
    power = fn.op(wide, f"ashr {wide} {moved.name}, {splat(shift)}")
    power = fn.op(wide, f"sub {wide} {power.name}, {splat(bias)}")
    back = fn.op(wide, f"shl {wide} {power.name}, {splat(shift)}")
    mantissa_bits = fn.op(wide, f"sub {wide} {bits.name}, {back.name}")
    m = fn.op(kind, f"bitcast {wide} {mantissa_bits.name} to {kind}")
    e = fn.op(kind, f"sitofp {wide} {power.name} to {kind}")
    e = fn.binary("fsub", e, pick(fn, below, fn.const(kind, float(lift)), fn.const(kind, 0.0)))
    one = fn.const(kind, 1.0)
    s = fn.binary("fdiv", fn.binary("fsub", m, one), fn.binary("fadd", m, one))
    square = fn.binary("fmul", s, s)
    terms = 5 if single else 12
    series = fn.const(kind, 2.0 / (2 * terms + 1))
    for k in reversed(range(1, terms)):
        series = fn.fma(series, square, fn.const(kind, 2.0 / (2 * k + 1)))
    rest = fn.binary("fmul", fn.binary("fmul", series, square), s)
    result = fn.fma(e, fn.const(kind, math.log(2.0)), fn.fma(fn.const(kind, 2.0), s, rest))
    zero = fn.const(kind, 0.0)
    result = pick(fn, fn.fcmp("oeq", x, zero), fn.const(kind, -math.inf), result)
    result = pick(fn, fn.fcmp("oeq", x, fn.const(kind, math.inf)), x, result)
    return pick(fn, fn.fcmp("uge", x, zero), pick(fn, fn.fcmp("uno", x, x), x, result), fn.const(kind, math.nan))


def _softplus(fn: Function, x: Value) -> Value:
    """max(x, 0) + log(1 + exp(-|x|))."""
    kind = x.type
    size = fn.intrinsic("fabs", x)
    tail = emit_log(fn, fn.binary("fadd", fn.const(kind, 1.0), emit_exp(fn, _neg(fn, size))))
    return fn.binary("fadd", fn.intrinsic("maximum", x, fn.const(kind, 0.0)), tail)


def _erf(fn: Function, x: Value) -> Value:
    """From gelu, which is y * (1 + erf(y / sqrt(2))) / 2: its series is that of erfc."""
    kind = x.type
    y = fn.binary("fmul", x, fn.const(kind, math.sqrt(2.0)))
    half = fn.binary("fdiv", emit_activation(fn, Activation("gelu"), y), y)
    result = fn.fma(fn.const(kind, 2.0), half, fn.const(kind, -1.0))
    # Near zero the quotient keeps only absolute accuracy, and 0 / 0 is none at all.
    near = fn.fcmp("olt", fn.intrinsic("fabs", x), fn.const(kind, 1e-3 if scalar_of(kind) == "float" else 1e-5))
    cubic = fn.fma(fn.binary("fmul", x, x), fn.const(kind, -1.0 / 3.0), fn.const(kind, 1.0))
    small = fn.binary("fmul", fn.binary("fmul", x, fn.const(kind, 2.0 / math.sqrt(math.pi))), cubic)
    return pick(fn, near, small, result)


def _hardsigmoid(fn: Function, x: Value, alpha: float, beta: float) -> Value:
    kind = x.type
    gate = fn.binary("fadd", fn.binary("fmul", x, fn.const(kind, alpha)), fn.const(kind, beta))
    return fn.intrinsic("minimum", fn.intrinsic("maximum", gate, fn.const(kind, 0.0)), fn.const(kind, 1.0))


def _elu(fn: Function, x: Value, alpha: float) -> Value:
    kind = x.type
    below = fn.binary("fmul", fn.const(kind, alpha), fn.binary("fsub", emit_exp(fn, x), fn.const(kind, 1.0)))
    return pick(fn, fn.fcmp("olt", x, fn.const(kind, 0.0)), below, x)


def _selu(fn: Function, x: Value, alpha: float, gamma: float) -> Value:
    return fn.binary("fmul", fn.const(x.type, gamma), _elu(fn, x, alpha))


def _thresholded(fn: Function, x: Value, alpha: float) -> Value:
    return pick(fn, fn.fcmp("ogt", x, fn.const(x.type, alpha)), x, fn.const(x.type, 0.0))


def _shrink(fn: Function, x: Value, edge: float, bias: float) -> Value:
    kind = x.type
    above = fn.binary("fsub", x, fn.const(kind, bias))
    below = fn.binary("fadd", x, fn.const(kind, bias))
    result = pick(fn, fn.fcmp("ogt", x, fn.const(kind, edge)), above, fn.const(kind, 0.0))
    return pick(fn, fn.fcmp("olt", x, fn.const(kind, -edge)), below, result)


def _sign(fn: Function, x: Value) -> Value:
    zero = fn.const(x.type, 0.0)
    below = pick(fn, fn.fcmp("olt", x, zero), fn.const(x.type, -1.0), x)  # zero and NaN stay
    return pick(fn, fn.fcmp("ogt", x, zero), fn.const(x.type, 1.0), below)


def emit_power(fn: Function, x: Value, exponent: float) -> Value:
    """`x ** exponent` for a constant: by products and roots where it is a multiple of 1/4, else through log (x > 0)."""
    quarters = exponent * 4
    if quarters != int(quarters) or abs(exponent) > 8:
        return emit_exp(fn, fn.binary("fmul", emit_log(fn, x), fn.const(x.type, exponent)))
    whole, rest = divmod(int(abs(quarters)), 4)
    result: Value | None = None
    square, count = x, whole
    while count:
        if count & 1:
            result = square if result is None else fn.binary("fmul", result, square)
        count >>= 1
        if count:
            square = fn.binary("fmul", square, square)
    root = x
    for bit in (2, 1):
        root = fn.intrinsic("sqrt", root) if rest else root
        if rest & bit:
            result = root if result is None else fn.binary("fmul", result, root)
        if bit == 2 and rest == 2:
            break
    if result is None:
        return fn.const(x.type, 1.0)
    return _reciprocal(fn, result) if exponent < 0 else result


BINARY: dict[str, Callable[[Function, Value, Value], Value]] = {
    "add": _plain("fadd"),
    "sub": _plain("fsub"),
    "mul": _plain("fmul"),
    "div": _plain("fdiv"),
    "max": _intrinsic("maximum"),
    "min": _intrinsic("minimum"),
    "prelu": _prelu,
}
UNARY: dict[str, Callable[[Function, Value], Value]] = {
    "neg": _neg,
    "abs": _intrinsic("fabs"),
    "sqrt": _intrinsic("sqrt"),
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "round": _intrinsic("rint"),
    "reciprocal": _reciprocal,
    "exp": emit_exp,
    "log": emit_log,
    "erf": _erf,
    "softplus": _softplus,
    "sign": _sign,
}
PARAMETRIC: dict[str, Callable[..., Value]] = {
    "hard_sigmoid": _hardsigmoid,
    "elu": _elu,
    "selu": _selu,
    "thresholded_relu": _thresholded,
    "shrink": _shrink,
    "power": emit_power,
}
