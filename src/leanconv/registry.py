"""Algorithms from outside: a program registers its own, and they stand beside the published ones everywhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.errors import ArgumentTypeError, ArgumentValueError
from leanconv.locks import new_lock

ERROR_CLASSES = ("plain", "float64", "transformed")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_RESERVED = ("auto", "all")
_forget: list[Callable[[], None]] = []
_lock = new_lock()


def register_algorithm(algorithm: Algorithm) -> None:
    """Add an algorithm to those that `algorithms`, `plan`, `explain`, `conv2d` and the bench know, in this process.

    It comes behind all others. "auto" weighs it wherever it applies, unless its `automatic` is false.

    Args:
        algorithm: an instance of a subclass of `leanconv.algorithms.base.Algorithm`; docs/adding-an-algorithm.md shows
            one in full.

    Raises:
        ArgumentTypeError: not such an instance, or an attribute of another type than `Algorithm` says.
        ArgumentValueError: a name that is taken or is no lower-case word, or an error class that there is not.
    """
    _check(algorithm)
    with _lock:
        if algorithm.name in REGISTRY.names:
            raise ArgumentValueError("algorithm", algorithm.name, "must have a name that no other algorithm has")
        REGISTRY.add(algorithm)
    _changed()


def unregister_algorithm(name: str) -> None:
    """Take away an algorithm that `register_algorithm` added; plans that were made with it go on working.

    Args:
        name: its name.

    Raises:
        ArgumentTypeError: not a text.
        ArgumentValueError: no algorithm of that name was registered.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError("name", name, "must be a text")
    with _lock:
        known = [entry.name for entry in REGISTRY.added]
        if name not in known:
            there = ", ".join(known) or "none"
            raise ArgumentValueError("name", name, f"must be that of a registered algorithm (there are: {there})")
        REGISTRY.remove(name)
    _changed()


def forget_with(forget: Callable[[], None]) -> Callable[[], None]:
    """Have `forget` called whenever the registry changes; for what is remembered of choices. Returns it."""
    _forget.append(forget)
    return forget


def added() -> tuple[Algorithm, ...]:
    """The algorithms that were registered."""
    return REGISTRY.added


def _changed() -> None:
    for forget in _forget:
        forget()


def _check(algorithm: Any) -> None:
    """Refuse what the rest could not work with."""
    if not isinstance(algorithm, Algorithm):
        rule = "must be an instance of a subclass of leanconv.algorithms.base.Algorithm"
        if isinstance(algorithm, type) and issubclass(algorithm, Algorithm):
            rule += f", such as {algorithm.__name__}()"
        raise ArgumentTypeError("algorithm", algorithm, rule)
    for attribute in ("name", "title", "paper", "error_class"):
        value = getattr(algorithm, attribute, None)
        if not isinstance(value, str) or not value:
            raise ArgumentTypeError("algorithm", algorithm, f"must have a {attribute} that is a text, not {value!r}")
    if not _NAME.fullmatch(algorithm.name) or algorithm.name in _RESERVED:
        rule = f"must have a name of lower-case letters, digits and underscores that is none of {', '.join(_RESERVED)}"
        raise ArgumentValueError("algorithm", algorithm.name, rule)
    if algorithm.error_class not in ERROR_CLASSES:
        rule = f"must have one of the error classes {', '.join(ERROR_CLASSES)}"
        raise ArgumentValueError("algorithm", algorithm.error_class, rule)
    tunables = algorithm.tunables
    if not isinstance(tunables, Mapping) or not all(isinstance(t, str) for pair in tunables.items() for t in pair):
        raise ArgumentTypeError("algorithm", tunables, "must have tunables that map names to what they mean")
    if not isinstance(algorithm.sum_order, str | None):
        raise ArgumentTypeError("algorithm", algorithm.sum_order, "must have a sum_order that is a text or None")
