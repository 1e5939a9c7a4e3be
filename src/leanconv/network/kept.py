"""What was chosen for a network, kept on disk: the next process weighs nothing, and lowers no layer.

Weighing imports every algorithm that may run and makes its program for every layer, most of which never run: a large
part of the time and of the memory that loading a network takes.  The phases of the layers are kept too (`lowered.py`).
The files lie beside the compiled kernels, and are verified, trusted and moved into place as those are (`cache.py`).  A
choice is found by all that it depends on: this package's sources, the machine and its figures, the graph and the
setting.  What is made of it is compared with what was written down; whatever differs is planned anew.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from leanconv.algorithms import REGISTRY
from leanconv.classes import replace
from leanconv.compiled import StoredSpec, object_cache
from leanconv.errors import LeanconvError
from leanconv.network.arrangement import Arrangement
from leanconv.network.fusion import INVERTED, SEPARABLE
from leanconv.network.graph import Graph
from leanconv.network.lowered import Reader, Writer
from leanconv.network.steps.base import Decided, Option, Setting

if TYPE_CHECKING:
    from leanconv.cache import ObjectCache

_MOST_BYTES = 16 << 20
_DECIDING = ("", "algorithms", "planning", "blocks", "network", "network/passes", "network/steps")


class Outdated(LeanconvError):
    """What was kept is not what is made of it now."""


def question(graph: Graph, setting: Setting, limit: int | None) -> str | None:
    """The key of a choice; None where it may not be kept, for the caller's own functions take part in it."""
    asked = setting.algorithm
    words = isinstance(asked, str) or (isinstance(asked, tuple | list) and all(isinstance(each, str) for each in asked))
    if REGISTRY.added or not words or _disk().mode == "off":
        return None
    from leanconv.cache import make_key
    from leanconv.compiled import generator_digest
    from leanconv.facts import digest_of_sources
    from leanconv.planning.figures import remembered_figures
    from leanconv.planning.records import machine_key

    nodes = [(n.op, n.name, n.inputs, n.outputs, n.version, _plain(n.attributes)) for n in graph.nodes]
    # Sorted: what was read before lists constants in another order than the file.
    text = repr((nodes, list(graph.inputs), graph.outputs, sorted(graph.constants), sorted(graph.types.items())))
    more = (setting.threads, setting.limited, asked, setting.accuracy, setting.deterministic, limit)
    return make_key(
        machine_key(
            "network",
            code=generator_digest() + digest_of_sources(*_DECIDING),
            # Not measured again, as weighing might do: that takes 64 MiB.
            figures=repr(remembered_figures()),
            graph=hashlib.sha256(text.encode()).hexdigest(),
            setting=repr(more),
        )
    )


def _plain(value: Any) -> Any:
    """Attributes as something whose text says all that plans depend on."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, dict):
        return sorted((key, _plain(each)) for key, each in value.items())
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def keep(
    key: str, found: Arrangement, rows: Sequence[Sequence[Option]], chosen: Sequence[Option | None], *, pressed: bool
) -> None:
    """Write down which of its options each step takes, and whether a limit asked for others than the fastest."""
    steps: list[Any] = []
    writer = Writer()
    for row, option in zip(rows, chosen, strict=True):
        if option is None or option.decided is None:
            steps.append(None if option is None else row.index(option))
        else:
            decided = asdict(replace(option.decided, restore=None))
            del decided["restore"]
            steps.append(decided | ({} if option.plan is None else {"lowering": writer.lowering(option.plan.lowering)}))
    blocks = [step.name for step in found.steps if step.op in (SEPARABLE, INVERTED)]
    write(key, blocks, steps, _made(found, chosen), writer.specs, tight=bool(found.shrunk), pressed=pressed)


def write(
    key: str,
    blocks: Sequence[str],
    steps: Sequence[Any],
    made: str,
    specs: Sequence[Any],
    *,
    tight: bool,
    pressed: bool = False,
) -> None:
    """Write a record: names of blocks, the way of each step, the digest of what is made of it, and as in `Kept`."""
    record: dict[str, Any] = {"blocks": list(blocks), "steps": list(steps), "made": made, "specs": list(specs)}
    record |= {"tight": tight, "pressed": pressed}
    _disk().put(key, json.dumps(record).encode(), {"about": f"a network of {len(steps)} steps"})


def recalled(key: str | None) -> Kept | None:
    """What was written down under a key; None if nothing was, or nothing that can be understood."""
    data = None if key is None else _disk().get(key)
    try:
        return None if data is None else Kept(json.loads(data))
    except (ValueError, TypeError, KeyError):
        return None


class Kept:
    """A choice made before.

    Attributes:
        blocks: names of the steps that are blocks of layers.
        steps: for each step a `Decided`, the number of its option, or None if it has none.
        made: a digest of the options that were chosen.
        specs: the kernels that the layers' plans name.
        tight: whether values were arranged for the least memory.
        pressed: whether a limit asked for others than the fastest ways.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        """Take a record of `keep`."""
        self.blocks: list[str] = record["blocks"]
        self.steps: list[Any] = record["steps"]
        self.made: str = record["made"]
        self.specs: list[Any] = record["specs"]
        self.tight: bool = record["tight"]
        self.pressed: bool = record["pressed"]

    def decided(self, found: Arrangement) -> list[Decided | None]:
        """The way of each step, where others are not even made.

        Raises:
            Outdated: there are other steps.
        """
        if len(self.steps) != len(found.steps):
            raise Outdated("there are other steps")
        reader = Reader(self.specs)
        return [_decided(each, reader) if isinstance(each, dict) else None for each in self.steps]

    def pick(self, found: Arrangement, rows: Sequence[Sequence[Option]]) -> list[Option | None]:
        """The option of each step.

        Raises:
            Outdated: it is not what was chosen.
        """
        try:
            chosen = [
                None if each is None else row[each if isinstance(each, int) else 0]
                for each, row in zip(self.steps, rows, strict=True)
            ]
        except IndexError:
            raise Outdated("there are fewer ways") from None
        if _made(found, chosen) != self.made:
            raise Outdated("the ways are others")
        stored = {spec for option in chosen if option is not None for spec in option.specs if type(spec) is StoredSpec}
        if not all(object_cache().holds(spec.key) for spec in stored):
            raise Outdated("kernels are not on disk any more")
        return chosen


def _decided(record: Mapping[str, Any], reader: Reader) -> Decided:
    known = {name: value for name, value in record.items() if name != "lowering"}
    written = record.get("lowering")
    return Decided(**known) if written is None else Decided(**known, restore=partial(reader.plan, written, known))


def _made(found: Arrangement, chosen: Sequence[Option | None]) -> str:
    """A digest of what the options are: of which layers, how, in how many bytes."""
    parts = [
        (step.name, step.op, None)
        if option is None
        else (step.name, step.op, option.name, option.workspace, option.kept_bytes, option.plan and option.plan.problem)
        for step, option in zip(found.steps, chosen, strict=True)
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _disk() -> ObjectCache:
    from leanconv.cache import ObjectCache

    return ObjectCache(max_bytes=_MOST_BYTES, folder="networks")
