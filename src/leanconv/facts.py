"""Answers that cost milliseconds to find and seldom change, kept on disk under all that they depend on.

They lie beside the compiled kernels, and are verified, trusted and moved into place as those are; see `cache.py`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping

from leanconv.cache import ObjectCache, make_key

_MOST_BYTES = 1 << 20
_FRESH = 5.0  # seconds within which a file may change again without a change of its times


def remembered(parts: Mapping[str, str], find: Callable[[], str]) -> str:
    """What was found when it was first asked for with these parts, or what is found now."""
    cache = ObjectCache(max_bytes=_MOST_BYTES, folder="facts")
    key = make_key(parts)
    stored = cache.get(key)
    if stored is not None:
        return stored.decode()
    found = find()
    cache.put(key, found.encode(), parts)
    return found


@functools.cache
def digest_of_sources(*places: str) -> str:
    """A digest of files of this package, and of all Python files of its folders.

    Reading a hundred files takes milliseconds, asking for their sizes and times a tenth of that: as long as those (and
    the numbers of their inodes) are the same, so are the files. What has just been written may be written again within
    one tick of the file system's clock, and is read.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    states = []
    for place in places:
        path = os.path.join(here, place)
        if place.endswith(".py"):
            states.append((place, path, os.stat(path)))
            continue
        with os.scandir(path) as entries:
            states += [(f"{place}/{e.name}", e.path, e.stat()) for e in entries if e.name.endswith(".py")]
    states.sort()

    def read() -> str:
        digest = hashlib.sha256()
        for name, path, _ in states:
            digest.update(name.encode() + b"\0" + _content(path))
        return digest.hexdigest()

    newest = max((status.st_ctime for _, _, status in states), default=0.0)
    if abs(time.time() - newest) < _FRESH:
        return read()
    known = [(path, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev) for _, path, s in states]
    return remembered({"kind": "sources 1", "files": repr(known)}, read)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
