"""The cache of compiled kernels under attack: strangers, full disks, killed processes."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from leanconv import cache
from leanconv.cache import ObjectCache, make_key
from stores import DATA, KEY, OTHER, counters, file_of, files

posix = pytest.mark.skipif(os.name != "posix", reason="owners and modes of files")


@pytest.fixture
def store(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "cache", "rw")


@pytest.fixture
def file(store: ObjectCache) -> Path:
    """The file of an entry that has been stored."""
    assert store.put(KEY, DATA, {"algorithm": "direct"})
    return file_of(store, KEY)


@posix
@pytest.mark.parametrize("level", range(4))
def test_what_others_may_write_is_refused(store: ObjectCache, file: Path, level: int) -> None:
    path = [file, *file.parents][level]
    for mode in (0o020, 0o002):
        before = path.stat().st_mode
        path.chmod(before | mode)
        victim = ObjectCache(store.directory)
        with pytest.warns(RuntimeWarning, match="can be written by other users"):
            assert victim.get(KEY) is None
        with warnings.catch_warnings(action="error"):  # Only one warning.
            assert victim.get(KEY) is None
            assert victim.put(KEY, DATA, {}) == (level == 0)  # A new file takes the place of a bad one.
        assert counters(victim)[:2] == (0, 2)
        assert victim.info().rejected >= 2
        if level:
            path.chmod(before)
    assert store.get(KEY) == DATA


@posix
def test_what_belongs_to_others_is_refused(store: ObjectCache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    if user == 0:
        os.chown(file, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert store.get(KEY) is None
    assert file.exists()
    assert counters(store) == (0, 1, 1, 0)


@posix
def test_links_and_special_files_are_not_followed(store: ObjectCache, file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    file.rename(elsewhere)
    file.symlink_to(elsewhere)
    assert store.get(KEY) is None
    file.unlink()
    file.mkdir(mode=0o700)
    assert store.get(KEY) is None
    assert not store.put(KEY, DATA, {})
    file.rmdir()
    os.mkfifo(file, mode=0o600)
    with pytest.warns(RuntimeWarning, match="is not a file"):
        assert store.get(KEY) is None
    assert store.put(KEY, DATA, {})
    assert store.get(KEY) == DATA
    assert files(store) == [file]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("step", ["write", "replace", "open", "mkdir"])
def test_a_failing_disk_is_counted_and_leaves_the_old_entry(
    store: ObjectCache, file: Path, monkeypatch: pytest.MonkeyPatch, code: int, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    key = OTHER if step == "mkdir" else KEY
    with monkeypatch.context() as patch:
        if step == "write":
            patch.setattr(os, "fdopen", lambda descriptor, *_: Full(descriptor, code))
        else:
            patch.setattr(os, step, fail)
        assert not store.put(key, b"new", {})
    assert counters(store) == (0, 0, 0, 1)
    assert files(store) == [file]
    assert store.get(KEY) == DATA


class Full:
    """A file on a full disk: takes a few bytes, then fails."""

    def __init__(self, descriptor: int, code: int) -> None:
        self.descriptor, self.code = descriptor, code

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def write(self, blob: bytes) -> None:
        os.write(self.descriptor, blob[:10])
        raise OSError(self.code, os.strerror(self.code))


@posix
def test_a_file_that_may_not_grow(store: ObjectCache, file: Path) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        stored = store.put(OTHER, bytes(100_000), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert not stored
    assert files(store) == [file]
    assert store.info().write_errors == 1


@posix
def test_a_read_only_directory_is_still_read(store: ObjectCache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() == 0:  # Root may write anyway: only pretend.
        real = os.open

        def refuse(path: str, flags: int, *rest: int) -> int:
            if flags & os.O_CREAT:
                raise PermissionError(errno.EACCES, "refused", path)
            return real(path, flags, *rest)

        monkeypatch.setattr(os, "open", refuse)
    file.parent.chmod(0o500)
    try:
        assert store.get(KEY) == DATA
        assert not store.put(KEY, b"new", {})
        assert store.get(KEY) == DATA
    finally:
        file.parent.chmod(0o700)
    assert counters(store) == (2, 0, 0, 1)


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    store = ObjectCache(tmp_path / "cache")
    assert store.get(KEY) is None
    assert not store.put(KEY, DATA, {})
    assert store.clear() == 0
    assert counters(store) == (0, 1, 0, 1)


WRITER = """
import os, random, sys, time
from leanconv import cache

class SlowFile:
    def __init__(self, descriptor, mode):
        self.file = open(descriptor, mode, buffering=0)
    def __enter__(self):
        return self
    def __exit__(self, *_):
        self.file.close()
        time.sleep(0.002)
    def write(self, blob):
        for start in range(0, len(blob), 10_000):
            self.file.write(blob[start : start + 10_000])
            time.sleep(0.0002)

if sys.argv[2] == "slow":  # A disk that takes its time, so that most kills find an entry half written.
    os.fdopen = SlowFile
store, rng = cache.ObjectCache(sys.argv[1], "rw"), random.Random()
keys = [cache.make_key({"number": str(number)}) for number in range(12)]
print("ready", flush=True)
while True:
    number = rng.randrange(12)
    data = bytes([number]) * (100 + number * 50_000)
    assert store.put(keys[number], data, {"version": rng.random()}), "writers are in each other's way"
    found = store.get(keys[rng.randrange(12)])
    assert found is None or len(found) == 100 + found[0] * 50_000, "a wrong entry was served"
"""


def test_killed_writers_leave_whole_entries_only(store: ObjectCache) -> None:
    rng = random.Random(1)
    numbered = [make_key({"number": str(number)}) for number in range(12)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cache.__file__).parent.parent)}
    left_over = 0
    for _ in range(2):
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", WRITER, store.directory, speed],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
            for speed in ("fast", "slow", "fast", "slow")
        ]
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        for writer in writers:
            time.sleep(rng.uniform(0.02, 0.1))
            writer.kill()
            errors = writer.communicate()[1]
            assert writer.returncode != 1, errors.decode()
        found = [store.get(key) for key in numbered]
        for number, data in enumerate(found):
            assert data in (None, bytes([number]) * (100 + number * 50_000))
        assert any(found)
        assert store.info().rejected == 0
        assert store.info().entries == sum(data is not None for data in found)
        left_over += sum(path.suffix != ".lco" for path in files(store))
    # Some must have been killed while they wrote, or this test shows nothing.
    assert left_over
    store.clear()
    assert files(store) == []
