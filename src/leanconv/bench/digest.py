"""What a report comes to: contestants, their scores over sets of layers, and what each layer moves and computes.

The page, the pictures and the Markdown tables all show these figures, so that they agree.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.bench.report import NOISY, OK, Report, Row, fastest, ratio

# The set of layers that no network is named for.
UNNAMED = "other layers"
# The set of all layers.
EVERY = ""


@dataclass(frozen=True)
class Contestant:
    """An algorithm, or another library, in one layout.

    Attributes:
        label: what charts call it; the layout is in it if results have several.
        algorithm: its name.
        layout: "NCHW", "NHWC" or what the library prefers.
        peer: whether it is another library.
        version: of the library.
        hue: number of its algorithm among all, for colours and markers.
    """

    label: str
    algorithm: str
    layout: str
    peer: bool
    version: str
    hue: int


@dataclass(frozen=True)
class Work:
    """A layer and what it needs by definition.

    Attributes:
        name: of the layer.
        set: the network it belongs to.
        short: the name without the network.
        shape: on one line.
        repeats: how often the network holds it.
        flops: multiplications and additions.
        bytes: of image, weights and output, each once.
        intensity: FLOPs a byte.
    """

    name: str
    set: str
    short: str
    shape: str
    repeats: int
    flops: int
    bytes: int
    intensity: float


@dataclass(frozen=True)
class Result:
    """A row of the report, with what it is compared with.

    Attributes:
        layer: index of the layer.
        contestant: index of the contestant.
        relative: time over that of the layer's fastest on as many threads; None if it was not timed.
        best: whether it is that fastest one.
        memory: bytes beyond image, weights and output: for leanconv the declared workspace and packed weights, for
            other libraries the measured rise of memory; None if unknown.
    """

    layer: int
    contestant: int
    threads: int
    status: str
    reason: str
    ran: str
    parameters: str
    seconds: float | None
    spread: float | None
    noisy: bool
    undecided: bool
    gflops: float | None
    percent: float | None
    relative: float | None
    best: bool
    memory: int | None
    workspace: int
    packed: int
    extra: int | None
    cold: float | None
    error: float | None
    compared: str


@dataclass(frozen=True)
class Score:
    """What a contestant comes to over a set of layers on some threads.

    Attributes:
        set: the set; `EVERY` for all layers.
        contestant: index.
        layers: how many of the set it was timed on.
        of: how many the set has.
        wins: on how many it was the fastest.
        relative: geometric mean of its time over that of the fastest.
        percent: geometric mean of its percent of peak.
        total: time of the network, repeats counted; None if a layer is missing.
        memory: the most any layer needs; None if unknown.
        noisy: on how many layers its times are noisy or undecided.
    """

    set: str
    contestant: int
    threads: int
    layers: int
    of: int
    wins: int
    relative: float
    percent: float
    total: float | None
    memory: int | None
    noisy: int


@dataclass(frozen=True)
class Digest:
    """All that is shown of a report.

    Attributes:
        peaks: threads -> measured FMA peak in GFLOP/s, the median of all rounds.
        bandwidths: threads -> speed of memory in GB/s.
        scores: the best first, for each set and number of threads; after these who misses layers of the set.
    """

    contestants: list[Contestant]
    layers: list[Work]
    sets: list[str]
    threads: list[int]
    results: list[Result]
    scores: list[Score]
    peaks: dict[int, float]
    bandwidths: dict[int, float]

    def json(self) -> dict[str, Any]:
        """Return all of it as what JSON can hold; what is not finite is None."""
        return _plain(dataclasses.asdict(self))  # type: ignore[no-any-return]


def digest(report: Report) -> Digest:
    """Return what a report comes to. Rows that stand for no contestant ("all": none applies) are left out."""
    rows = [row for row in report.rows if row.algorithm != "all"]
    contestants, places = _contestants(rows)
    layers = [_work(content, report.settings["dtype"]) for content in report.layers]
    where = {layer.name: index for index, layer in enumerate(layers)}
    best: dict[tuple[str, int], Row | None] = {}
    for row in rows:
        key = (row.layer, row.threads)
        if key not in best:
            best[key] = fastest([other for other in rows if (other.layer, other.threads) == key])
    results = [_result(row, where[row.layer], places[_key(row)], best[row.layer, row.threads]) for row in rows]
    timed = [row for row in rows if row.peak_gflops]
    threads = sorted({row.threads for row in rows})
    return Digest(
        contestants,
        layers,
        list(dict.fromkeys(layer.set for layer in layers)),
        threads,
        results,
        _scores(results, layers),
        {n: _peak([row for row in timed if row.threads == n]) for n in threads if any(r.threads == n for r in timed)},
        {entry["threads"]: entry["gb_per_s"] for entry in report.bandwidth},
    )


def memory_bytes(row: Row) -> int | None:
    """Return the bytes a row needs beyond image, weights and output; None if nobody knows."""
    if row.status != OK:
        return None
    return row.extra_peak_bytes if row.kind == "peer" else row.workspace_bytes + row.packed_weight_bytes


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats or equals in both coordinates, smaller being better, by the first."""
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _key(row: Row) -> tuple[str, str, str]:
    return row.kind, row.algorithm, row.layout


