"""The cache of compiled kernels: nothing damaged, foreign or half written is ever served."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import platformdirs
import pytest

from guard import run_python
from leanconv import cache
from leanconv.cache import ObjectCache, make_key
from leanconv.errors import ArgumentTypeError, ArgumentValueError, CacheError
from stores import DATA, KEY, OTHER, counters, file_of, files


@pytest.fixture
def store(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path / "cache", "rw")


@pytest.fixture
def file(store: ObjectCache) -> Path:
    """The file of an entry that has been stored."""
    assert store.put(KEY, DATA, {"algorithm": "direct"})
    return file_of(store, KEY)


def test_round_trip(store: ObjectCache) -> None:
    assert store.get(KEY) is None
    assert store.put(KEY, DATA, {"algorithm": "direct", "tile": (4, 2)})
    assert store.get(KEY) == DATA
    assert ObjectCache(store.directory).get(KEY) == DATA
    assert store.get(OTHER) is None
    assert store.put(KEY, b"", {})
    assert store.get(KEY) == b""
    assert counters(store) == (2, 2, 0, 0)
    info = store.info()
    assert (info.entries, info.mode, info.directory) == (1, "rw", store.directory)
    assert info.bytes == file_of(store, KEY).stat().st_size


def test_file_format(file: Path) -> None:
    blob = file.read_bytes()
    note = json.dumps({"algorithm": "direct"}).encode()
    assert blob[:8] == b"LEANCO\x00\x01"
    assert blob[40:56] == len(note).to_bytes(8, "little") + len(DATA).to_bytes(8, "little")
    assert blob[56:] == note + DATA
    assert blob[8:40] == hashlib.sha256(KEY.encode() + blob[40:]).digest()


@pytest.mark.skipif(os.name != "posix", reason="modes of files")
def test_modes_of_files(store: ObjectCache, file: Path) -> None:
    assert file.stat().st_mode & 0o777 == 0o600
    for folder in (file.parent, file.parent.parent, Path(store.directory)):
        assert folder.stat().st_mode & 0o777 == 0o700


def test_every_flipped_bit_is_noticed(store: ObjectCache, file: Path) -> None:
    blob = file.read_bytes()
    # All of the header and the note, and some of the payload.
    places = [*range(90), *range(90, len(blob), 97), len(blob) - 1]
    for rejected, place in enumerate(places, 1):
        damaged = bytearray(blob)
        damaged[place] ^= 1 << place % 8
        file.write_bytes(damaged)
        assert store.get(KEY) is None, f"byte {place}"
        assert not file.exists()
        assert store.info().rejected == rejected
    file.write_bytes(blob)
    assert store.get(KEY) == DATA


def test_truncated_and_lengthened_files_are_rejected(store: ObjectCache, file: Path) -> None:
    blob = file.read_bytes()
    for damaged in [blob[:n] for n in (0, 1, 8, 40, 55, 56, 60, len(blob) - 1)] + [blob + b"\0", blob * 2]:
        file.write_bytes(damaged)
        assert store.get(KEY) is None
        assert not file.exists()


def test_an_entry_under_another_name_is_rejected(store: ObjectCache, file: Path) -> None:
    other = file_of(store, OTHER)
    other.parent.mkdir(mode=0o700, exist_ok=True)
    other.write_bytes(file.read_bytes())
    other.chmod(0o600)
    assert store.get(OTHER) is None
    assert store.get(KEY) == DATA


def test_off_touches_nothing(store: ObjectCache, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    off = ObjectCache(store.directory, "off")
    fresh = ObjectCache(Path(store.directory, "never"), "off")
    with monkeypatch.context() as patch:
        for name in ("open", "stat", "lstat", "scandir", "listdir", "unlink", "mkdir", "utime"):
            patch.setattr(os, name, lambda *_, **__: pytest.fail("the disk was touched"))
        for unused in (off, fresh):
            assert unused.get(KEY) is None
            assert not unused.put(KEY, b"new", {})
            assert unused.clear() == 0
            assert (unused.info().entries, unused.info().mode) == (0, "off")
    assert store.get(KEY) == DATA


def test_read_only_mode(store: ObjectCache, file: Path) -> None:
    reader = ObjectCache(store.directory, "ro")
    old = time.time() - 7200
    os.utime(file, (old, old))
    assert reader.get(KEY) == DATA
    assert file.stat().st_mtime == pytest.approx(old, abs=1)
    assert not reader.put(OTHER, DATA, {})
    file.write_bytes(b"damaged")
    assert reader.get(KEY) is None
    assert counters(reader) == (1, 1, 1, 0)
    with pytest.raises(CacheError, match="read only"):
        reader.clear()
    assert files(store) == [file]
    assert ObjectCache(Path(store.directory, "none"), "ro").get(KEY) is None
    assert not Path(store.directory, "none").exists()


def test_a_directory_deleted_meanwhile_is_made_again(store: ObjectCache, file: Path) -> None:
    assert store.clear() == 1
    assert not file.parent.exists()
    Path(store.directory, "objects").rmdir()
    Path(store.directory).rmdir()
    assert store.put(KEY, DATA, {})
    assert store.get(KEY) == DATA


def keys(count: int) -> Iterator[str]:
    return (make_key({"number": str(number)}) for number in range(count))


def test_size_is_bounded_and_the_least_recently_used_go(tmp_path: Path) -> None:
    store = ObjectCache(tmp_path, "rw", max_bytes=20_000)
    store._writes_until_tidy = 10_000
    now = time.time()
    for age, key in enumerate(keys(30)):
        assert store.put(key, bytes(1000), {})
        os.utime(file_of(store, key), (now - 90_000 + age, now - 90_000 + age))
    first, second, *_ = keys(30)
    assert store.get(first) is not None  # The oldest has been used just now.
    assert store.info().bytes > 30_000
    store._writes_until_tidy = 0
    last = make_key({"number": "last"})
    assert store.put(last, bytes(1000), {})
    assert 15_000 < store.info().bytes <= 18_000
    assert store.get(first) is not None
    assert store.get(second) is None
    assert store.get(last) is not None
    assert not store.put(second, bytes(20_000), {})  # Larger than all together may be.
    for key in keys(200):
        store.put(key, bytes(500), {})
        assert store.info().bytes <= 20_000 + 64 * 600


def test_the_time_of_use_is_renewed_once_an_hour(store: ObjectCache, file: Path) -> None:
    for age, renewed in ((1800, False), (4000, True), (-4000, True)):
        then = time.time() - age
        os.utime(file, (then, then))
        store.get(KEY)
        assert (abs(file.stat().st_mtime - time.time()) < 60) == renewed


def test_old_temporary_files_are_swept(store: ObjectCache, file: Path) -> None:
    young, old = (file.with_name(f"{file.name}.{name}.tmp") for name in ("1", "2"))
    for path in (young, old):
        path.write_bytes(b"half an en")
    then = time.time() - 4000
    os.utime(old, (then, then))
    assert store.info().entries == 1
    store._writes_until_tidy = 0
    store.put(OTHER, DATA, {})
    assert young.exists()
    assert not old.exists()
    assert store.clear() == 2
    assert files(store) == []


def test_clear_deletes_nothing_else(store: ObjectCache, file: Path) -> None:
    mine = [Path(store.directory, "notes.lco"), file.with_name("notes.txt")]
    for path in mine:
        path.write_text("mine")
    assert store.clear() == 1
    assert files(store) == sorted(mine)


def test_choice_of_place_and_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(tmp_path / "chosen"))
    monkeypatch.setenv("LEANCONV_CACHE", " RO ")
    assert (ObjectCache().directory, ObjectCache().mode) == (str(tmp_path / "chosen"), "ro")
    assert ObjectCache(tmp_path, "off").directory == str(tmp_path)
    monkeypatch.setenv("LEANCONV_CACHE", "yes")
    with pytest.raises(ArgumentValueError, match="LEANCONV_CACHE='yes': must be off, ro or rw"):
        ObjectCache()
    monkeypatch.setenv("LEANCONV_CACHE", "")
    monkeypatch.delenv("LEANCONV_CACHE_DIR")
    for chosen in ("", str(tmp_path / "xdg"), "not/absolute"):
        monkeypatch.setenv("XDG_CACHE_HOME", chosen)
        assert ObjectCache().directory == platformdirs.user_cache_dir("leanconv", appauthor=False)
    monkeypatch.setattr(cache, "_of_the_user", lambda: str(tmp_path / "user"))
    assert (ObjectCache().directory, ObjectCache().mode) == (str(tmp_path / "user"), "rw")
    monkeypatch.setattr(cache, "_of_the_user", lambda: "~/.cache/leanconv")
    with pytest.warns(RuntimeWarning, match="no home directory"):
        assert ObjectCache().mode == "off"
    with pytest.raises(ArgumentValueError, match="mode='no'"):
        ObjectCache(tmp_path, "no")
    with pytest.raises(ArgumentValueError, match="max_bytes=0"):
        ObjectCache(tmp_path, max_bytes=0)


def test_keys() -> None:
    assert make_key({"a": "1", "b": "2"}) == make_key({"b": "2", "a": "1"})
    texts = [{"a": "1", "b": "2"}, {"a": "1b2"}, {"a1": "b2"}, {"a": "2", "b": "1"}, {"a": '1", "b": "2'}, {}]
    assert len({make_key(parts) for parts in texts}) == len(texts)
    assert len(make_key({"é": "\udc80"})) == 64
    with pytest.raises(ArgumentTypeError):
        make_key({"a": 1})  # type: ignore[dict-item]
    for bad in ("", "../../etc", KEY.upper(), KEY[:-1], "/" + KEY[1:]):
        with pytest.raises(ArgumentValueError):
            ObjectCache(mode="off").get(bad)


def test_import_is_light() -> None:
    script = """
import sys, types
package = types.ModuleType("leanconv")
package.__path__ = [sys.argv[1]]
sys.modules["leanconv"] = package
from leanconv.cache import ObjectCache
ObjectCache("somewhere")
print(*{"numpy", "llvmlite", "platformdirs", "rich"} & set(sys.modules))
"""
    assert run_python(script, str(Path(cache.__file__).parent)) == ""
