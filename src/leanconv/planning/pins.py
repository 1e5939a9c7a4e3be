"""Lock files: the plans of a model written down, so that production and CI run those and no others.

A file maps each question (problem, threads, memory limit, weights bound or not) to a decision: algorithm, threads and
settings. It names no machine: a decision holds wherever it can be carried out.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import Any

from leanconv.checks import flag
from leanconv.classes import replace
from leanconv.errors import CacheError, LeanconvError
from leanconv.plan import Plan
from leanconv.planning.candidates import Terms, algorithm_named, candidate
from leanconv.problem import Problem

FORMAT = "leanconv lock 1"


class Pins:
    """Decisions by question; what `record_plans` collects and `pinned` holds to."""

    def __init__(self, decisions: dict[str, dict[str, Any]] | None = None, *, strict: bool = False) -> None:
        self.decisions = decisions or {}
        self.strict = strict
        self.recording = False

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the lock file in one step; returns how many plans it pins.

        Raises:
            CacheError: it cannot be written.
        """
        from leanconv.planning.records import write_json

        write_json(path, {"format": FORMAT, "plans": self.decisions})
        return len(self.decisions)

    def note(self, question: str, plan: Plan) -> None:
        """Remember what was decided."""
        self.decisions[question] = {
            "algorithm": plan.algorithm,
            "threads": plan.threads,
            "settings": dict(plan.tunables),
            "workspace_bytes": plan.workspace_bytes,
        }


_active: contextvars.ContextVar[Pins | None] = contextvars.ContextVar("leanconv_pins", default=None)


def active() -> Pins | None:
    """The pins that hold here, or None."""
    return _active.get()


@contextlib.contextmanager
def record_plans() -> Iterator[Pins]:
    """Collect the plans that are made within this block (in this thread or task); `save` writes them down."""
    pins = Pins()
    pins.recording = True
    token = _active.set(pins)
    try:
        yield pins
    finally:
        _active.reset(token)


@contextlib.contextmanager
def pinned(path: str | os.PathLike[str], *, strict: bool = True) -> Iterator[Pins]:
    """Within this block (in this thread or task) plans are those of a lock file.

    Args:
        path: a file that `Pins.save` wrote.
        strict: whether a problem that the file does not hold is an error; otherwise it is planned as usual.

    Raises:
        CacheError: the file cannot be read, or is no lock file.
    """
    from leanconv.planning.records import read_json

    plans = read_json(path, FORMAT).get("plans")
    if not isinstance(plans, dict) or not all(map(_is_decision, plans.values())):
        raise CacheError(f"{os.fspath(path)} holds something that is no plan")
    token = _active.set(Pins(plans, strict=flag("strict", strict)))
    try:
        yield _active.get() or Pins()
    finally:
        _active.reset(token)


def question(problem: Problem, terms: Terms) -> str:
    """The text under which a decision is kept."""
    asked = f"{problem!r}; threads={terms.threads}; memory_limit={terms.limit}; bound={terms.bound}"
    return asked if terms.workspace is None else f"{asked}; workspace_limit={terms.workspace}"


def decided(pins: Pins, asked: str, problem: Problem, terms: Terms) -> Plan | None:
    """The plan that is pinned for a question, or None if there is none and none is needed.

    Raises:
        CacheError: nothing is pinned and the pins are strict, or what is pinned cannot be carried out here.
    """
    decision = pins.decisions.get(asked)
    if decision is None:
        if pins.strict:
            raise CacheError(f"the lock file pins no plan for {problem.describe()} ({asked.partition('; ')[2]})")
        return None
    try:
        algorithm = algorithm_named(decision["algorithm"])
        kept = replace(terms, threads=decision["threads"], parameters=decision["settings"])
        found = candidate(problem, algorithm, kept)
    except LeanconvError as error:
        raise CacheError(f"the plan that is pinned for {problem.describe()} does not apply: {decision}") from error
    if not kept.kept(found.plan):
        raise CacheError(f"the plan that is pinned for {problem.describe()} needs {found.needed_bytes:,} bytes now")
    return found.plan


def _is_decision(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    settings = value.get("settings")
    return (
        isinstance(value.get("algorithm"), str)
        and type(value.get("threads")) is int
        and value["threads"] > 0
        and isinstance(settings, dict)
        and all(isinstance(k, str) and type(v) is int and v > 0 for k, v in settings.items())
    )
