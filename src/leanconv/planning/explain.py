"""Why this plan: a problem in numbers, and every algorithm with its bytes, its time and a verdict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import field
from typing import Any, Protocol

from leanconv.algorithms import REGISTRY
from leanconv.classes import dataclass, replace
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, Terms, candidate, candidates, fits
from leanconv.planning.choice import choose
from leanconv.planning.counters import counted
from leanconv.planning.figures import figures
from leanconv.planning.torch_backend import torch_backend
from leanconv.planning.tuning import example_arrays, measured, ready_call, remembered, signature
from leanconv.planning.wanted import wanted
from leanconv.problem import Problem
from leanconv.sizes import format_bytes
from leanconv.staging import refusal

CHOSEN, SLOWER, OVER, UNFIT, REFUSED = "chosen", "slower", "over the limit", "not allowed", "not applicable"
COUNTED = 5  # calls of which the processor's counters are read


class Decided(Protocol):
    """What an explanation says of a plan, of whatever direction."""

    threads: int

    @property
    def algorithm(self) -> str:
        """The algorithm's name."""

    @property
    def steps(self) -> list[str]:
        """What a call does, in words, in order."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of workspace."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one algorithm.

    Attributes:
        name: the algorithm.
        verdict: "chosen", "slower", "over the limit", "not allowed" or "not applicable".
        reason: a few words more, or "".
        workspace_bytes: of the plan that the limit leads to; None if the algorithm does not apply.
        packed_weight_bytes: of the same.
        needed_bytes: what counts against the limit.
        threads: how many it would use.
        predicted_seconds: by the cost model.
        measured_seconds: of earlier measurements or, if asked for, of one made now; None if there is none.
        error_class: how its rounding compares with a plain sum.
    """

    name: str
    verdict: str
    reason: str
    workspace_bytes: int | None
    packed_weight_bytes: int | None
    needed_bytes: int | None
    threads: int | None
    predicted_seconds: float | None
    measured_seconds: float | None
    error_class: str


@dataclass(frozen=True, slots=True)
class Offer:
    """What a higher limit would buy: from so many bytes this algorithm, so many times as fast as the one chosen."""

    needed_bytes: int
    name: str
    speedup: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """An answer to: why this plan?

    Attributes:
        problem: what is computed.
        plan: what runs.
        threads: the most threads.
        memory_limit: bytes, or None.
        flops: multiplications and additions of the definition.
        compulsory_bytes: image, weights, bias, residual and output, each moved once.
        intensity: operations for each of these bytes.
        peak_gflops: of so many threads, from the peak of one.
        roofline_gflops: what peak and memory allow for that intensity.
        rows: one for each algorithm; the chosen one first, then the fastest first, then those that cannot run.
        offers: what the next bytes would buy, the fewest bytes first.
        torch_backend: the back end that PyTorch would take, such as "Mkldnn"; None if PyTorch is not loaded.
        counters: what the processor counted in one call of the chosen algorithm on one thread ("cycles",
            "instructions", ...), if it was measured.
        counters_missing: why some are not among them, or "".
    """

    problem: Problem
    plan: Decided
    threads: int
    memory_limit: int | None
    flops: int
    compulsory_bytes: int
    intensity: float
    peak_gflops: float
    roofline_gflops: float
    rows: tuple[Verdict, ...]
    offers: tuple[Offer, ...]
    torch_backend: str | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    counters_missing: str = ""

    @property
    def memory_gb_per_s(self) -> float:
        """What one thread reads from memory here."""
        return figures().memory

    def plot(self, path: str | os.PathLike[str], title: str = "") -> None:
        """Draw time against memory, with the front of the best, and the roofline into a PNG, SVG or PDF.

        Raises:
            PlotError: matplotlib is missing, or the file's format is not known.
        """
        from leanconv.planning.explain_plot import draw

        draw(self, os.fspath(path), title)

    def __str__(self) -> str:
        """The text, at most 100 columns wide but for long reasons."""
        from leanconv.planning.text import explanation_text

        return explanation_text(self)


