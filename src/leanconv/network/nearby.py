"""The ways of a network at another size, taken over: a new size is planned without weighing what is known.

Which algorithm is the fastest for a layer hardly changes between images of similar size, and the kernels of one size
mostly serve others.  So where a layer's output has at least half and at most twice the pixels that it had, the layer is
computed as it was; only other layers are weighed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from leanconv.classes import dataclass, replace
from leanconv.network.arrangement import Arrangement, Step
from leanconv.network.steps.base import Decided, Option

MOST = 2.0
"""How many times as many pixels an output may have, or the other way round."""


@dataclass(frozen=True, slots=True)
class Ways:
    """How the steps of a network are computed: by name, the shape of the output and what was decided."""

    steps: Mapping[str, tuple[str, tuple[int, ...], Decided]]

    @classmethod
    def of(cls, found: Arrangement, options: Sequence[Option | None]) -> Ways:
        """What was decided for a network, of the steps that are worth not being weighed twice."""
        return cls(
            {
                step.name: (step.op, step.call.output.shape, option.decided)
                for step, option in zip(found.steps, options, strict=True)
                if option is not None and option.decided is not None
            }
        )

    def decided(self, found: Arrangement) -> list[Decided | None]:
        """What is taken over by each step of the same network at another size; None where that has to be weighed."""
        return [self._decided(step) for step in found.steps]

    def _decided(self, step: Step) -> Decided | None:
        op, before, decided = self.steps.get(step.name, ("", (), None))
        if decided is None or op != step.op:
            return None
        shape = step.call.output.shape
        if len(shape) != len(before) or shape[1] != before[1] or 0 in (*shape, *before):
            return None
        times = math.prod(shape) / math.prod(before)
        return replace(decided, seconds=decided.seconds * times) if 1 / MOST <= times <= MOST else None
