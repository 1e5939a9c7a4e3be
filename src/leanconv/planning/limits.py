"""The memory limit that holds where a call names none: `set_memory_limit`, and `with memory_limit(...)`."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

from leanconv.sizes import parse_bytes

UNLIMITED = "unlimited"
_chosen: int | None = None
_scoped: contextvars.ContextVar[int | str | None] = contextvars.ContextVar("leanconv_memory_limit", default=None)


def get_memory_limit() -> int | None:
    """The bytes that a call made now may use without a limit of its own; None for any number."""
    scoped = _scoped.get()
    if scoped is None:
        return _chosen
    return None if isinstance(scoped, str) else scoped


def set_memory_limit(limit: int | str | None) -> None:
    """Set what workspace, and packed weights beyond the plain ones, of each call may take, in the whole process.

    Args:
        limit: bytes, or text such as "32MiB"; None or "unlimited" for any number.

    Raises:
        ArgumentTypeError: neither an int nor a text.
        ArgumentValueError: negative, or not understood.
    """
    global _chosen
    _chosen = None if limit == UNLIMITED else parse_bytes(limit, "limit")


@contextlib.contextmanager
def memory_limit(limit: int | str) -> Iterator[None]:
    """Within this block (in this thread or task only) calls that name no limit of their own have this one.

    Args:
        limit: bytes, or text such as "32MiB"; "unlimited" for none.

    Raises:
        ArgumentTypeError: neither an int nor a text.
        ArgumentValueError: negative, or not understood.
    """
    value = UNLIMITED if limit == UNLIMITED else parse_bytes(limit, "limit")
    token = _scoped.set(value)
    try:
        yield
    finally:
        _scoped.reset(token)


def resolve_limit(limit: Any) -> int | None:
    """The bytes that an argument `memory_limit` stands for: its own, or if None what holds by default."""
    if limit is None:
        return get_memory_limit()
    if isinstance(limit, str) and limit.strip().lower() == UNLIMITED:
        return None
    return parse_bytes(limit, "memory_limit")
