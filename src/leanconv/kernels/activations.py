"""Activations on vector registers, with polynomials of our own (LLVM has no vector exp or erf to call).

Errors against float64, tested: at most 2 units in the last place of the largest magnitude involved for exp;
sigmoid, silu, tanh and gelu within 4e-7 (float32) and 1e-14 (float64) of the exact value relative to max(1,
|x|).
"""

from __future__ import annotations

import math

from leanconv.codegen.ir import I32, I64, Function, Value, lanes_of, scalar_of, vector
from leanconv.problem import Activation

# erfc(x) * exp(x * x) on x >= 0 as a Chebyshev series in t = 4 / (2 + x) - 1 (W. H. Press et al., Numerical
# Recipes, 3rd edition, section 6.2.2: the substitution; the coefficients are computed below from math.erfc).
_ERFC_TERMS = {"float": 12, "double": 28}


def _erfcx(x: float) -> float:
    """erfc(x) * exp(x * x) without overflow, by its continued fraction where x is large."""
    if x < 2.0:
        return math.erfc(x) * math.exp(x * x)
    tail = 0.0
    for k in range(120, 0, -1):
        tail = (k / 2.0) / (x + tail)
    return 1.0 / (math.sqrt(math.pi) * (x + tail))


def chebyshev_erfc(terms: int) -> list[float]:
    """Chebyshev coefficients of log(erfcx(x)) - log(t') where t' = 2 / (2 + x), on t = 2 t' - 1 in [-1, 1]."""
    nodes = 4 * terms
    values = []
    for k in range(nodes):
        t = math.cos(math.pi * (k + 0.5) / nodes)
        x = 4.0 / (t + 1.0) - 2.0
        values.append(math.log(_erfcx(x)) - math.log((t + 1.0) / 2.0))
    return [
        2.0 / nodes * sum(v * math.cos(math.pi * j * (k + 0.5) / nodes) for k, v in enumerate(values))
        for j in range(terms)
    ]


def _horner(fn: Function, x: Value, coefficients: list[float]) -> Value:
    """Evaluate a polynomial, highest power first."""
    result = fn.const(x.type, coefficients[0])
    for c in coefficients[1:]:
        result = fn.fma(result, x, fn.const(x.type, c))
    return result


def _integer(kind: str) -> tuple[str, int, int]:
    """The integer vector type as wide as a floating-point one, its exponent's shift and bias."""
    scalar, lanes = scalar_of(kind), lanes_of(kind)
    width, shift, bias = (I32, 23, 127) if scalar == "float" else (I64, 52, 1023)
    return (vector(width, lanes) if kind.startswith("<") else width), shift, bias


def emit_exp(fn: Function, x: Value) -> Value:
    """exp(x), clamped to the range in which the result is a normal number; NaN stays NaN."""
    single = scalar_of(x.type) == "float"
    low, high = (-87.0, 88.0) if single else (-708.0, 709.0)
    kind = x.type
    clamped = fn.op(kind, _select(fn, fn.fcmp("olt", x, fn.const(kind, low)), fn.const(kind, low), x))
    clamped = fn.op(kind, _select(fn, fn.fcmp("ogt", x, fn.const(kind, high)), fn.const(kind, high), clamped))
    n = fn.intrinsic("rint", fn.binary("fmul", clamped, fn.const(kind, 1.0 / math.log(2.0))))
    split = 0.693359375 if single else 6.93147180369123816490e-01  # log(2) in two parts: n * first is exact
    r = fn.fma(n, fn.const(kind, -split), clamped)
    r = fn.fma(n, fn.const(kind, split - math.log(2.0) if single else -1.90821492927058770002e-10), r)
    p = _horner(fn, r, [1.0 / math.factorial(k) for k in range(7 if single else 13, -1, -1)])
    wide, shift, bias = _integer(kind)
    # NaN becomes 0 before the conversion (fptosi of NaN is undefined); p is NaN already.
    safe = fn.op(kind, _select(fn, fn.fcmp("uno", x, x), fn.const(kind, 0.0), n))
    k = fn.op(wide, f"fptosi {kind} {safe.name} to {wide}")
    k = fn.op(wide, f"add {wide} {k.name}, {_splat_int(wide, bias)}")
    k = fn.op(wide, f"shl {wide} {k.name}, {_splat_int(wide, shift)}")
    return fn.binary("fmul", p, fn.op(kind, f"bitcast {wide} {k.name} to {kind}"))


def _splat_int(kind: str, number: int) -> str:
    return f"splat ({scalar_of(kind)} {number})" if kind.startswith("<") else str(number)


