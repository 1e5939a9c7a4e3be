"""What was measured on this machine, remembered on disk: one small file a record, verified wholly when it is read.

A record is found by what it depends on: the sources that generate code and lower problems, LLVM, the CPU and its
caches, and the question itself. Whatever changes makes another key, so nothing stale is ever read. The files lie beside
the compiled kernels and are written the same way: a process that is killed at any moment, or a damaged file, costs the
one record it was about.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from leanconv.cache import CacheInfo, ObjectCache, make_key
from leanconv.errors import CacheError
from leanconv.facts import digest_of_sources
from leanconv.host import this_host

FORMAT = "leanconv records 1"
_MOST_BYTES = 64 << 20


class Records:
    """Records by key: JSON objects, each with its key parts in it, so that they can be exported and checked."""

    def __init__(self, directory: str | os.PathLike[str] | None = None, mode: str | None = None) -> None:
        """As `ObjectCache`: None for what `LEANCONV_CACHE_DIR` and `LEANCONV_CACHE` say."""
        self._cache = ObjectCache(directory, mode, _MOST_BYTES, folder="records")

    @property
    def mode(self) -> str:
        """What is done with the disk: "off", "ro" (read only) or "rw"."""
        return self._cache.mode

    def get(self, parts: Mapping[str, str]) -> dict[str, Any] | None:
        """The record about exactly these parts, or None."""
        data = self._cache.get(make_key(parts))
        return None if data is None else _decode(data, parts)

    def put(self, parts: Mapping[str, str], record: Mapping[str, Any]) -> bool:
        """Remember a record; returns whether the disk and the mode allowed it."""
        text = json.dumps({"parts": dict(parts), "record": dict(record)}, sort_keys=True)
        return self._cache.put(make_key(parts), text.encode(), {"about": str(parts.get("problem", ""))[:200]})

    def __iter__(self) -> Iterator[tuple[dict[str, str], dict[str, Any]]]:
        """All records that can be read: their parts, and themselves."""
        for data in self._cache.payloads():
            entry = _entry(data)
            if entry is not None:
                yield entry

    def clear(self) -> int:
        """Delete all records; returns how many.

        Raises:
            CacheError: the records are read only.
        """
        return self._cache.clear()

    def info(self) -> CacheInfo:
        """Place, size and counters."""
        return self._cache.info()

    def export(self, path: str | os.PathLike[str]) -> int:
        """Write all records to one JSON file, in one step; returns how many."""
        entries = [{"parts": parts, "record": record} for parts, record in self]
        write_json(path, {"format": FORMAT, "records": entries})
        return len(entries)

    def merge(self, path: str | os.PathLike[str]) -> int:
        """Take in the records of an exported file that are not here already; returns how many were new.

        Raises:
            CacheError: the file cannot be read or is none of ours; or nothing can be written here.
        """
        if self.mode != "rw":
            raise CacheError(f"records cannot be written (LEANCONV_CACHE={self.mode})")
        found = read_json(path, FORMAT)
        entries = found.get("records")
        checked = [_entry(json.dumps(entry).encode()) for entry in entries] if isinstance(entries, list) else [None]
        added = 0
        for entry in checked:
            if entry is None:
                raise CacheError(
                    f"{os.fspath(path)}: holds something that is no record; nothing more was taken from it"
                )
            if self.get(entry[0]) is None:
                added += self.put(*entry)
        return added


@functools.cache
def records() -> Records:
    """The records of this user on this machine."""
    return Records()


def machine_key(kind: str, **parts: str) -> dict[str, str]:
    """Key parts of a record: the machine, and what it is about."""
    return {"kind": kind, "machine": _machine(), "host": repr(this_host()), **parts}


@functools.cache
def _machine() -> str:
    from leanconv.codegen.jit import llvm_version
    from leanconv.machine import cpu_name

    return f"{cpu_name()}; {llvm_version()}"


@functools.cache
def sources_digest() -> str:
    """A digest of all sources that decide what a plan is and what code it becomes."""
    return digest_of_sources("codegen", "kernels", "algorithms")


def write_json(path: str | os.PathLike[str], value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step: a reader sees the old one or the new one.

    Raises:
        CacheError: the file cannot be written.
    """
    target = os.fspath(path)
    temporary = f"{target}.{os.getpid()}.tmp"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1, sort_keys=True)
            file.write("\n")
        os.replace(temporary, target)
    except OSError as error:
        raise CacheError(f"{target} cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def read_json(path: str | os.PathLike[str], wanted: str) -> dict[str, Any]:
    """Read a JSON file of the format wanted.

    Raises:
        CacheError: it cannot be read, or is something else.
    """
    name = os.fspath(path)
    try:
        with open(name, encoding="utf-8") as file:
            found = json.load(file)
    except OSError as error:
        raise CacheError(f"{name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise CacheError(f"{name} is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != wanted:
        raise CacheError(f"{name} does not hold {wanted!r}")
    return found


def _entry(data: bytes) -> tuple[dict[str, str], dict[str, Any]] | None:
    """Parts and record of a payload, or None if it holds something else."""
    try:
        found = json.loads(data)
        parts, record = found["parts"], found["record"]
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(parts, dict) or not isinstance(record, dict):
        return None
    if not all(isinstance(word, str) for pair in parts.items() for word in pair):
        return None
    return parts, record


def _decode(data: bytes, parts: Mapping[str, str]) -> dict[str, Any] | None:
    entry = _entry(data)
    return entry[1] if entry is not None and entry[0] == dict(parts) else None
