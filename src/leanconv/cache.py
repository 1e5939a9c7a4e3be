"""The cache of compiled kernels on disk: one file an entry, verified wholly whenever it is read.

Object code is executed, so nothing is believed that the user (or root) did not write: a file or folder that
belongs to another user, or that others may write, is not used. A file is

    magic | SHA-256 of all that follows and of the key | length of note and of payload | note (JSON) | payload

written under a temporary name and moved into place: a process that is killed at any moment, or a full disk,
leaves the old entry or none. Nothing that goes wrong on disk is an error to the caller: it is counted, and
costs a compilation.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import struct
import sys
import time
import warnings
from collections.abc import Iterator, Mapping

from leanconv.classes import dataclass
from leanconv.errors import ArgumentTypeError, ArgumentValueError, CacheError
from leanconv.locks import new_lock

_MODES = ("off", "ro", "rw")
_MAGIC = b"LEANCO\x00\x01"
_HEADER = struct.Struct("<8s32sQQ")
_SUFFIX, _TEMPORARY = ".lco", ".tmp"
_HEX = frozenset("0123456789abcdef")
_HOUR = 3600.0  # Seconds: how stale a time of use may be, and how old a temporary file before it is litter.
_TIDY_EVERY = 64  # Writes between two looks at the size of the whole.
_FLAGS = sum(getattr(os, name, 0) for name in ("O_BINARY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"))


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """The state of a cache; counters are of this process.

    Attributes:
        directory: where the files are.
        mode: `"off"`, `"ro"` (read only) or `"rw"`.
        entries: number of files; 0 with mode off, which does not look.
        bytes: their size together.
        max_bytes: what `bytes` is kept below, checked now and then.
        hits: entries found and verified.
        misses: look-ups without a usable entry.
        rejected: misses because of a file that was damaged or not to be trusted.
        write_errors: entries that could not be stored.
    """

    directory: str
    mode: str
    entries: int
    bytes: int
    max_bytes: int
    hits: int
    misses: int
    rejected: int
    write_errors: int


def make_key(parts: Mapping[str, str]) -> str:
    """Return the key of an entry: the SHA-256, in hex, of everything its content depends on.

    Raises:
        ArgumentTypeError: a name or a value is not a string.
    """
    for name, value in parts.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise ArgumentTypeError(f"parts[{name!r}]", value, "names and values must be strings")
    # JSON, because joined text could not tell {"a": "b,c"} from {"a": "b", "c": ""}.
    return hashlib.sha256(json.dumps(sorted(parts.items())).encode()).hexdigest()


class ObjectCache:
    """Payloads by key, shared by all processes of a user. Safe for any number of threads and processes."""

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        mode: str | None = None,
        max_bytes: int = 256 << 20,
        folder: str = "objects",
    ) -> None:
        """Choose the place; the disk is not touched before the first use.

        Args:
            directory: None for `LEANCONV_CACHE_DIR`, else the user's cache directory of the platform.
            mode: `"off"`, `"ro"` or `"rw"`; None for `LEANCONV_CACHE`, else `"rw"`.
            max_bytes: size to keep all files together below; the least recently used go first.
            folder: name of the folder inside `directory` that holds the files.

        Raises:
            ArgumentValueError: another mode, or a limit below one byte.
        """
        source = "mode" if mode is not None else "LEANCONV_CACHE"
        given = mode if mode is not None else os.environ.get(source, "")
        self.mode = given.strip().lower() or "rw"
        if self.mode not in _MODES:
            raise ArgumentValueError(source, given, "must be off, ro or rw")
        if max_bytes < 1:
            raise ArgumentValueError("max_bytes", max_bytes, "must be at least 1")
        self.max_bytes = max_bytes
        self._warned = False
        self._counts = {"hits": 0, "misses": 0, "rejected": 0, "write_errors": 0}
        self._lock = new_lock()
        # At random, so that many short processes together look at the size as often as a long one does.
        self._writes_until_tidy = os.urandom(1)[0] % _TIDY_EVERY
        chosen = os.path.expanduser(directory or os.environ.get("LEANCONV_CACHE_DIR", ""))
        if not chosen:
            chosen = _of_the_user()
            if chosen.startswith("~") and self.mode != "off":
                # No home directory is known (a container's anonymous user): do not litter the current one.
                self.mode = "off"
                self._warn("no home directory is known, kernels are not kept; set LEANCONV_CACHE_DIR")
        self.directory = os.path.abspath(chosen)
        self._objects = os.path.join(self.directory, folder)

    def get(self, key: str) -> bytes | None:
        """Return what was stored under `key`, or None."""
        path = self._path(key)
        if self.mode == "off":
            return None
        payload = None
        with contextlib.suppress(OSError):
            payload = self._read(path, key)
        self._count("misses" if payload is None else "hits")
        return payload

    def holds(self, key: str) -> bool:
        """Whether there is a file for `key`, not whether it is sound."""
        return self.mode != "off" and os.path.exists(self._path(key))

    def put(self, key: str, data: bytes, note: Mapping[str, object]) -> bool:
        """Store `data` under `key`; `note` is for people who look at the file.

        Returns:
            Whether it is stored: not so unless the mode is rw, and if the disk did not allow it.
        """
        path = self._path(key)
        if self.mode != "rw":
            return False
        blob = _pack(key, data, note)
        if len(blob) > self.max_bytes:
            return False
        try:
            try:
                stored = self._trusted_folders(path)
            except FileNotFoundError:
                _make_folders(self.directory, self._objects, os.path.dirname(path))
                stored = self._trusted_folders(path)
            if stored:
                _write(path, blob)
        except OSError:
            stored = False
        if not stored:
            self._count("write_errors")
        with self._lock:
            tidy = self._writes_until_tidy <= 0
            self._writes_until_tidy = _TIDY_EVERY - 1 if tidy else self._writes_until_tidy - 1
        if tidy:
            self._tidy()
        return stored

    def payloads(self) -> Iterator[bytes]:
        """Return what is stored in every file that can be trusted and is whole."""
        for path, _ in () if self.mode == "off" else self._files(_SUFFIX):
            key = os.path.basename(path).removesuffix(_SUFFIX)
            payload = None
            with contextlib.suppress(OSError):
                payload = self._read(path, key)
            if payload is not None:
                yield payload

    def clear(self) -> int:
        """Delete all entries, and what killed processes left; returns how many entries were deleted.

        Raises:
            CacheError: the cache is read only.
        """
        if self.mode == "ro":
            raise CacheError(f"the cache in {self.directory} is read only (LEANCONV_CACHE=ro)")
        if self.mode == "off":
            return 0
        deleted = sum(_remove(path) for path, _ in self._files(_SUFFIX))
        for path, _ in self._files(_TEMPORARY):
            _remove(path)
        for folder in self._matching("??"):
            with contextlib.suppress(OSError):  # Another process may have put something there.
                os.rmdir(folder)
        return deleted

    def info(self) -> CacheInfo:
        """Return place, size and counters."""
        sizes = [] if self.mode == "off" else [status.st_size for _, status in self._files(_SUFFIX)]
        with self._lock:
            counts = dict(self._counts)
        return CacheInfo(self.directory, self.mode, len(sizes), sum(sizes), self.max_bytes, **counts)

    def _path(self, key: str) -> str:
        if len(key) != 64 or not _HEX.issuperset(key):  # Would be a path of the caller's choice.
            raise ArgumentValueError("key", key, "must be 64 hexadecimal digits, as make_key returns")
        return os.path.join(self._objects, key[:2], key + _SUFFIX)

    def _read(self, path: str, key: str) -> bytes | None:
        """Return the payload of a file that can be trusted and is whole; OSError if it cannot be read."""
        # The opener's descriptor is closed even if the file turns out to be something that cannot be read.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _FLAGS)) as file:
            status = os.fstat(file.fileno())
            if not self._trusted(path, status, stat.S_ISREG(status.st_mode)) or not self._trusted_folders(path):
                return None
            payload = _unpack(key, file.read())
        if payload is None:
            self._count("rejected")
        if self.mode == "rw":
            if payload is None:
                _remove(path)
            elif abs(time.time() - status.st_mtime) > _HOUR:
                with contextlib.suppress(OSError):
                    os.utime(path)
        return payload

    def _trusted_folders(self, path: str) -> bool:
        folders = (self.directory, self._objects, os.path.dirname(path))
        return all(self._trusted(folder, os.stat(folder)) for folder in folders)

    def _trusted(self, path: str, status: os.stat_result, right_kind: bool = True) -> bool:
        reason = "" if right_kind else "is not a file"
        if sys.platform != "win32":  # Elsewhere the access lists of the user's profile protect it.
            if status.st_uid not in (os.geteuid(), 0):
                reason = f"belongs to another user ({status.st_uid})"
            elif status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                reason = "can be written by other users (chmod go-w would do)"
        if reason:
            self._count("rejected")
            self._warn(f"{path} {reason}: not used, because code from it would be executed")
        return not reason

    def _warn(self, text: str) -> None:
        with self._lock:
            first, self._warned = not self._warned, True
        if first:
            warnings.warn(f"leanconv cache: {text}", RuntimeWarning, stacklevel=3)

    def _count(self, what: str) -> None:
        with self._lock:
            self._counts[what] += 1

    def _files(self, suffix: str) -> Iterator[tuple[str, os.stat_result]]:
        for path in self._matching("??", "*" + suffix):
            with contextlib.suppress(OSError):  # Deleted by another process meanwhile.
                yield path, os.lstat(path)

    def _matching(self, *pattern: str) -> list[str]:
        import glob  # only here: to read and to write an entry takes none

        return glob.glob(os.path.join(glob.escape(self._objects), *pattern))

    def _tidy(self) -> None:
        """Delete old temporary files and, if there is too much, the entries not used for longest."""
        for path, status in self._files(_TEMPORARY):
            if time.time() - status.st_mtime > _HOUR:
                _remove(path)
        found = sorted((status.st_mtime_ns, path, status.st_size) for path, status in self._files(_SUFFIX))
        total = sum(size for _, _, size in found)
        # Down to a little less than allowed, or the next look would have to delete again.
        enough = self.max_bytes if total <= self.max_bytes else self.max_bytes * 0.9
        for _, path, size in found:
            if total > enough and _remove(path):
                total -= size


def _of_the_user() -> str:
    """The user's cache directory of the platform for leanconv; begins with "~" if no home directory is known."""
    if sys.platform != "linux":
        import platformdirs

        return platformdirs.user_cache_dir("leanconv", appauthor=False)
    # The same as platformdirs finds, without its import, which takes longer than all that a warm call reads.
    base = os.environ.get("XDG_CACHE_HOME", "").strip()
    return os.path.join(base if os.path.isabs(base) else os.path.expanduser("~/.cache"), "leanconv")


