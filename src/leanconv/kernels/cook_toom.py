"""Cook-Toom (Winograd) transforms for any number of outputs, taps and points, built from exact numbers.

F(m, r): the m outputs of an r-tap correlation over n = m + r - 1 inputs, with n multiplications in place of m * r:

    Y = A^T [ (G g) * (B^T d) ]

Inputs and taps are polynomials, evaluated at n - 1 points and at infinity; the product of two values is the value of
the product. Infinity stands first, so that the first rows of a transform are those of a smaller one.

S. Winograd: Arithmetic Complexity of Computations, 1980; A. Lavin, S. Gray: Fast Algorithms for Convolutional Neural
Networks, CVPR 2016; B. Barabasz et al.: Error Analysis and Improving the Accuracy of Winograd Convolution, 2018.
"""

from __future__ import annotations

import functools
import math

from leanconv.classes import dataclass


@dataclass(frozen=True, slots=True)
class Surd:
    """The exact number `(rational + root * sqrt(2)) / over`, in lowest terms.

    Of whole numbers: `fractions` would bring `decimal`, 0.3 MiB that every process with such a layer would hold.
    """

    rational: int = 0
    root: int = 0
    over: int = 1

    def __post_init__(self) -> None:
        """Lowest terms, so that equal numbers are equal."""
        if not self.over:
            raise ZeroDivisionError("division by the number zero")
        common = math.gcd(self.rational, self.root, self.over) * (1 if self.over > 0 else -1)
        if common != 1:
            for name in ("rational", "root", "over"):
                object.__setattr__(self, name, getattr(self, name) // common)

    def __add__(self, other: Surd) -> Surd:
        """Sum."""
        a, b = self.over, other.over
        return Surd(self.rational * b + other.rational * a, self.root * b + other.root * a, a * b)

    def __sub__(self, other: Surd) -> Surd:
        """Difference."""
        return self + -other

    def __neg__(self) -> Surd:
        """The number with the other sign."""
        return Surd(-self.rational, -self.root, self.over)

    def __mul__(self, other: Surd) -> Surd:
        """Product."""
        a, b, c, d = self.rational, self.root, other.rational, other.root
        return Surd(a * c + 2 * b * d, a * d + b * c, self.over * other.over)

    def __truediv__(self, other: Surd) -> Surd:
        """Quotient: multiplied by the conjugate of the divisor, over its norm (zero for zero only)."""
        norm = other.rational * other.rational - 2 * other.root * other.root
        product = self * Surd(other.rational, -other.root)
        return Surd(product.rational * other.over, product.root * other.over, product.over * norm)

    def __bool__(self) -> bool:
        """Whether it is not zero."""
        return bool(self.rational or self.root)

    def __float__(self) -> float:
        """The nearest float64, give or take a rounding."""
        return self.rational / self.over + self.root / self.over * math.sqrt(2.0)


Matrix = tuple[tuple[Surd, ...], ...]
ZERO, ONE = Surd(), Surd(1)


def plus_minus(*points: Surd) -> tuple[Surd, ...]:
    """Zero, then each point with both signs: pairs whose rows share their even and odd parts."""
    return (ZERO, *(p for point in points for p in (point, -point)))


_HALF_ROOT, _ROOT = Surd(root=1, over=2), Surd(root=1)
_POINTS = {
    4: plus_minus(ONE),
    6: plus_minus(_HALF_ROOT, _ROOT),
    8: plus_minus(ONE, Surd(1, over=2), Surd(2)),
}


@dataclass(frozen=True, slots=True)
class CookToom:
    """F(outputs, taps) at finite `points` and infinity: `outputs + taps - 2` different points.

    `bare`: G has powers alone, and what they are to be divided by is in A^T.  G is then shorter code, A^T has more
    different numbers: for few tiles, and many registers.
    """

    outputs: int
    taps: int
    points: tuple[Surd, ...]
    bare: bool = False

    @staticmethod
    def of(outputs: int, taps: int) -> CookToom:
        """The transform with the best points known here, those of least rounding error for so many products."""
        count = outputs + taps - 2
        size = next(n for n in (2, 4, 6, 8) if n > count) if count else 2
        return CookToom(outputs, taps, _POINTS.get(size, (ZERO,))[:count])

    @property
    def size(self) -> int:
        """Inputs of a tile, and products."""
        return self.span(self.outputs)

    def span(self, outputs: int) -> int:
        """Inputs and products of a tile of so many outputs."""
        return outputs + self.taps - 1

    def weights(self) -> Matrix:
        """G (size x taps): point k's row holds its powers over its scale."""
        rows = [
            tuple(power / scale for power in _powers(point, self.taps))
            for point, scale in zip(self.points, self._scales(), strict=True)
        ]
        return (tuple(ONE if j == self.taps - 1 else ZERO for j in range(self.taps)), *rows)

    def inputs(self, outputs: int | None = None) -> Matrix:
        """B^T for a tile of `outputs` outputs (all, if None): the first rows and points serve a smaller tile.

        Point k's row is the polynomial with the other points as roots, infinity's the one with all of them.
        """
        points = self._points(outputs)
        rows = [(*_polynomial(points[:k] + points[k + 1 :]), ZERO) for k in range(len(points))]
        return (_polynomial(points), *rows)

    def results(self, outputs: int | None = None) -> Matrix:
        """A^T (outputs x size), for products of the *whole* transform's G whatever the size of the tile.

        Point k's column holds its powers, times its scale over the product of its distances from the tile's others.
        """
        points, count = self._points(outputs), outputs or self.outputs
        rows = []
        for i in range(count):
            row = [ONE if i == count - 1 else ZERO]
            for point, distance, scale in zip(points, _distances(points), self._scales(), strict=False):
                row.append(_powers(point, count)[i] * scale / distance)
            rows.append(tuple(row))
        return tuple(rows)

    def _scales(self) -> tuple[Surd, ...]:
        """What the powers of each point are divided by: the product of its distances from the others.

        Bare ones by the highest, if that is more than one: those of +-sqrt(1/2) and +-sqrt(2) are (1, sqrt(1/2), 1/2)
        and (1/2, sqrt(1/2), 1). But for the factor sqrt(1/2) a pair of points takes one multiply-add and two additions.
        """
        if not self.bare:
            return _distances(self.points)
        highest = [_powers(point, self.taps)[-1] for point in self.points]
        return tuple(power if abs(float(power)) > 1 else ONE for power in highest)

    def _points(self, outputs: int | None) -> tuple[Surd, ...]:
        return self.points[: self.span(outputs or self.outputs) - 1]


@functools.cache  # exact arithmetic in Python takes milliseconds, and a kernel asks for the same several times
def _distances(points: tuple[Surd, ...]) -> tuple[Surd, ...]:
    """Of each point, the product of its distances from the others."""
    result = []
    for k, point in enumerate(points):
        product = ONE
        for other in points[:k] + points[k + 1 :]:
            product = product * (point - other)
        result.append(product)
    return tuple(result)


def _powers(point: Surd, count: int) -> list[Surd]:
    result = [ONE]
    for _ in range(count - 1):
        result.append(result[-1] * point)
    return result


@functools.cache
def _polynomial(roots: tuple[Surd, ...]) -> tuple[Surd, ...]:
    """Coefficients of the product of (x - root), the constant first."""
    result = [ONE]
    for root in roots:
        result = [low - root * high for low, high in zip([ZERO, *result], [*result, ZERO], strict=True)]
    return tuple(result)
