"""Choosing by measurement: candidates take turns on random arrays; their times are remembered on disk."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided

from leanconv.arrays import Array, address_of
from leanconv.classes import dataclass, replace
from leanconv.foreign import sources
from leanconv.outputs import new_output
from leanconv.plan import Plan
from leanconv.planning.candidates import Candidate, Terms, algorithm_named, candidate
from leanconv.planning.records import machine_key, records, sources_digest
from leanconv.problem import Problem, to_user
from leanconv.registry import added

FEW, NEAR = 4, 1.6  # how many of the best by the model are timed, and how far they may be behind the first
SHORT = 300e-6  # seconds of a call below which one thread is timed too
SAMPLE = 1e-3  # seconds that a sample lasts at least
ROUNDS = 9
_SETTINGS = (1, 2, 4, 8, 16, 32, 64)


def fastest(
    problem: Problem,
    fitting: Sequence[Candidate],
    terms: Terms,
    *,
    exhaustive: bool,
    budget: float,
) -> Plan:
    """The plan that measures fastest of the candidates, the best by the model first.

    Args:
        problem: what is computed.
        fitting: candidates that keep to the terms, best by the model first.
        terms: what others that are timed keep to; calls are timed with packed weights if they are bound.
        exhaustive: time all of them with all settings, however long it takes.
        budget: seconds, otherwise.
    """
    if exhaustive:
        contest = [*fitting, *_settings(problem, fitting, terms)]
    else:
        near = [entry for entry in fitting if entry.predicted_seconds <= NEAR * fitting[0].predicted_seconds]
        contest = (near if len(near) > 1 else list(fitting[:2]))[:FEW]
        contest += _alone(problem, contest, terms)
    times = measured(problem, contest, bound=terms.bound, budget=None if exhaustive else budget)
    return min(contest, key=lambda entry: times.get(signature(entry.plan), float("inf"))).plan


def _alone(problem: Problem, contest: Sequence[Candidate], terms: Terms) -> list[Candidate]:
    """The candidates of short calls again, on one thread: others may take longer to come than they save."""
    found = []
    for entry in contest:
        if entry.threads > 1 and entry.predicted_seconds < SHORT:
            same = replace(terms, threads=1, parameters=entry.plan.tunables)
            alone = candidate(problem, entry.plan.chosen, same)
            found += [alone] if same.kept(alone.plan) else []
    return found


def measured(problem: Problem, contest: Sequence[Candidate], *, bound: bool, budget: float | None) -> dict[str, float]:
    """Seconds of a call by `signature`: those remembered, and those measured now and then remembered.

    With a budget those that it does not reach are missing, but for the first.
    """
    known = remembered(problem, bound=bound)
    missing = [entry for entry in contest if signature(entry.plan) not in known]
    if missing:
        fresh = _time(problem, missing, bound=bound, budget=budget)
        # Others may have measured meanwhile: what they found stays.
        known = {**remembered(problem, bound=bound), **fresh}
        if problem.batch:
            records().put(_key(problem, bound=bound), {"kind": "times", "seconds": known})
    return known


def remembered(problem: Problem, *, bound: bool) -> dict[str, float]:
    """Seconds of a call by `signature`, as measured before on this machine with these sources."""
    found = (records().get(_key(problem, bound=bound)) or {}).get("seconds")
    if not isinstance(found, dict):
        return {}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float) and value > 0}


def signature(plan: Plan) -> str:
    """A text for what a plan does: algorithm, threads and settings."""
    return json.dumps([plan.algorithm, plan.threads, dict(plan.parameters)], sort_keys=True)


def _key(problem: Problem, *, bound: bool) -> dict[str, str]:
    code = sources_digest() + sources(*added())
    return machine_key("times", code=code, problem=repr(problem), bound=str(bound))


def _settings(problem: Problem, fitting: Sequence[Candidate], terms: Terms) -> list[Candidate]:
    """The candidates again, with each of their tunables at other values."""
    result: list[Candidate] = []
    seen = {signature(entry.plan) for entry in fitting}
    for entry in fitting:
        algorithm = algorithm_named(entry.name)
        for name in algorithm.tunables:
            for value in _SETTINGS:
                changed = replace(terms, threads=entry.threads, parameters={name: value})
                other = candidate(problem, algorithm, changed)
                if changed.kept(other.plan) and signature(other.plan) not in seen:
                    seen.add(signature(other.plan))
                    result.append(other)
    return result


@dataclass(slots=True)
class _Runner:
    """A candidate that is ready to be called."""

    name: str
    call: Callable[[], object]
    calls: int = 1
    samples: list[float] = field(default_factory=list)


def _time(problem: Problem, contest: Sequence[Candidate], *, bound: bool, budget: float | None) -> dict[str, float]:
    """Seconds of a call of each, the shortest of several rounds in turns."""
    arrays = example_arrays(problem)
    end = float("inf") if budget is None else time.perf_counter() + budget
    ready: list[_Runner] = []
    for entry in contest:
        if ready and time.perf_counter() > end:
            break
        one = _Runner(signature(entry.plan), ready_call(entry.plan, arrays, bound=bound))
        one.call()
        one.samples.append(_seconds(one))
        one.calls = max(1, int(SAMPLE / one.samples[0]))
        ready.append(one)
    for _ in range(ROUNDS):
        for one in ready:
            if time.perf_counter() < end:
                one.samples.append(_seconds(one))
    return {one.name: min(one.samples) for one in ready}


def _seconds(one: _Runner) -> float:
    begin = time.perf_counter()
    for _ in range(one.calls):
        one.call()
    return max(time.perf_counter() - begin, 1e-9) / one.calls


def ready_call(plan: Plan, arrays: dict[str, Array], *, bound: bool) -> Callable[[], object]:
    """A call of a plan on `example_arrays`, with weights packed beforehand if bound."""
    x, w, out, bias, residual = (arrays.get(name) for name in ("x", "w", "out", "bias", "residual"))
    if bound:
        layer = plan.bind(w, bias)
        return lambda: layer(x, out=out, residual=residual)
    runner = plan.unbound_runner()
    places = [0 if array is None else address_of(array) for array in (x, out, residual, w, bias)]
    return lambda: runner.run(*places)


def example_arrays(problem: Problem) -> dict[str, Array]:
    """Arrays that lie in memory as the problem says, with normally distributed elements."""
    p, rng = problem, np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        "x": (p.x_shape, to_user(p.x_strides, p.layout)),
        "w": (p.w_shape, p.w_strides),
        "out": (p.out_shape, to_user(p.out_strides, p.layout)),
    }
    if p.residual_strides is not None:
        shapes["residual"] = (p.out_shape, to_user(p.residual_strides, p.layout))
    if p.has_bias:
        shapes["bias"] = ((p.out_channels,), (1,))
    return {name: example_array(shape, strides, p, rng) for name, (shape, strides) in shapes.items()}


def example_array(shape: tuple[int, ...], strides: tuple[int, ...], p: Problem, rng: Any) -> Array:
    """A new array of normally distributed elements of a problem's type; strides count elements."""
    ends = [step * (extent - 1) for step, extent in zip(strides, shape, strict=True) if extent]
    low, high = sum(end for end in ends if end < 0), sum(end for end in ends if end > 0)
    block = new_output((high - low + 1,), np.dtype(p.dtype))
    block[:] = rng.standard_normal(block.shape, dtype=np.float32)
    return as_strided(block[-low:], shape, tuple(step * p.itemsize for step in strides))
