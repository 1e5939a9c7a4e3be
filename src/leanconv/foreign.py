"""Code outside this package, in algorithms and kernels that a program adds: what is kept on disk depends on it too."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

_PACKAGE = __name__.partition(".")[0]


def sources(*objects: Any) -> str:
    """A digest of the sources of the objects' classes, and of what their fields hold; "" if all are of this package.

    Where a class has no source file, such as in an interactive session, the digest is one of this process only, so that
    nothing that was kept for other code is ever found.
    """
    names = sorted({name for each in objects for name in _modules(each)})
    if not names:
        return ""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode() + b"\0" + _source(name))
    return digest.hexdigest()


def _modules(value: Any) -> Iterator[str]:
    kind = type(value)
    if kind.__module__.partition(".")[0] not in (_PACKAGE, "builtins"):
        yield kind.__module__
    if is_dataclass(value):
        for field in fields(value):
            yield from _modules(getattr(value, field.name))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _modules(each)


def _source(module: str) -> bytes:
    file = getattr(sys.modules.get(module), "__file__", None)
    try:
        return Path(file).read_bytes() if file else _process()
    except OSError:
        return _process()


@functools.cache
def _process() -> bytes:
    return os.urandom(16)