def explain_problem(
    problem: Problem,
    algorithm: Any,
    threads: int,
    limit: int | None,
    *,
    accuracy: str = "standard",
    deterministic: bool = False,
    how: str = "model",
    measure: bool = False,
    budget: float = 1.0,
) -> Explanation:
    """Explain the choice that `choose` makes for these arguments (weights bound).

    Args:
        problem: what is to be computed.
        algorithm: as in `choose`; so are threads, limit, accuracy, deterministic, how and budget.
        threads: see there.
        limit: see there.
        accuracy: see there.
        deterministic: see there.
        how: see there.
        measure: whether every algorithm that fits is timed now, unless it was before.
        budget: seconds for that.
    """
    plan = choose(
        problem,
        algorithm,
        threads,
        limit,
        accuracy=accuracy,
        deterministic=deterministic,
        how=how,
        budget=budget,
    )
    allowed = wanted(algorithm, accuracy, deterministic, problem)
    reasons = {entry.name: refusal(entry, problem) for entry in REGISTRY}
    able = [name for name, reason in reasons.items() if reason is None]
    found = candidates(problem, able, Terms(threads, limit, keep_threads=allowed.insisted))
    if measure:
        contest = [entry for entry in found if fits(entry, limit) and entry.name in allowed.names]
        times = measured(problem, contest, bound=True, budget=budget)
    else:
        times = remembered(problem, bound=True)
    rows = []
    for entry in found:
        verdict, reason = _verdict(entry, plan, limit, allowed.refused)
        took, chosen = times.get(signature(entry.plan)), times.get(signature(plan))
        if verdict == SLOWER and took is not None and chosen is not None and took < chosen:
            reason = 'by the model; measured faster, choose="measure" goes by that'
        rows.append(_row(entry, verdict, reason, took))
    rows.sort(key=lambda row: (row.verdict != CHOSEN, row.verdict == UNFIT, row.verdict == OVER))
    rows += [_refused(name, reason) for name, reason in reasons.items() if reason is not None]
    offers = _offers(problem, plan, able, threads, limit, allowed.refused)
    answer = explanation(problem, plan, threads, limit, tuple(rows), offers)
    if not measure or not problem.batch:
        return answer
    counters, missing = _counted(problem, plan, limit)
    return replace(answer, counters=counters, counters_missing=missing)


def _counted(problem: Problem, plan: Plan, limit: int | None) -> tuple[dict[str, float], str]:
    """What the processor counts in a call of the algorithm chosen, on this thread alone."""
    alone = candidate(problem, plan.chosen, Terms(1, limit, parameters=plan.tunables)).plan
    call = ready_call(alone, example_arrays(problem), bound=True)
    call()
    return counted(call, COUNTED)


def explanation(
    problem: Problem,
    plan: Decided,
    threads: int,
    limit: int | None,
    rows: tuple[Verdict, ...],
    offers: tuple[Offer, ...],
) -> Explanation:
    """An explanation, with the problem's numbers and the roofline of so many threads here."""
    nbytes = _compulsory(problem)
    known = figures()
    intensity = problem.flops / max(nbytes, 1)
    peak = known.gflops * threads * (0.5 if problem.dtype == "float64" else 1.0)
    return Explanation(
        problem=problem,
        plan=plan,
        threads=threads,
        memory_limit=limit,
        flops=problem.flops,
        compulsory_bytes=nbytes,
        intensity=intensity,
        peak_gflops=peak,
        roofline_gflops=min(peak, intensity * known.memory),
        rows=rows,
        offers=offers,
        torch_backend=torch_backend(problem),
    )


def _compulsory(problem: Problem) -> int:
    bias = problem.out_channels * problem.itemsize if problem.has_bias else 0
    return problem.x_bytes + problem.w_bytes + bias + problem.out_bytes * (2 if problem.residual else 1)


def _verdict(entry: Candidate, plan: Plan, limit: int | None, refused: dict[str, str]) -> tuple[str, str]:
    if entry.name == plan.algorithm:
        return CHOSEN, ""
    if entry.name in refused:
        return UNFIT, refused[entry.name]
    if not fits(entry, limit):
        return OVER, f"needs {format_bytes(entry.needed_bytes)}"
    return SLOWER, ""


def _row(entry: Candidate, verdict: str, reason: str, seconds: float | None) -> Verdict:
    plan = entry.plan
    return Verdict(
        name=entry.name,
        verdict=verdict,
        reason=reason,
        workspace_bytes=plan.workspace_bytes,
        packed_weight_bytes=plan.packed_weight_bytes,
        needed_bytes=entry.needed_bytes,
        threads=entry.threads,
        predicted_seconds=entry.predicted_seconds,
        measured_seconds=seconds,
        error_class=plan.chosen.error_class,
    )


def _refused(name: str, reason: str) -> Verdict:
    return Verdict(name, REFUSED, reason, None, None, None, None, None, None, REGISTRY[name].error_class)


def _offers(
    problem: Problem, plan: Plan, able: list[str], threads: int, limit: int | None, refused: dict[str, str]
) -> tuple[Offer, ...]:
    """Ever faster candidates for ever more bytes, all of them faster than what was chosen."""
    if limit is None:
        return ()
    from leanconv.planning.model import seconds

    names = [name for name in able if name not in refused]
    more = [e for e in candidates(problem, names, Terms(threads)) if e.needed_bytes > limit]
    now = best = seconds(plan)
    offers = []
    for entry in sorted(more, key=lambda entry: entry.needed_bytes):
        if entry.predicted_seconds < 0.98 * best:
            best = entry.predicted_seconds
            offers.append(Offer(entry.needed_bytes, entry.name, now / best))
    return tuple(offers)