def _contestants(rows: Sequence[Row]) -> tuple[list[Contestant], dict[tuple[str, str, str], int]]:
    """Return the contestants, other libraries last, and where each is."""
    keys = sorted(dict.fromkeys(map(_key, rows)), key=lambda key: key[0] == "peer")
    hues = {pair: hue for hue, pair in enumerate(dict.fromkeys(key[:2] for key in keys))}
    several = {pair for pair in hues if sum(key[:2] == pair for key in keys) > 1}
    versions = {_key(row): row.version for row in rows if row.version}
    contestants = []
    for key in keys:
        kind, algorithm, layout = key
        label = f"{algorithm} {layout}" if (kind, algorithm) in several else algorithm
        hue = hues[kind, algorithm]
        contestants.append(Contestant(label, algorithm, layout, kind == "peer", versions.get(key, ""), hue))
    return contestants, {key: place for place, key in enumerate(keys)}


def _work(content: dict[str, Any], dtype: str) -> Work:
    fields = {field.name for field in dataclasses.fields(Layer)}
    layer = Layer(**{name: value for name, value in content.items() if name in fields})
    problem = layer.problem("NHWC", dtype)
    network, slash, short = layer.name.partition("/")
    moved = problem.x_bytes + problem.w_bytes + problem.out_bytes
    return Work(
        layer.name,
        network if slash else UNNAMED,
        short if slash else layer.name,
        layer.short(),
        layer.repeats,
        problem.flops,
        moved,
        problem.flops / moved,
    )


def _result(row: Row, layer: int, contestant: int, best: Row | None) -> Result:
    return Result(
        layer=layer,
        contestant=contestant,
        threads=row.threads,
        status=row.status,
        reason=row.reason,
        ran=row.ran if row.ran != row.algorithm else "",
        parameters=", ".join(f"{name} {value}" for name, value in row.parameters.items()),
        seconds=row.seconds,
        spread=row.spread,
        noisy=row.spread is not None and row.spread > NOISY,
        undecided=row.undecided,
        gflops=row.gflops,
        percent=row.percent_of_peak,
        relative=ratio(row, best) if best and row.seconds else None,
        best=row is best,
        memory=memory_bytes(row),
        workspace=row.workspace_bytes,
        packed=row.packed_weight_bytes,
        extra=row.extra_peak_bytes,
        cold=row.cold_seconds,
        error=row.error,
        compared=row.compared,
    )


def _scores(results: Sequence[Result], layers: Sequence[Work]) -> list[Score]:
    groups: dict[tuple[str, int, int], list[Result]] = {}
    for result in results:
        if result.seconds is not None:
            for name in (EVERY, layers[result.layer].set):
                groups.setdefault((name, result.contestant, result.threads), []).append(result)
    sizes = {name: sum(layer.set == name for layer in layers) for name in {layer.set for layer in layers}}
    sizes[EVERY] = len(layers)
    scores = [_score(*key, group, sizes[key[0]], layers) for key, group in groups.items()]
    # Means over other layers are no better or worse: who misses some comes after all that miss none.
    return sorted(scores, key=lambda score: (score.threads, score.layers < score.of, score.relative))


def _score(
    name: str, contestant: int, threads: int, results: Sequence[Result], size: int, layers: Sequence[Work]
) -> Score:
    memory = [result.memory for result in results if result.memory is not None]
    return Score(
        set=name,
        contestant=contestant,
        threads=threads,
        layers=len(results),
        of=size,
        wins=sum(result.best for result in results),
        relative=statistics.geometric_mean(result.relative or math.nan for result in results),
        percent=statistics.geometric_mean(result.percent or math.nan for result in results),
        total=sum((r.seconds or 0.0) * layers[r.layer].repeats for r in results) if len(results) == size else None,
        memory=max(memory) if len(memory) == len(results) else None,
        noisy=sum(result.noisy or result.undecided for result in results),
    )


def _peak(rows: Sequence[Row]) -> float:
    values = [sample.peak_gflops for row in rows for sample in row.samples]
    return statistics.median(values or [row.peak_gflops or math.nan for row in rows])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
