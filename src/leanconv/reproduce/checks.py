"""How a claim of a paper is judged by what was measured here."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from leanconv.bench.report import PEER, Report, Row, ratio
from leanconv.problem import Problem

REPRODUCED, EXCEEDED, NOT, NOT_HERE, NOT_YET = (
    *("reproduced", "exceeded", "not reproduced", "not testable here", "not yet"),
)
# A figure within this part of the claimed one is the same.
TOLERANCE = 0.1


@dataclass(frozen=True)
class Outcome:
    """The verdict on a claim: what was found here, in words, and why, or with what it was compared."""

    verdict: str
    found: str = "-"
    why: str = ""


@dataclass(frozen=True)
class Measured:
    """What an experiment measured: the report, and the layers' problems by name."""

    report: Report
    problems: Mapping[str, Problem]

    def fastest(self, names: Sequence[str], layout: str | None, threads: int) -> dict[str, Row]:
        """Return the fastest timed row of some contestants on each layer.

        Other libraries have their own layout, whatever `layout` is; None is any.
        """
        best: dict[str, Row] = {}
        for row in self.report.rows:
            fits = row.kind == PEER or layout in (None, row.layout)
            if row.seconds and fits and row.algorithm in names and row.threads == threads:
                other = best.get(row.layer)
                if other is None or row.seconds < (other.seconds or math.inf):
                    best[row.layer] = row
        return best

    def first(self, names: Sequence[str], layout: str | None, threads: int) -> tuple[str, dict[str, Row]]:
        """Return the first of some contestants that was timed, and its rows by layer."""
        for name in names:
            rows = self.fastest((name,), layout, threads)
            if rows:
                return name, rows
        return names[-1], {}


class Check(ABC):
    """A rule that turns measurements into a verdict.

    `experiment` is the name of the experiment that it reads; `needs` are the algorithms without which there is nothing
    to judge.
    """

    experiment: str

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """Algorithms of leanconv; one of them must exist."""

    @abstractmethod
    def judge(self, measured: Measured) -> Outcome:
        """Return the verdict."""


@dataclass(frozen=True)
class Untestable(Check):
    """A claim that no machine of this kind can test."""

    why: str
    experiment: str = ""
    needs: ClassVar[tuple[str, ...]] = ()

    def judge(self, measured: Measured) -> Outcome:
        """Say why."""
        return Outcome(NOT_HERE, why=self.why)


@dataclass(frozen=True)
class Speed(Check):
    """How much faster some contestants are than others: time of `over` over time of `ours`, on each layer.

    Attributes:
        ours: algorithms; the fastest on each layer counts.
        over: what they are compared with.
        expected: the claimed factor.
        best_of: compare with the fastest of `over` on each layer; else with the first of them that was measured.
        how: "mean": geometric mean over the layers; "most": the largest; "share": part of the layers on which it is
            above 1, and `expected` is the least such part that the claim's words can mean.
        only: the layers that count, and in words which these are.
        percent: show the factor as "n % faster".
    """

    ours: tuple[str, ...]
    over: tuple[str, ...]
    expected: float
    experiment: str = "main"
    best_of: bool = False
    how: str = "mean"
    layout: str | None = None
    over_layout: str | None = None
    threads: int = 1
    only: tuple[Callable[[Problem], bool], str] | None = None
    percent: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithms that the claim is about."""
        return self.ours

    def judge(self, measured: Measured) -> Outcome:
        """Compare layer by layer."""
        if self.threads > measured.report.machine.get("usable_cpus", self.threads):
            return Outcome(NOT_HERE, why=f"needs {self.threads} CPUs")
        ours = measured.fastest(self.ours, self.layout, self.threads)
        layout = self.over_layout or self.layout
        if self.best_of:
            name, over = "the fastest of " + ", ".join(self.over), measured.fastest(self.over, layout, self.threads)
        else:
            name, over = measured.first(self.over, layout, self.threads)
        layers = [
            layer for layer in ours if layer in over and (self.only is None or self.only[0](measured.problems[layer]))
        ]
        if not layers:
            return Outcome(NOT_HERE, why=_missing(measured, self.ours, self.over, self.threads))
        factors = {layer: 1 / ratio(ours[layer], over[layer]) for layer in layers}
        value = self._value(list(factors.values()))
        if self.how == "share":
            verdict = NOT if value < self.expected else REPRODUCED
        else:
            verdict = _verdict(value, self.expected)
        which = f" {self.only[1]}" if self.only else ""
        why = f"against {name} on {_count(layers)}{which}{self._spread(factors)}"
        if verdict == NOT:
            why += self._reason([ours[layer] for layer in layers], [over[layer] for layer in layers])
        return Outcome(verdict, self._words(value), why)

    def _value(self, factors: list[float]) -> float:
        if self.how == "most":
            return max(factors)
        if self.how == "share":
            return sum(factor > 1 for factor in factors) / len(factors)
        return statistics.geometric_mean(factors)

    def _words(self, value: float) -> str:
        if self.how == "share":
            return f"{value:.0%} of the layers"
        return f"{value - 1:+.0%}" if self.percent else f"{value:.2f} x"

    def _reason(self, ours: Sequence[Row], over: Sequence[Row]) -> str:
        """Return what both reach of the peak, and the factor that is left, if it is below the claim."""
        if self.how != "mean":
            return ""
        parts = [statistics.geometric_mean(row.percent_of_peak or math.nan for row in rows) for rows in (ours, over)]
        words = f"; {parts[0]:.0f} % of peak against {parts[1]:.0f} %"
        most = 100 / parts[1]
        bound = f", so at most {most:.1f} x is possible with all operations done" if most < self.expected else ""
        return words + bound

    def _spread(self, factors: Mapping[str, float]) -> str:
        low, high = min(factors, key=factors.__getitem__), max(factors, key=factors.__getitem__)
        if len(factors) == 1:
            return f" ({low})"
        return f": {factors[low]:.2f} ({low}) to {factors[high]:.2f} ({high})"


@dataclass(frozen=True)
class Range(Check):
    """Factors of which a paper gives the smallest and the largest: time of `over` over time of `ours`, by layer."""

    ours: tuple[str, ...]
    low: float
    high: float
    layout: str
    over_layout: str
    experiment: str = "main"
    threads: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithms that the claim is about."""
        return self.ours

    def judge(self, measured: Measured) -> Outcome:
        """Reproduced if no layer is below the smallest (by more than the tolerance), exceeded if the mean is above."""
        ours, over = (measured.fastest(self.ours, which, self.threads) for which in (self.layout, self.over_layout))
        factors = {layer: 1 / ratio(ours[layer], over[layer]) for layer in ours if layer in over}
        if not factors:
            return Outcome(NOT_HERE, why=_missing(measured, self.ours, self.ours, self.threads))
        low, high = min(factors.values()), max(factors.values())
        mean = statistics.geometric_mean(factors.values())
        found = f"{low - 1:+.0%} to {high - 1:+.0%}"
        below = [layer for layer, factor in factors.items() if factor < self.low * (1 - TOLERANCE)]
        why = f"geometric mean {mean - 1:+.0%} on {_count(factors)}"
        if below:
            return Outcome(NOT, found, f"{why}; less than claimed on {', '.join(below)}")
        return Outcome(EXCEEDED if mean > self.high else REPRODUCED, found, why)


