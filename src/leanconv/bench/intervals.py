"""Whether two sets of measured times differ: ratios with intervals that hold whatever the times' distribution."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

# Up to this product of the two numbers of samples the distribution is counted; above, it is normal enough.
_COUNTED = 2500
_RESAMPLES = 4000


@dataclass(frozen=True)
class Interval:
    """A ratio and the interval that holds it with the confidence that was asked for; infinite if none does."""

    ratio: float
    low: float
    high: float

    @property
    def bounded(self) -> bool:
        """Whether there were samples enough for an interval."""
        return self.low > 0 and math.isfinite(self.high)


def factor_interval(new: Sequence[float], old: Sequence[float], confidence: float) -> Interval:
    """Return the ratio of two sets of times, and its interval.

    The ratio is the median of the ratios of each new time to each old one, and the interval reaches from one
    order statistic of these ratios to another: the interval that belongs to the rank-sum test of Wilcoxon, Mann
    and Whitney (Hodges and Lehmann, 1963). It assumes no distribution, only that the two differ by a factor, and
    one slow sample moves it little.

    Args:
        new: times, all above 0.
        old: times, all above 0.
        confidence: such as 0.95.
    """
    ratios = np.sort(np.divide.outer(np.asarray(new, float), np.asarray(old, float)).ravel())
    cut = _order(len(new), len(old), 1 - confidence)
    low, high = (float(ratios[cut - 1]), float(ratios[-cut])) if cut else (0.0, math.inf)
    return Interval(float(np.median(ratios)), low, high)


def passes_interval(new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], confidence: float) -> Interval:
    """Return the ratio of times that were measured in passes, and its interval.

    Times of one pass share who uses the machine beside, so it is the passes that are drawn anew:
    the logarithms of their medians are compared by Student's interval for two samples.

    Args:
        new: times, all above 0, of each pass.
        old: the same; three passes at least in all.
        confidence: such as 0.95.
    """
    logs = [np.log([np.median(times) for times in passes]) for passes in (new, old)]
    freedom = len(logs[0]) + len(logs[1]) - 2
    ratio = float(np.exp(logs[0].mean() - logs[1].mean()))
    variance = sum(float(((part - part.mean()) ** 2).sum()) for part in logs) / freedom
    reach = math.exp(student(freedom, confidence) * math.sqrt(variance * (1 / len(logs[0]) + 1 / len(logs[1]))))
    return Interval(ratio, ratio / reach, ratio * reach)


@functools.cache
def student(freedom: int, confidence: float) -> float:
    """Return how many standard errors an interval of Student's distribution reaches to either side.

    With t = sqrt(f) tan(a) the density is proportional to cos(a) to the power f - 1, which is summed up here.
    """
    angles = np.linspace(0, np.pi / 2, 20_001)
    density = np.cos(angles) ** (freedom - 1)
    total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(confidence * total[-1], total, angles)))


def mean_interval(ratios: Sequence[float], confidence: float) -> Interval:
    """Return the geometric mean of ratios, and its interval by resampling them.

    The interval says how much the mean hangs on the choice of layers. Below five ratios there is none.
    """
    logs = np.log(np.asarray(ratios, float))
    mean = float(np.exp(logs.mean()))
    if len(logs) < 5:
        return Interval(mean, 0.0, math.inf)
    # A fixed seed: the same files give the same words.
    picks = np.random.default_rng(0).integers(0, len(logs), size=(_RESAMPLES, len(logs)))
    tail = (1 - confidence) / 2
    low, high = np.exp(np.quantile(logs[picks].mean(axis=1), (tail, 1 - tail)))
    return Interval(mean, float(low), float(high))


def _order(m: int, n: int, alpha: float) -> int:
    """Return which of the m * n sorted ratios, from either end, bounds the interval; 0 if none does.

    That is the largest k with P(U < k) <= alpha / 2, U the rank-sum statistic of samples that do not differ.
    """
    if m * n > _COUNTED:
        deviation = math.sqrt(m * n * (m + n + 1) / 12)
        return max(int(m * n / 2 + NormalDist().inv_cdf(alpha / 2) * deviation), 0)
    below = np.cumsum(_distribution(m, n))
    return int(np.searchsorted(below, alpha / 2, side="right"))


@functools.cache
def _distribution(m: int, n: int) -> NDArray[np.float64]:
    """Return P(U = u) for u of 0 .. m * n, U the number of pairs in which the first sample's value is larger."""
    # Row i holds the distributions for i of the first sample; the largest of all values is of either sample.
    row = [np.ones(1) for _ in range(n + 1)]
    for i in range(1, m + 1):
        fresh = [np.ones(1)]
        for j in range(1, n + 1):
            both = np.zeros(i * j + 1)
            both[j:] += i / (i + j) * row[j]
            both[: i * (j - 1) + 1] += j / (i + j) * fresh[j - 1]
            fresh.append(both)
        row = fresh
    return row[n]
