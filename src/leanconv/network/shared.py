"""Packed weights that the networks of one model share: one for each set of shapes, on the same weights.

Kernels read weights in an order that rarely depends on the size of an image.  Where two networks read them in the same
order there is one block for both, packed once, which goes with the last network that reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, MutableMapping, Sequence
from typing import TypeAlias

from leanconv.algorithms.base import WeightPacking
from leanconv.compiled import key_of
from leanconv.memory import Block
from leanconv.program import Phase

Pack: TypeAlias = Callable[[], Block]
Share: TypeAlias = Callable[[WeightPacking, Pack], Block]
"""The block of a packing: one that is there, or one that is made."""


class SharedWeights:
    """Blocks by what they are packed from, and how.

    One graph is compiled at a time; what it packs others find as long as a network keeps it.
    """

    def __init__(self, names: Collection[str], blocks: MutableMapping[Hashable, Block]) -> None:
        """Share the blocks of others.

        Args:
            names: of the constants whose values are the same wherever they have this name.
            blocks: what is shared; added to.
        """
        self._names = frozenset(names)
        self._blocks = blocks

    def of(self, names: Sequence[str], *more: Hashable) -> Share:
        """How blocks made of some constants are come by.

        Args:
            names: of the constants, `""` for one that is absent.
            more: what else decides about the elements.
        """
        if not all(name in self._names for name in names if name):
            return apart
        source = (*names, *more)

        def share(packing: WeightPacking, pack: Pack) -> Block:
            key = (source, packing.nbytes, tuple(map(_what, packing.phases)))
            found = self._blocks.get(key)
            if found is None:
                found = self._blocks[key] = pack()
            return found

        return share


def apart(packing: WeightPacking, pack: Pack) -> Block:
    """A block of one's own."""
    return pack()


def _what(phase: Phase) -> Hashable:
    parts = (sorted(each.items()) for each in (phase.fields, phase.roles, phase.offsets))
    return (key_of(phase.spec), *(tuple(part) for part in parts))
