"""The processes of the runtimes that `leanconv bench model.onnx` compares, and the files made for them beforehand.

What a converter makes of a model takes minutes for some; `--converted FOLDER` keeps it for the next time, found by
the model's bytes, the shapes of the inputs, and the versions of the runtime and its converter.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import math
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from leanconv.bench.onnx_runtimes import RUNTIMES, Request, silenced
from leanconv.bench.processes import process


@dataclass(slots=True)
class Contestant:
    """What one runtime did with a model.

    Attributes:
        runtime: its name; see `onnx_runtimes.py`.
        load_seconds: from the file to the first result.
        peak_bytes: see the module; None if the system does not tell.
        difference: the largest from leanconv's outputs, relative to the largest output.
        seconds: of each timed run.
        reason: why there are no times, or "".
    """

    runtime: str
    load_seconds: float = math.nan
    peak_bytes: int | None = None
    difference: float = math.nan
    seconds: list[float] = field(default_factory=list)
    reason: str = ""


class Conversions:
    """The files that runtimes read in the place of a model, each made once."""

    def __init__(self, stack: contextlib.ExitStack, keep: Path | None = None) -> None:
        """Nothing is made yet; without a folder to keep them in, the stack takes them away."""
        self._stack = stack
        self._keep = keep
        self._made: dict[tuple[str, int], tuple[str | None, str]] = {}

    def prepared(self, entry: Contestant, request: Request) -> Request | None:
        """What a runtime is asked for, its own file made; None, and the reason noted, if that is not possible."""
        runtime = RUNTIMES[entry.runtime]
        entry.reason = runtime.missing
        if entry.reason or runtime.convert is None:
            return None if entry.reason else request
        key = entry.runtime, request.threads if runtime.each_threads else 0
        if key not in self._made:
            self._made[key] = self._kept(entry, request) or self._convert(entry, request)
        path, entry.reason = self._made[key]
        return None if path is None else replace(request, path=path)

    def _kept(self, entry: Contestant, request: Request) -> tuple[str, str] | None:
        """What was made by an earlier command; None if nothing was."""
        note = None if self._keep is None else self._folder(entry, request) / "made"
        if note is None or not note.is_file():
            return None
        made = note.with_name(note.read_text(encoding="utf-8"))
        return (str(made), "") if made.is_file() else None

    def _folder(self, entry: Contestant, request: Request) -> Path:
        assert self._keep is not None
        runtime = RUNTIMES[entry.runtime]
        with open(request.path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        shapes = [(name, array.shape, str(array.dtype)) for name, array in request.inputs.items()]
        digest.update(repr((shapes, [_version(name) for name in (runtime.module, *runtime.needs)])).encode())
        return self._keep / f"{Path(request.path).stem}-{entry.runtime}-{digest.hexdigest()[:16]}"

    def _convert(self, entry: Contestant, request: Request) -> tuple[str | None, str]:
        with contextlib.ExitStack() as unfinished:
            # Beside where it is kept, so that it gets there in one step, whole or not at all.
            if self._keep is not None:
                self._keep.mkdir(parents=True, exist_ok=True)
            stack = self._stack if self._keep is None else unfinished
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="leanconv-", dir=self._keep)))
            with process(_convert, entry.runtime, request, folder) as pipe:
                answer = ask(pipe, entry)
            if answer is None:
                return None, entry.reason
            made = Path(answer[0])
            if self._keep is None or made.parent != folder:
                return answer[0], ""
            (folder / "made").write_text(made.name, encoding="utf-8")
            target = self._folder(entry, request)
            if not target.exists():
                folder.rename(target)
                folder.mkdir()  # for the stack to take away
            return str(target / made.name), ""


def _version(module: str) -> str:
    """Of the package that holds a module."""
    found = importlib.metadata.packages_distributions().get(module.partition(".")[0], [])
    return f"{module} {importlib.metadata.version(found[0])}" if found else module


def _convert(pipe: Any, runtime: str, request: Request, folder: Path) -> None:
    """The life of a process that makes what a runtime reads."""
    convert = RUNTIMES[runtime].convert
    assert convert is not None
    try:
        silenced()
        pipe.send((convert(request, folder),))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}"[:500])


def ask(pipe: Any, contestant: Contestant) -> Any:
    """The process's answer; None, and the reason noted, if it has none to give."""
    try:
        answer = pipe.recv()
    except EOFError:
        answer = "its process ended"
    if isinstance(answer, str):
        contestant.reason = answer
        return None
    return answer