@dataclass(frozen=True)
class Peak(Check):
    """The largest part of the machine's peak that an algorithm reaches on any layer, in percent."""

    ours: tuple[str, ...]
    expected: float
    experiment: str = "main"
    threads: int = 1

    @property
    def needs(self) -> tuple[str, ...]:
        """The algorithms that the claim is about."""
        return self.ours

    def judge(self, measured: Measured) -> Outcome:
        """Compare the best layer. Nothing above the peak can be expected, so there is little to exceed."""
        rows = measured.fastest(self.ours, None, self.threads).values()
        if not rows:
            return Outcome(NOT_HERE, why=_missing(measured, self.ours, self.ours, self.threads))
        best = max(rows, key=lambda row: row.percent_of_peak or 0.0)
        value = best.percent_of_peak or 0.0
        # Two points: peaks are measured, and the claim says "up to".
        verdict = NOT if value < self.expected - 2 else EXCEEDED if value > self.expected + 2 else REPRODUCED
        means = statistics.geometric_mean(row.percent_of_peak or math.nan for row in rows)
        why = f"on {best.layer}, {best.layout}; geometric mean of {_count(rows)} {means:.0f} %"
        if verdict == NOT and best.samples:
            # Whether the kernel or the machine's other users keep it from the claim.
            parts = [best.flops / sample.seconds / 1e9 / sample.peak_gflops for sample in best.samples]
            why += f"; its samples reach {100 * min(parts):.0f} to {100 * max(parts):.0f} %"
        return Outcome(verdict, f"{value:.0f} %", why)


def _verdict(value: float, expected: float) -> str:
    if value < expected * (1 - TOLERANCE):
        return NOT
    return EXCEEDED if value > expected * (1 + TOLERANCE) else REPRODUCED


def _count(items: Iterable[object]) -> str:
    count = len(list(items))
    return f"{count} layer{'s' if count != 1 else ''}"


def _missing(measured: Measured, ours: Sequence[str], over: Sequence[str], threads: int) -> str:
    """Return why there is no layer on which both were timed."""
    for names in (ours, over):
        rows = [row for row in measured.report.rows if row.algorithm in names and row.threads == threads]
        if not any(row.seconds for row in rows):
            reasons = {f"{row.algorithm}: {row.reason}" for row in rows if row.reason}
            return f"{' and '.join(names)} not timed" + (f" ({sorted(reasons)[0]})" if reasons else "")
    return "no layer on which both were timed"
