"""Why a gradient with respect to weights is computed by this algorithm: the same answer as for forward passes."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from leanconv.backward.choice import GradientCandidate, choose_gradient, excluded, fits, gradient_candidate
from leanconv.backward.plan import BackwardWeightsPlan
from leanconv.backward.registry import WEIGHTS
from leanconv.planning.explain import CHOSEN, OVER, REFUSED, SLOWER, UNFIT, Explanation, Offer, Verdict, explanation
from leanconv.planning.tuning import example_array
from leanconv.planning.wanted import AlgorithmLike
from leanconv.problem import Problem, to_user
from leanconv.sizes import format_bytes

ROUNDS = 5


def explain_gradient(
    problem: Problem,
    algorithm: AlgorithmLike,
    threads: int,
    limit: int | None,
    *,
    accuracy: str = "standard",
    measure: bool = False,
    budget: float = 1.0,
) -> Explanation:
    """Explain the choice that `choose_gradient` makes.

    Args:
        problem: the convolution, with direction "backward_weights".
        algorithm: as in `choose_gradient`; so is accuracy.
        threads: the most threads.
        limit: bytes of workspace, or None.
        accuracy: see there.
        measure: whether every algorithm that fits is timed now.
        budget: seconds for that.

    Raises:
        ArgumentTypeError: the algorithm is no text.
        ArgumentValueError: no algorithm has that name.
        NotApplicableError: the algorithm cannot compute the problem.
        MemoryLimitError: nothing fits the limit; says the least that would do.
    """
    plan = choose_gradient(problem, algorithm, threads, limit, accuracy)
    unfit = excluded(problem, algorithm, accuracy)
    reasons = {entry.name: entry.refusal(problem) for entry in WEIGHTS}
    found = [gradient_candidate(problem, entry, threads, limit) for entry in WEIGHTS if not reasons[entry.name]]
    contest = [entry.plan for entry in found if fits(entry, limit)]
    times = _measured(problem, contest, budget) if measure else {}
    rows = [_row(entry, plan, unfit, limit, times.get(entry.plan.algorithm)) for entry in found]
    rows.sort(key=lambda row: (row.verdict != CHOSEN, row.verdict == OVER, row.predicted_seconds or 0.0))
    rows += [_refused(name, reason) for name, reason in reasons.items() if reason]
    return explanation(problem, plan, threads, limit, tuple(rows), _offers(problem, plan, threads, limit, accuracy))


def _row(
    entry: GradientCandidate,
    chosen: BackwardWeightsPlan,
    unfit: Mapping[str, str],
    limit: int | None,
    seconds: float | None,
) -> Verdict:
    plan = entry.plan
    verdict, reason = SLOWER, ""
    if plan.algorithm == chosen.algorithm:
        verdict = CHOSEN
    elif plan.algorithm in unfit:
        verdict, reason = UNFIT, unfit[plan.algorithm]
    elif not fits(entry, limit):
        verdict, reason = OVER, f"needs {format_bytes(plan.workspace_bytes)}"
    return Verdict(
        name=plan.algorithm,
        verdict=verdict,
        reason=reason,
        workspace_bytes=plan.workspace_bytes,
        packed_weight_bytes=0,
        needed_bytes=plan.workspace_bytes,
        threads=plan.threads,
        predicted_seconds=entry.predicted_seconds,
        measured_seconds=seconds,
        error_class=next(known.error_class for known in WEIGHTS if known.name == plan.algorithm),
    )


def _refused(name: str, reason: str) -> Verdict:
    error_class = next(entry.error_class for entry in WEIGHTS if entry.name == name)
    return Verdict(name, REFUSED, reason, None, None, None, None, None, None, error_class)


def _offers(
    problem: Problem, plan: BackwardWeightsPlan, threads: int, limit: int | None, accuracy: str
) -> tuple[Offer, ...]:
    """What no limit would buy."""
    if limit is None:
        return ()
    chosen = next(entry for entry in WEIGHTS if entry.name == plan.algorithm)
    now = gradient_candidate(problem, chosen, plan.threads, limit).predicted_seconds
    free = choose_gradient(problem, "auto", threads, None, accuracy)
    entry = next(entry for entry in WEIGHTS if entry.name == free.algorithm)
    best = gradient_candidate(problem, entry, threads, None).predicted_seconds
    if free.workspace_bytes <= limit or best >= 0.98 * now:
        return ()
    return (Offer(free.workspace_bytes, free.algorithm, now / best),)


def _measured(problem: Problem, contest: list[BackwardWeightsPlan], budget: float) -> dict[str, float]:
    """Seconds of a call of each algorithm, the shortest of some rounds in turns; the first one is always timed."""
    p, rng = problem, np.random.default_rng(0)
    if not p.batch:
        return {}
    x = example_array(p.x_shape, to_user(p.x_strides, p.layout), p, rng)
    grad = example_array(p.out_shape, to_user(p.out_strides, p.layout), p, rng)
    result = example_array(p.w_shape, p.w_strides, p, rng)
    bias = example_array((p.out_channels,), (1,), p, rng) if p.has_bias else None
    times: dict[str, float] = {}
    end = time.perf_counter() + budget
    for number in range(ROUNDS):
        for plan in contest:
            if times and time.perf_counter() > end:
                return times
            if number == 0:
                plan.run(x, grad, result, bias)
            begin = time.perf_counter()
            plan.run(x, grad, result, bias)
            took = time.perf_counter() - begin
            times[plan.algorithm] = min(took, times.get(plan.algorithm, took))
    return times
