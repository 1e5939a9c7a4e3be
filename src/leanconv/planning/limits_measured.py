"""`leanconv limits`: what layers take under memory limits, declared and as the system counts it, a process for each.

Each case runs in a process of its own (`limits_process.py`): it plans, binds the weights and calls once, so that
kernels are loaded and threads started; gives all of that back; and then does it again while the system counts (VmHWM,
see `bench/process_memory.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.errors import CacheError, LeanconvError
from leanconv.facts import digest_of_sources
from leanconv.host import this_host
from leanconv.planning.records import read_json, write_json
from leanconv.planning.text import table_text
from leanconv.sizes import format_bytes

FORMAT = "leanconv limits 1"
SLACK = 256 << 10
"""Bytes that the system may count beyond what is declared: it counts pages, and Python's own objects too."""


@dataclass(frozen=True, slots=True)
class Case:
    """A layer under a limit: what is asked.

    Attributes:
        layer: the layer.
        limit: in bytes, or None.
        layout: of the arrays.
        most: threads that may be used.
    """

    layer: Layer
    limit: int | None
    layout: str
    most: int


@dataclass(frozen=True, slots=True)
class Taken:
    """A layer under a limit: what it took.

    Attributes:
        layer: its name.
        limit: in bytes, or None.
        algorithm: what runs.
        threads: how many it uses at most.
        counted: bytes that count against the limit.
        declared: bytes of workspace and of the weights that a bound plan keeps, all it needs beyond its arrays: packed
            ones, or a copy of the plain ones if it packs none.
        measured: bytes by which the process grew at most; None where the system does not tell.
        layout: of the arrays.
        most: threads that it might use.
    """

    layer: str
    limit: int | None
    algorithm: str
    threads: int
    counted: int
    declared: int
    measured: int | None
    layout: str = "NHWC"
    most: int = 1

    @property
    def kept(self) -> bool:
        """Whether the limit held, and nothing was taken that is not declared."""
        within = self.limit is None or self.counted <= self.limit
        return within and (self.measured is None or self.measured <= self.declared + SLACK)

    def answers(self, case: Case) -> bool:
        """Whether this is about the case."""
        return (self.layer, self.limit, self.layout, self.most) == (case.layer.name, case.limit, case.layout, case.most)


def cases(layers: Iterable[Layer], limits: Iterable[int | None], layout: str, threads: int) -> list[Case]:
    """Each layer that the layout can hold, under each limit."""
    held = []
    for layer in layers:
        try:
            layer.problem(layout, "float32", bias=True)
        except LeanconvError:
            continue
        held.append(layer)
    return [Case(layer, limit, layout, threads) for layer, limit in product(held, limits)]


def taken(asked: Iterable[Case]) -> Iterator[Taken]:
    """Run each case in a process of its own.

    Raises:
        LeanconvError: a case could not run; the message is that of its process.
    """
    server: subprocess.Popen[str] | None = None
    try:
        for case in asked:
            if server is None or server.poll() is not None:
                server = _server()
            layer, layout = case.layer, case.layout
            question = {
                "shapes": layer.shapes(layout),
                "options": {**layer.options(layout), "threads": case.most},
                "limit": case.limit,
            }
            found = _asked(server, question)
            if "error" in found:
                limit = "no limit" if case.limit is None else f"a limit of {case.limit} bytes"
                raise LeanconvError(f"{layer.name} under {limit} failed: {found['error']}")
            yield Taken(layer.name, case.limit, layout=layout, most=case.most, **found)
    finally:
        if server is not None:
            server.communicate()  # at the end of its input it ends


def _server() -> subprocess.Popen[str]:
    """A process that answers cases; alone in it, no library's threads hinder its children."""
    return subprocess.Popen(
        [sys.executable, "-m", "leanconv.planning.limits_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def _asked(server: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    assert server.stdin is not None and server.stdout is not None
    try:
        server.stdin.write(json.dumps(question) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
    except BrokenPipeError:
        answer = ""
    if not answer:
        return {"error": f"the process that runs the cases ended with {server.wait()}"}
    found: dict[str, Any] = json.loads(answer)
    return found


def save(path: str | os.PathLike[str], found: Sequence[Taken]) -> None:
    """Write cases to a file, in one step.

    Raises:
        CacheError: it cannot be written.
    """
    rows = [asdict(entry) for entry in found]
    write_json(path, {"format": FORMAT, "sources": _sources(), "rows": rows})


def saved(path: str | os.PathLike[str]) -> list[Taken]:
    """The cases of a file that this version would run as they were run; none if it is another version's, or missing.

    Raises:
        CacheError: the file is something else.
    """
    if not os.path.exists(path):
        return []
    data = read_json(path, FORMAT)
    if data.get("sources") != _sources():
        return []
    try:
        return [Taken(**row) for row in data["rows"]]
    except (KeyError, TypeError) as error:
        raise CacheError(f"{os.fspath(path)} does not hold cases of leanconv limits: {error!r}") from error


def _sources() -> str:
    """What bytes depend on: the code, and the machine's registers and caches."""
    code = digest_of_sources("codegen", "kernels", "algorithms", "planning", "plan.py", "bound.py", "memory.py")
    return f"{code} {this_host()!r}"


def taken_text(found: Sequence[Taken]) -> str:
    """A table, and how many cases kept to their bytes."""
    rows = [
        (
            entry.layer,
            "-" if entry.limit is None else f"{entry.limit:,}",
            entry.algorithm,
            str(entry.threads),
            f"{entry.counted:,}",
            f"{entry.declared:,}",
            "-" if entry.measured is None else f"{entry.measured:,}",
            "" if entry.kept else "MORE THAN DECLARED",
        )
        for entry in found
    ]
    titles = ("layer", "limit", "algorithm", "threads", "counted", "declared", "measured", "verdict")
    kept = sum(entry.kept for entry in found)
    known = [entry.measured - entry.declared for entry in found if entry.measured is not None]
    most = f"; measured is at most {format_bytes(max(0, *known))} above declared" if len(known) > 1 else ""
    return f"{table_text(titles, rows)}\n{kept} of {len(found)} keep to their limit and to what they declare{most}"
