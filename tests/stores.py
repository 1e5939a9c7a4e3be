"""What tests of the cache on disk look at: an entry, its file, and what was counted."""

from __future__ import annotations

from pathlib import Path

from leanconv.cache import ObjectCache, make_key

KEY = make_key({"kernel": "direct"})
OTHER = make_key({"kernel": "pointwise"})
DATA = bytes(range(256)) * 3


def file_of(store: ObjectCache, key: str) -> Path:
    return Path(store.directory, "objects", key[:2], key + ".lco")


def files(store: ObjectCache) -> list[Path]:
    return sorted(path for path in Path(store.directory).rglob("*") if path.is_file())


def counters(store: ObjectCache) -> tuple[int, int, int, int]:
    info = store.info()
    return info.hits, info.misses, info.rejected, info.write_errors
