"""Fourier transforms of any small size as straight-line code: traced once, in numbers that stand for vectors.

The recursion (decimation by 2, 3, 4 and 5) runs on `Term`s: a value of the program times a factor that is not yet
multiplied.  Adding two terms whose factors differ is one multiply-add, so that a twiddle factor costs nothing where its
product is added to something: a complex transform of 16 takes 144 instructions.  What is zero (padding, taps that do
not exist, imaginary parts of real numbers) is never computed, what was computed before is taken again, and what no
wanted result depends on is left out.  Transforms of real numbers are the same recursion, half of whose results are
the conjugates of the others.

A spectrum of n real numbers is packed into n: the real bins 0 and (n even) n / 2, then the real and imaginary parts of
bins 1, 2, ...  A complex line is its real and imaginary parts in turn.

J. Cooley, J. Tukey: An Algorithm for the Machine Calculation of Complex Fourier Series, 1965; factors put off as in
E. Linzer, E. Feig: Implementation of Efficient FFT Algorithms on Fused Multiply-Add Architectures, 1993.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from leanconv.kernels.linear import Linear, Step


class Term(NamedTuple):
    """`factor` times value number `value`; the factor is 0 for zero."""

    value: int
    factor: float


class Complex(NamedTuple):
    """Real and imaginary part."""

    re: Term
    im: Term


ZERO = Term(-1, 0.0)
Line = list[Complex]


class Tracer:
    """Collects the steps of one program; equal steps are made once."""

    def __init__(self, inputs: int) -> None:
        self.inputs = inputs
        self.steps: list[Step] = []
        self._known: dict[Step, int] = {}

    def _step(self, step: Step) -> int:
        if step not in self._known:
            self._known[step] = self.inputs + len(self.steps)
            self.steps.append(step)
        return self._known[step]

    def add(self, a: Term, b: Term) -> Term:
        """A + b; the larger factor is that of the sum, and of two equal ones the first."""
        if not a.factor or not b.factor:
            return a if a.factor else b
        if a.value == b.value:
            total = a.factor + b.factor
            return Term(a.value, total) if total else ZERO
        if abs(a.factor) < abs(b.factor):
            a, b = b, a
        ratio = b.factor / a.factor
        if ratio == 1.0:
            return Term(self._step(Step("add", min(a.value, b.value), max(a.value, b.value))), a.factor)
        if ratio == -1.0:
            if a.value < b.value:
                return Term(self._step(Step("sub", a.value, b.value)), a.factor)
            return Term(self._step(Step("sub", b.value, a.value)), b.factor)
        return Term(self._step(Step("fma", b.value, a.value, ratio)), a.factor)

    def plus(self, a: Complex, b: Complex) -> Complex:
        """A + b."""
        return Complex(self.add(a.re, b.re), self.add(a.im, b.im))

    def minus(self, a: Complex, b: Complex) -> Complex:
        """A - b."""
        return self.plus(a, scaled(b, -1.0))

    def turned(self, a: Complex, w: complex) -> Complex:
        """A times a constant."""
        re = self.add(times(a.re, w.real), times(a.im, -w.imag))
        return Complex(re, self.add(times(a.im, w.real), times(a.re, w.imag)))

    def finished(self, outputs: Sequence[Term]) -> Linear:
        """The program that gives these terms, without what they do not depend on."""
        numbers = []
        for term in outputs:
            at = max(term.value, 0)  # what is always zero is a product with zero
            numbers.append(at if term.factor == 1.0 else self._step(Step("mul", at, at, term.factor)))
        needed, last = set(numbers), self.inputs + len(self.steps) - 1
        for number in range(last, self.inputs - 1, -1):
            if number in needed:
                step = self.steps[number - self.inputs]
                needed |= {step.a, step.b}
        place = {number: number for number in range(self.inputs)}
        steps: list[Step] = []
        for number, step in enumerate(self.steps, self.inputs):
            if number in needed:
                place[number] = self.inputs + len(steps)
                steps.append(Step(step.kind, place[step.a], place[step.b], step.factor))
        return Linear(self.inputs, tuple(steps), tuple(place[number] for number in numbers))


def times(a: Term, factor: float) -> Term:
    """A term times a constant."""
    return Term(a.value, a.factor * factor) if a.factor and factor else ZERO


def scaled(a: Complex, factor: float) -> Complex:
    """Times a real constant."""
    return Complex(times(a.re, factor), times(a.im, factor))


def conjugate(a: Complex) -> Complex:
    """The conjugate."""
    return Complex(a.re, times(a.im, -1.0))


def swapped(a: Complex) -> Complex:
    """Real and imaginary part exchanged: the transform of exchanged numbers is the inverse, exchanged."""
    return Complex(a.im, a.re)


def root(n: int, k: int) -> complex:
    """exp(-2 pi i k / n), exact on the axes and the same but for signs and order in every octant."""
    eighths, rest = divmod(8 * (k % n), n)
    angle = 2 * math.pi * rest / (8 * n)
    c, s = math.cos(angle), math.sin(angle)
    if eighths % 2 and not rest:
        c = s = math.sqrt(0.5)
    elif eighths % 2:
        angle = 2 * math.pi * (n - rest) / (8 * n)
        c, s = math.sin(angle), math.cos(angle)
    for _ in range(eighths // 2):
        c, s = -s, c
    return complex(c, -s)


def radix_of(n: int) -> int:
    """The number of parts that a transform is made from."""
    for radix in (4, 2, 3, 5):
        if n % radix == 0:
            return radix
    raise ValueError(f"{n} has a prime factor above 5")


def _butterfly(t: Tracer, x: Line) -> Line:
    """A transform of 2, 3, 4 or 5 numbers."""
    n = len(x)
    if n == 2:
        return [t.plus(x[0], x[1]), t.minus(x[0], x[1])]
    if n == 4:
        even, odd = _butterfly(t, x[::2]), _butterfly(t, x[1::2])
        quarter = t.turned(odd[1], -1j)
        first, third = t.plus(even[0], odd[0]), t.minus(even[0], odd[0])
        return [first, t.plus(even[1], quarter), third, t.minus(even[1], quarter)]
    half = n // 2
    sums = [t.plus(x[j], x[n - j]) for j in range(1, half + 1)]
    differences = [t.minus(x[j], x[n - j]) for j in range(1, half + 1)]
    result = [x[0]] * n
    for s in sums:
        result[0] = t.plus(result[0], s)
    for k in range(1, half + 1):
        total, rest = x[0], Complex(ZERO, ZERO)
        for j in range(1, half + 1):
            w = root(n, j * k)
            total = t.plus(total, scaled(sums[j - 1], w.real))
            rest = t.plus(rest, scaled(differences[j - 1], w.imag))
        rest = t.turned(rest, 1j)
        result[k], result[n - k] = t.plus(total, rest), t.minus(total, rest)
    return result


def _forward(t: Tracer, x: Line) -> Line:
    """All bins of complex numbers."""
    n = len(x)
    if n == 1:
        return x
    radix = radix_of(n)
    parts, m = [_forward(t, x[q::radix]) for q in range(radix)], n // radix
    result = [x[0]] * n
    for k in range(m):
        bins = _butterfly(t, [t.turned(parts[q][k], root(n, q * k)) for q in range(radix)])
        for r, value in enumerate(bins):
            result[k + r * m] = value
    return result


def _forward_real(t: Tracer, x: Line) -> Line:
    """Bins 0 to n / 2 of real numbers."""
    n = len(x)
    if n == 1:
        return x
    radix = radix_of(n)
    parts, m = [_forward_real(t, x[q::radix]) for q in range(radix)], n // radix
    found: dict[int, Complex] = {}
    for k in range(m // 2 + 1):
        bins = _butterfly(t, [t.turned(parts[q][k], root(n, q * k)) for q in range(radix)])
        for r, value in enumerate(bins):
            j = k + r * m
            if j <= n // 2:
                found[j] = value
            else:
                found.setdefault(n - j, conjugate(value))
    for k in _real_bins(n):
        found[k] = Complex(found[k].re, ZERO)
    return [found[j] for j in range(n // 2 + 1)]


def _inverse_real(t: Tracer, x: Line, n: int) -> list[Term]:
    """The n real numbers, times n, whose bins 0 to n / 2 are given."""
    if n == 1:
        return [x[0].re]
    radix = radix_of(n)
    m = n // radix
    parts: list[Line] = [[] for _ in range(radix)]
    for k in range(m // 2 + 1):
        bins = [x[j] if j <= n // 2 else conjugate(x[n - j]) for j in range(k, n, m)]
        for q, value in enumerate(_butterfly(t, [swapped(b) for b in bins])):
            part = t.turned(swapped(value), root(n, q * k).conjugate())
            parts[q].append(Complex(part.re, ZERO) if k in _real_bins(m) else part)
    result = [ZERO] * n
    for q, part_bins in enumerate(parts):
        result[q::radix] = _inverse_real(t, part_bins, m)
    return result


def _real_bins(n: int) -> tuple[int, ...]:
    return (0,) if n % 2 else (0, n // 2)


def reals(n: int) -> int:
    """How many of the bins of n real numbers are real: they stand first."""
    return len(_real_bins(n))


@lru_cache(maxsize=256)
def forward(n: int, given: tuple[int, ...], *, real: bool) -> Linear:
    """From the numbers at the positions `given` (the others are zero) to all bins."""
    t = Tracer(len(given) * (1 if real else 2))
    line = [Complex(ZERO, ZERO)] * n
    for i, at in enumerate(given):
        line[at] = Complex(Term(i, 1.0), ZERO) if real else Complex(Term(2 * i, 1.0), Term(2 * i + 1, 1.0))
    if not real:
        return t.finished([part for value in _forward(t, line) for part in value])
    bins = _forward_real(t, line)
    first = _real_bins(n)
    return t.finished([bins[k].re for k in first] + [p for k in range(1, (n + 1) // 2) for p in bins[k]])


@lru_cache(maxsize=256)
def inverse(n: int, wanted: int, *, real: bool) -> Linear:
    """From all bins to n times the first `wanted` numbers."""
    t = Tracer(n if real else 2 * n)
    if not real:
        line = [Complex(Term(2 * k + 1, 1.0), Term(2 * k, 1.0)) for k in range(n)]
        return t.finished([part for value in _forward(t, line)[:wanted] for part in swapped(value)])
    first = reals(n)
    packed = {k: Complex(Term(i, 1.0), ZERO) for i, k in enumerate(_real_bins(n))}
    for i, k in enumerate(range(1, (n + 1) // 2)):
        packed[k] = Complex(Term(first + 2 * i, 1.0), Term(first + 2 * i + 1, 1.0))
    return t.finished(_inverse_real(t, [packed[k] for k in range(n // 2 + 1)], n)[:wanted])
