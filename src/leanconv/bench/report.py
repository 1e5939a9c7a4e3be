"""The results of a benchmark as data: what was measured, where, and how; written as JSON."""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from leanconv.bench.intervals import student

# Raised when the meaning or the name of a field changes; new fields do not raise it.
SCHEMA = 1

# An interquartile range above this part of the median is marked as noisy.
NOISY = 0.05

# Of the interval of a ratio.
CONFIDENCE = 0.95

# Kinds of rows.
OWN, PEER = "leanconv", "peer"

OK, NOT_APPLICABLE, WRONG, FAILED = "ok", "not applicable", "wrong result", "failed"


@dataclass(frozen=True)
class Sample:
    """One measured value.

    Attributes:
        round: number of the round; samples of one round were taken one after the other.
        seconds: time of one call, the mean over `Row.calls` calls.
        peak_gflops: the FMA peak measured in the same round.
        visit: number of the pass over all layers, from 0; between passes everything is prepared anew.
    """

    round: int
    seconds: float
    peak_gflops: float
    visit: int = 0


@dataclass
class Row:
    """One algorithm, or one peer, on one layer.

    Attributes:
        layer: name of the layer.
        algorithm: what was asked for; of a peer its name.
        ran: the algorithm of the plan; another one than `algorithm` if that was "auto".
        parameters: the plan's parameters.
        layout: "NCHW" or "NHWC".
        threads: threads the plan was asked to use.
        status: "ok", "not applicable", "wrong result" or "failed".
        reason: why, unless the status is "ok".
        workspace_bytes: scratch memory of a call, as declared; 0 for peers, which declare none.
        packed_weight_bytes: memory of the weights as they were rearranged in advance, as declared.
        prepare_seconds: time to make the plan and to bind the weights, or to load a peer's model.
        error: largest error against float64 over the largest output.
        compared: how much of the output was compared.
        calls: calls of a sample.
        samples: the measured times.
        flops: multiplications and additions of the definition.
        seconds: median time of one call.
        spread: interquartile range over median; None below three samples.
        gflops: `flops` over median time.
        peak_gflops: median FMA peak of the rounds.
        percent_of_peak: median over the rounds of the part of that round's peak.
        kind: "leanconv" or "peer".
        version: of the peer.
        cold_seconds: `prepare_seconds` and the first call; of a peer in a process that has run another layer before.
        extra_peak_bytes: the most memory the process held while it prepared and called, beyond what it held before,
            and beyond the output; None if the system does not tell. Pages, not exact bytes.
        undecided: the ratio to the fastest row of the layer and number of threads is less certain than was asked for;
            of the fastest row: another may be as fast, its interval reaches to 1.
    """

    layer: str
    algorithm: str
    layout: str
    threads: int
    status: str = OK
    reason: str = ""
    ran: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    workspace_bytes: int = 0
    packed_weight_bytes: int = 0
    prepare_seconds: float = 0.0
    error: float | None = None
    compared: str = ""
    calls: int = 0
    samples: list[Sample] = field(default_factory=list)
    flops: int = 0
    seconds: float | None = None
    spread: float | None = None
    gflops: float | None = None
    peak_gflops: float | None = None
    percent_of_peak: float | None = None
    kind: str = OWN
    version: str = ""
    cold_seconds: float | None = None
    extra_peak_bytes: int | None = None
    undecided: bool = False

    @property
    def label(self) -> str:
        """Return the algorithm; with what it chose if it chose."""
        return self.algorithm if self.ran in ("", self.algorithm) else f"{self.algorithm} > {self.ran}"

    def summarise(self) -> None:
        """Fill in the fields that follow from the samples."""
        times = [sample.seconds for sample in self.samples]
        self.seconds = statistics.median(times)
        self.spread = spread(times)
        self.gflops = self.flops / self.seconds / 1e9
        self.peak_gflops = statistics.median(sample.peak_gflops for sample in self.samples)
        parts = [self.flops / sample.seconds / 1e9 / sample.peak_gflops for sample in self.samples]
        self.percent_of_peak = 100 * statistics.median(parts)