def _select(fn: Function, mask: Value, a: Value, b: Value) -> str:
    return f"select {mask.type} {mask.name}, {a.type} {a.name}, {b.type} {b.name}"


def _sigmoid(fn: Function, x: Value) -> Value:
    one = fn.const(x.type, 1.0)
    e = emit_exp(fn, fn.op(x.type, f"fneg {x.type} {x.name}"))
    return fn.binary("fdiv", one, fn.binary("fadd", one, e))


def _tanh(fn: Function, x: Value) -> Value:
    """1 - 2 / (exp(2x) + 1): its absolute error is within an ulp of 1, which is what an epilogue needs."""
    one, two = fn.const(x.type, 1.0), fn.const(x.type, 2.0)
    e = emit_exp(fn, fn.binary("fmul", x, two))
    return fn.binary("fsub", one, fn.binary("fdiv", two, fn.binary("fadd", e, one)))


def _gelu(fn: Function, x: Value) -> Value:
    """X * erfc(-x / sqrt(2)) / 2, with erfc(|y|) = t * exp(-y * y + series(t)) and t = 2 / (2 + |y|)."""
    kind = x.type
    two = fn.const(kind, 2.0)
    y = fn.binary("fmul", x, fn.const(kind, math.sqrt(0.5)))
    size = fn.intrinsic("fabs", y)
    t = fn.binary("fdiv", two, fn.binary("fadd", two, size))
    u = fn.fma(t, fn.const(kind, 4.0), fn.const(kind, -2.0))  # twice the Chebyshev argument
    terms = chebyshev_erfc(_ERFC_TERMS[scalar_of(kind)])
    b1, b2 = fn.const(kind, 0.0), fn.const(kind, 0.0)
    for c in reversed(terms[1:]):  # Clenshaw
        b1, b2 = fn.fma(u, b1, fn.binary("fsub", fn.const(kind, c), b2)), b1
    half_u = fn.binary("fmul", u, fn.const(kind, 0.5))
    series = fn.fma(half_u, b1, fn.binary("fsub", fn.const(kind, 0.5 * terms[0]), b2))
    exponent = fn.binary("fsub", series, fn.binary("fmul", size, size))
    erfc = fn.binary("fmul", t, emit_exp(fn, exponent))
    upper = fn.binary("fsub", two, erfc)
    tail = fn.op(kind, _select(fn, fn.fcmp("ogt", y, fn.const(kind, 0.0)), upper, erfc))
    return fn.binary("fmul", fn.binary("fmul", x, fn.const(kind, 0.5)), tail)


def _clamp(fn: Function, x: Value, low: float, high: float) -> Value:
    """Clamp so that NaN stays NaN (comparisons are ordered: NaN keeps x)."""
    kind = x.type
    if low > -math.inf:
        x = fn.op(kind, _select(fn, fn.fcmp("olt", x, fn.const(kind, low)), fn.const(kind, low), x))
    if high < math.inf:
        x = fn.op(kind, _select(fn, fn.fcmp("ogt", x, fn.const(kind, high)), fn.const(kind, high), x))
    return x


def emit_activation(fn: Function, activation: Activation, x: Value) -> Value:
    """The activation of a vector; NaN gives NaN."""
    kind, name, params = x.type, activation.name, activation.params
    if name == "relu":
        return _clamp(fn, x, 0.0, math.inf)
    if name == "relu6":
        return _clamp(fn, x, 0.0, 6.0)
    if name == "clip":
        return _clamp(fn, x, params[0], params[1])
    if name == "leaky_relu":
        scaled = fn.binary("fmul", x, fn.const(kind, params[0]))
        return fn.op(kind, _select(fn, fn.fcmp("olt", x, fn.const(kind, 0.0)), scaled, x))
    if name == "sigmoid":
        return _sigmoid(fn, x)
    if name == "silu":
        # Below -80 the result is 0 to rounding, but x * sigmoid(x) with a clamped exp would not be.
        return fn.binary(
            "fmul", _clamp(fn, x, -80.0 if scalar_of(kind) == "float" else -700.0, math.inf), _sigmoid(fn, x)
        )
    if name == "tanh":
        return _tanh(fn, x)
    if name == "gelu":
        return _gelu(fn, x)
    gate = _clamp(fn, fn.fma(x, fn.const(kind, 1.0 / 6.0), fn.const(kind, 0.5)), 0.0, 1.0)
    if name == "hardsigmoid":
        return gate
    if name == "hardswish":
        return fn.binary("fmul", x, gate)
    raise AssertionError(f"no kernel for activation {name!r}")
