"""What the cost model has decided, kept: in the process, and on disk for the processes that come.

To weigh the algorithms for a problem they must be imported, and their programs made, most of which never run: in a new
process that takes longer than all else that a first call does. The answer is a name and a number of threads. It is
found by all that it depends on: this package's sources, the machine's figures, and the question. Its files lie beside
the compiled kernels, and are verified, trusted and moved into place as those are; see `cache.py`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from leanconv.algorithms import REGISTRY
from leanconv.problem import Problem
from leanconv.registry import forget_with

if TYPE_CHECKING:
    from leanconv.cache import ObjectCache
    from leanconv.planning.figures import Figures

Question = tuple[Problem, str | tuple[str, ...], str, bool, int, int | tuple[int | None, int] | None, bool]
"""Problem, algorithms asked for, accuracy, deterministic, most threads, limits, whether weights are bound.

The limits are that of memory, or both that and the one of a thread's workspace.
"""

KEPT = 4096  # decisions that a process remembers
_MOST_BYTES = 8 << 20
_DECIDING = ("", "algorithms", "planning")  # folders of this package, the first is itself; kernels have a digest
_known: dict[Question, tuple[str, int]] = {}
forget_with(_known.clear)


def recalled(asked: Question) -> tuple[str, int] | None:
    """The algorithm decided for and its threads; None if the question is new."""
    found = _known.get(asked)
    if found is None and not REGISTRY.added:
        stored = _disk().get(_key(asked))
        if stored is not None:
            name, _, threads = stored.decode().partition(" ")
            found = _remembered(asked, (name, int(threads)))
    return found


def keep(asked: Question, decision: tuple[str, int]) -> None:
    """Remember a decision; on disk too, unless algorithms of the program's own took part."""
    _remembered(asked, decision)
    if not REGISTRY.added:
        name, threads = decision
        _disk().put(_key(asked), f"{name} {threads}".encode(), {"about": asked[0].describe()})


def _remembered(asked: Question, decision: tuple[str, int]) -> tuple[str, int]:
    if len(_known) >= KEPT:
        _known.clear()
    _known[asked] = decision
    return decision


@functools.cache
def _disk() -> ObjectCache:
    from leanconv.cache import ObjectCache

    return ObjectCache(max_bytes=_MOST_BYTES, folder="decisions")


def _key(asked: Question) -> str:
    from leanconv.planning.figures import figures

    return _digest(_machine(figures()), asked)


@functools.lru_cache(maxsize=4)  # to keep what was not found is to ask for its key again
def _digest(machine: str, asked: Question) -> str:
    from leanconv.cache import make_key

    return make_key({"machine": machine, "asked": repr(asked)})


@functools.lru_cache(maxsize=1)
def _machine(known: Figures) -> str:
    """A digest of what all decisions depend on."""
    from leanconv.cache import make_key
    from leanconv.compiled import generator_digest
    from leanconv.facts import digest_of_sources
    from leanconv.planning.records import machine_key

    code = generator_digest() + digest_of_sources(*_DECIDING)
    return make_key(machine_key("decision", code=code, figures=repr(known)))
