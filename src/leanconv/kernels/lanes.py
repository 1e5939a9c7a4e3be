"""How the channels of several groups share a vector register, where channels are adjacent in memory.

The lanes of a register are adjacent output channels.  If a group has few of them, groups lie side by side:

    group_in 2, group_out 4, 8 lanes      out  |k0 k1 k2 k3|k4 k5 k6 k7|
                              channel 0   x    |c0 c0 c0 c0|c2 c2 c2 c2|      one load, one shuffle a channel
                              channel 1   x    |c1 c1 c1 c1|c3 c3 c3 c3|

A *unit* is what one load of weights serves: the groups that fit one register, or one group that takes several registers
(`parts`) one after another, all of whose lanes read the same input.  Depthwise convolution has `group_in` 1, and with
one output channel each lane reads its own: a plain load.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Value, scalar_of, vector
from leanconv.kernels.epilogue import load_lanes


@dataclass(frozen=True, slots=True)
class Lanes:
    """`lanes` of a register over groups of `group_in` by `group_out` channels."""

    lanes: int
    group_in: int
    group_out: int

    @property
    def groups(self) -> int:
        """Groups of a unit."""
        return max(1, self.lanes // self.group_out)

    @property
    def parts(self) -> int:
        """Registers of output channels of a unit."""
        return -(-self.group_out // self.lanes)

    def valid(self, part: int, groups: int) -> int:
        """Output channels in one register of a unit with so many groups."""
        if self.parts == 1:
            return groups * self.group_out
        return min(self.lanes, self.group_out - part * self.lanes)

    def readable(self, groups: int) -> int:
        """Input channels that a unit with so many groups reads."""
        return groups * self.group_in

    def load(self, fn: Function, kind: str, pixel: Value, channel: int, groups: int, *, masks: bool) -> Value:
        """One channel of every group, each in the lanes of its group, from the unit's first channel at `pixel`.

        Reads the channels of `groups` groups and no others; lanes of groups that do not exist are undefined.
        """
        item = 8 if scalar_of(kind) == "double" else 4
        if self.group_in == self.group_out == 1:
            return load_lanes(fn, kind, pixel, groups, masks=masks)
        if groups == 1:
            return fn.splat(fn.load(scalar_of(kind), pixel, channel * item), self.lanes)
        count, half = self.readable(groups), self.lanes
        if count < self.lanes and not count & (count - 1):  # a narrower register holds them all
            half = count
        wide = vector(scalar_of(kind), half)
        wanted = [min(lane // self.group_out, groups - 1) * self.group_in + channel for lane in range(self.lanes)]
        result = Value("poison", kind)
        for first in range(0, count, half):
            here = [c - first if first <= c < first + half else -1 for c in wanted]
            if all(lane < 0 for lane in here):
                continue
            loaded = load_lanes(fn, wide, fn.gep(pixel, first * item), min(half, count - first), masks=masks)
            spread = fn.shuffle(loaded, loaded, here)
            if -1 not in here:
                return spread
            if result.name == "poison":
                result = spread
            else:
                merged = [self.lanes + lane if c >= 0 else lane for lane, c in enumerate(here)]
                result = fn.shuffle(result, spread, merged)
        return result
