"""Answers that are kept on disk are those that would be found, and are found again when what they depend on changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from leanconv import facts
from leanconv.facts import digest_of_sources, remembered


@pytest.fixture(autouse=True)
def own_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("LEANCONV_CACHE", "rw")


def test_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter("abcdef")

    def find() -> str:
        return next(answers)

    assert [remembered({"about": "x"}, find) for _ in range(3)] == ["a", "a", "a"]
    assert remembered({"about": "y"}, find) == "b"
    monkeypatch.setenv("LEANCONV_CACHE", "off")
    assert remembered({"about": "x"}, find) == "c"


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A package of two folders and a file whose files seem to have been written long ago, and what reads it."""
    for name in ("here.py", "one/a.py", "one/b.py", "two/a.py", "one/note.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# {name}\n")
    monkeypatch.setattr(facts, "__file__", str(tmp_path / "facts.py"))
    now = facts.time.time()
    monkeypatch.setattr(facts.time, "time", lambda: now + 1000)
    read: list[str] = []
    whole = facts._content
    monkeypatch.setattr(facts, "_content", lambda path: (read.append(path), whole(path))[1])

    def digest(*places: str) -> tuple[str, int]:
        """The digest as another process finds it, and how many files were read for it."""
        digest_of_sources.cache_clear()
        read.clear()
        return digest_of_sources(*places), len(read)

    yield digest
    digest_of_sources.cache_clear()


def test_files_are_read_once(package: Any) -> None:
    first, reads = package("one", "here.py")
    assert reads == 3
    assert package("one", "here.py") == (first, 0)
    assert package("two")[0] != first


def test_a_change_is_seen(package: Any, tmp_path: Path) -> None:
    digest, _ = package("one", "two")
    path = tmp_path / "one" / "a.py"
    status = path.stat()
    path.write_text("# ONE/a.py\n"[: status.st_size])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same size and time: only ctime tells
    changed, reads = package("one", "two")
    assert changed != digest
    assert reads == 3
    (tmp_path / "one" / "b.py").rename(tmp_path / "one" / "c.py")
    assert package("one", "two")[0] not in (digest, changed)


def test_what_was_just_written_is_read(package: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    now = (tmp_path / "here.py").stat().st_ctime
    monkeypatch.setattr(facts.time, "time", lambda: now + 1)
    assert [package("one")[1] for _ in range(2)] == [2, 2]
    assert not (tmp_path / "cache").exists()