def _digest(key: str, lengths: bytes, note: bytes, payload: bytes) -> bytes:
    """Cover the key too: a file under another entry's name must not be taken for that entry."""
    return hashlib.sha256(b"".join((key.encode(), lengths, note, payload))).digest()


def _pack(key: str, payload: bytes, note: Mapping[str, object]) -> bytes:
    text = json.dumps(dict(note), sort_keys=True, default=str).encode()
    lengths = struct.pack("<QQ", len(text), len(payload))
    return b"".join((_MAGIC, _digest(key, lengths, text, payload), lengths, text, payload))


def _unpack(key: str, blob: bytes) -> bytes | None:
    """Return the payload if every byte of the file is what `_pack` wrote for this key."""
    if len(blob) < _HEADER.size:
        return None
    magic, digest, note_length, length = _HEADER.unpack_from(blob)
    if magic != _MAGIC or len(blob) != _HEADER.size + note_length + length:
        return None
    start = _HEADER.size + note_length
    note, payload = blob[_HEADER.size : start], blob[start:]
    return payload if digest == _digest(key, blob[40:56], note, payload) else None


def _write(path: str, blob: bytes) -> None:
    """Make a file under a name of its own in the same folder, then move it to `path` in one step."""
    temporary = f"{path}.{os.getpid()}.{os.urandom(6).hex()}{_TEMPORARY}"
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | _FLAGS, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(blob)
        os.replace(temporary, path)
    except BaseException:
        _remove(temporary)
        raise


def _make_folders(*folders: str) -> None:
    """Make the last of these folders, and those before it if they are missing; others may do so at the same time."""
    try:
        os.mkdir(folders[-1], 0o700)
    except FileExistsError:
        pass
    except FileNotFoundError:
        for folder in folders:
            os.makedirs(folder, mode=0o700, exist_ok=True)


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
