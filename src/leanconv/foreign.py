"""Code outside this package, in algorithms and kernels that a program adds: what is kept on disk depends on it too."""

from __future__ import annotations

import functools
import os
import sys
from typing import Any

from leanconv.classes import field_names

_PLAIN = frozenset((int, str, float, bool, type(None), bytes))
_KNOWN = (__name__.partition(".")[0], "builtins", "fractions")


def sources(*objects: Any) -> str:
    """A digest of the sources of the objects' classes, and of what their fields hold; "" if all are of this package.

    Where a class has no source file, such as in an interactive session, the digest is one of this process only, so that
    nothing that was kept for other code is ever found.
    """
    found: set[str] = set()
    for each in objects:
        _collect(each, found)
    names = sorted(found)
    if not names:
        return ""
    import hashlib  # only here: most processes have no such code

    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + _source(name))
    return digest.hexdigest()


def _collect(value: Any, found: set[str]) -> None:
    """Add the names of foreign modules that the classes of a value and of what it holds are of."""
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is tuple or kind is list:
        for each in value:
            if type(each) not in _PLAIN:
                _collect(each, found)
        return
    if kind.__module__.partition(".")[0] not in _KNOWN:
        found.add(kind.__module__)
    if isinstance(value, tuple | list):
        for each in value:
            _collect(each, found)
    else:
        for name in field_names(kind):
            _collect(getattr(value, name), found)


def _source(module: str) -> bytes:
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        if file:
            with open(file, "rb") as opened:
                return opened.read()
    except OSError:
        pass
    return _process()


@functools.cache
def _process() -> bytes:
    return os.urandom(16)
