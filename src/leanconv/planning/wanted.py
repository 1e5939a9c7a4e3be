"""What a caller asks of a plan: which algorithms, how accurate, whether always the same bits; checked here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, TypeAlias

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.checks import flag, one_of
from leanconv.classes import dataclass
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.problem import Problem
from leanconv.staging import error_bound, refusal

ACCURACIES = ("exact", "standard", "fast")
CHOICES = ("model", "measure", "exhaustive")
STANDARD = 4.0  # times the error bound of a plain sum that "standard" allows
AlgorithmLike: TypeAlias = str | Sequence[str] | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer to: which algorithms may run?

    Attributes:
        names: in the registry's order.
        insisted: whether the caller named what is to run, so that other requirements do not take it away.
        text: what the caller asked for, for messages.
        pick: the caller's function that chooses among candidates, or None.
        automatic: names that "auto" weighs for the problem.
        unfit: name -> why it may not run, for those that other requirements exclude.
    """

    names: tuple[str, ...]
    insisted: bool
    text: str
    pick: Callable[..., Any] | None = None
    automatic: tuple[str, ...] = ()
    unfit: dict[str, str] = field(default_factory=dict)

    @property
    def refused(self) -> dict[str, str]:
        """Name -> why it may not run, for all others of the registry."""
        by_name = {name: "excluded" if name in self.automatic else "taken by name only" for name in REGISTRY.names}
        return {name: why for name, why in (by_name | self.unfit).items() if name not in self.names}


def wanted(algorithm: Any, accuracy: Any, deterministic: Any, problem: Problem) -> Wanted:
    """Check the three arguments and return what they allow.

    Raises:
        ArgumentTypeError: an argument of the wrong type.
        ArgumentValueError: a name that no algorithm has, or nothing is left to choose from.
    """
    level = one_of("accuracy", accuracy, ACCURACIES)
    same_bits = flag("deterministic", deterministic)
    automatic = REGISTRY.weighed(problem)
    names, insisted, text, pick = named(algorithm, automatic)
    unfit: dict[str, str] = {}
    for name in () if insisted else names:
        reason = _unfit(REGISTRY[name], problem, level, same_bits)
        if reason:
            unfit[name] = reason
    kept = tuple([name for name in names if name not in unfit])
    if not kept:
        rule = f"leaves no algorithm to choose from ({'; '.join(f'{n}: {unfit[n]}' for n in names) or 'all excluded'})"
        raise ArgumentValueError("algorithm", algorithm, rule)
    return Wanted(kept, insisted, text, pick, automatic, unfit)


def named(
    algorithm: Any, automatic: tuple[str, ...], known: tuple[str, ...] | None = None
) -> tuple[tuple[str, ...], bool, str, Callable[..., Any] | None]:
    """Names (of "auto": `automatic`), whether they are insisted on, the text for messages, the function that picks.

    `known`: all names there are, those of the registry if None.
    """
    known = known or REGISTRY.names
    if isinstance(algorithm, str) and not algorithm.startswith("!"):
        if one_of("algorithm", algorithm, ["auto", *known]) == "auto":
            return automatic, False, "auto", None
        return (algorithm,), True, algorithm, None
    if callable(algorithm):
        return automatic, False, getattr(algorithm, "__name__", "the function"), algorithm
    words = [algorithm] if isinstance(algorithm, str) else algorithm
    if not isinstance(words, tuple | list) or not words or not all(isinstance(word, str) for word in words):
        rule = 'must be a name, several names, exclusions such as "!mec", a function, or "auto"'
        raise ArgumentTypeError("algorithm", algorithm, rule)
    kept: set[str] = set()
    excluded: set[str] = set()
    for word in words:
        name = word.removeprefix("!")
        found = {entry for entry in known if entry == name or entry.startswith(f"{name}_")}
        if name == "auto" and not word.startswith("!"):
            found = set(automatic)
        elif not found or (not word.startswith("!") and name not in known):
            rule = f"{word!r} names no algorithm (there are {', '.join(known)})"
            raise ArgumentValueError("algorithm", algorithm, rule)
        if word.startswith("!"):
            excluded |= found
        else:
            kept |= found if name == "auto" else {name}
    chosen = tuple(name for name in known if name in (kept or set(automatic)) - excluded)
    if not chosen:
        raise ArgumentValueError("algorithm", algorithm, "excludes every algorithm")
    return chosen, bool(kept) and "auto" not in words, ", ".join(words), None


def _unfit(algorithm: Algorithm, problem: Problem, accuracy: str, deterministic: bool) -> str | None:
    """Why an algorithm does not meet the requirements, or None."""
    if deterministic and algorithm.sum_order is None:
        return "deterministic: its sums have an order of their own"
    if accuracy == "exact" and algorithm.error_class not in ("plain", "float64"):
        return f"accuracy 'exact': its error class is {algorithm.error_class}"
    if accuracy == "standard" and algorithm.error_class not in ("plain", "float64"):
        reason = refusal(algorithm, problem)
        if reason is not None:  # a bound is stated for what can be computed
            return reason
        plain = Algorithm.error_bound(algorithm, problem)
        bound = error_bound(algorithm, problem)
        if bound > STANDARD * plain:
            return f"accuracy 'standard': its error bound is {bound:.0e}, {STANDARD * plain:.0e} is allowed"
    return None