@dataclass
class Report:
    """A benchmark run.

    Attributes:
        command: the command line, or what stands for it.
        started: date and time of the start, UTC, ISO 8601.
        finished: the same of the end.
        interrupted: whether it was stopped before all layers were measured.
        bandwidth: measured speed of reading memory, each {"threads": n, "gb_per_s": x}; empty if not measured.
        machine: facts about the machine.
        versions: name of a component -> version.
        settings: how it was measured.
        layers: the layers, each a dictionary of the fields of `Layer` and `flops`.
        rows: the results.
    """

    command: list[str]
    settings: dict[str, Any]
    machine: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    started: str = ""
    finished: str = ""
    interrupted: bool = False
    bandwidth: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failures(self) -> list[Row]:
        """Our rows that failed or computed something wrong."""
        return [row for row in self.rows if row.status in (WRONG, FAILED) and row.kind == OWN]

    def json(self) -> str:
        """Return the report as JSON text."""
        content = {"schema": SCHEMA, **_finite(asdict(self))}
        return json.dumps(content, indent=1, allow_nan=False, default=str) + "\n"


def spread(values: Sequence[float]) -> float | None:
    """Return the interquartile range over the median, or None below three values."""
    if len(values) < 3:
        return None
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def ratio(row: Row, best: Row) -> float:
    """Return the time of a row over that of another: the median over the rounds that measured both."""
    passes = _paired(row, best)
    if passes:
        return statistics.median(itertools.chain(*passes))
    return (row.seconds or math.nan) / (best.seconds or math.nan)


def ratio_interval(row: Row, best: Row) -> tuple[float, float, float] | None:
    """Return the interval that holds the ratio of two rows with 95 % confidence, and the ratio in between.

    Of one pass, its ends are measured ratios: those whose ranks the median of as many tosses of a coin says (order
    statistics), so that nothing is assumed of how the ratios are distributed. None below six rounds, which cannot say
    that much.

    Rounds of one pass share who uses the machine beside, so they say nothing of what another pass
    would. Of several passes the ends follow from how far apart their medians lie, as logarithms, by Student's
    distribution (the method of batch means; Law, Simulation Modeling and Analysis).
    """
    passes = _paired(row, best)
    pooled = sorted(itertools.chain(*passes))
    if len(passes) > 1:
        middle = statistics.median(pooled)
        deviation = statistics.stdev(math.log(statistics.median(ratios)) for ratios in passes)
        reach = math.exp(student(len(passes) - 1, CONFIDENCE) * deviation / math.sqrt(len(passes)))
        return middle / reach, middle, middle * reach
    rank = _rank(len(pooled))
    return (pooled[rank], statistics.median(pooled), pooled[-1 - rank]) if rank >= 0 else None


@functools.cache
def _rank(count: int) -> int:
    """Return the greatest r for which value r from either end of `count` sorted ones encloses the median; or -1."""
    below, rank = 0, -1
    for r in range(count // 2):
        below += math.comb(count, r)
        if 2 * below > (1 - CONFIDENCE) * 2**count:
            break
        rank = r
    return rank


def _paired(row: Row, best: Row) -> list[list[float]]:
    """Return the ratios of the rounds that measured both, a list for each pass."""
    times = {sample.round: sample.seconds for sample in best.samples}
    passes: dict[int, list[float]] = {}
    for sample in row.samples:
        if sample.round in times:
            passes.setdefault(sample.visit, []).append(sample.seconds / times[sample.round])
    return list(passes.values())


def fastest(rows: Sequence[Row]) -> Row | None:
    """Return the row with the least time, or None if none was timed."""
    timed = [row for row in rows if row.seconds is not None]
    return min(timed, key=lambda row: row.seconds or 0.0, default=None)


def undecided_words(report: Report) -> str:
    """Return how many ratios are uncertain, in a sentence; "" if none is."""
    timed = [row for row in report.rows if row.status == OK and row.seconds]
    count = sum(row.undecided for row in timed)
    if not count:
        return ""
    precision = report.settings.get("precision")
    reach = "far" if precision is None else f"more than {100 * precision:g} %"
    return (
        f"{count} of {len(timed)} rows are undecided: the {100 * CONFIDENCE:g} % interval of the time over that of the "
        f"fastest reaches {reach} to a side or, of the fastest, that of another reaches to 1."
    )


def common_prefix(names: list[str]) -> str:
    """Return "network/" if all layers are of one network."""
    prefixes = {name.partition("/")[0] for name in names if "/" in name}
    alone = len(prefixes) == 1 and all("/" in name for name in names)
    return f"{prefixes.pop()}/" if alone else ""


def _finite(value: Any) -> Any:
    """Return the value with infinities and NaN as text, which JSON has no numbers for."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
