"""How the output channels of a group are split into panels, the unit in which weights are packed and read."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Value
from leanconv.kernels.fields import Fields


@dataclass(frozen=True, slots=True)
class PanelShape:
    """What kernels are specialised for.

    Panels of `vectors` registers if there are any whole ones (`whole`), then one panel of `last` registers (0: none)
    whose last register holds `valid` channels.
    """

    vectors: int
    whole: bool
    last: int
    valid: int


@dataclass(frozen=True, slots=True)
class Panels:
    """`count` panels of `vectors` registers, then one of `last` (0: none), `valid` channels in the very last one."""

    count: int
    vectors: int
    last: int
    valid: int

    @staticmethod
    @lru_cache(maxsize=1024)
    def of(channels: int, lanes: int) -> Panels:
        """Panels of two registers; an odd one makes the last panel three wide, which runs as fast (4x3 for 6x2)."""
        registers = -(-channels // lanes)
        valid = channels - (registers - 1) * lanes
        partial = valid < lanes
        if registers == 1:
            return Panels(0, 2, 1, valid)
        if registers % 2:
            return Panels((registers - 3) // 2, 2, 3, valid)
        return Panels(registers // 2 - partial, 2, 2 * partial, valid)

    @property
    def shape(self) -> PanelShape:
        """What kernels need to know."""
        return PanelShape(self.vectors, self.count > 0, self.last, self.valid)

    @property
    def total(self) -> int:
        """All panels."""
        return self.count + (1 if self.last else 0)

    @property
    def registers(self) -> int:
        """All registers of output channels, filled up to whole ones."""
        return self.count * self.vectors + self.last

    def outputs(self, lanes: int, *, tight: bool) -> int:
        """Output channels that a row of all panels holds: filled up to whole registers, or none but those there are."""
        return self.registers * lanes - (lanes - self.valid if tight else 0)


def each_panel(
    fn: Function,
    fields: Fields,
    shape: PanelShape,
    lanes: int,
    span: tuple[Value, Value],
    body: Callable[[Value, int, int, bool], None],
) -> None:
    """Emit `body(panel, vectors, valid, last)` for the panels [first, end) of a span: the whole ones, then the last.

    Fields: `panel_count` panels in all, `panel_whole` of them whole.
    """
    if shape.whole:

        def whole(at: Value, _: list[Value]) -> list[Value]:
            body(at, shape.vectors, lanes, False)
            return []

        fn.loop(span[0], fn.smin(span[1], fields["panel_whole"]), 1, [], whole, guard=True, hint="panel")
    if shape.last:

        def last() -> list[Value]:
            body(fn.i64(fn.sub(fields["panel_count"], 1)), shape.last, shape.valid, True)
            return []

        fn.if_(fn.cmp("eq", span[1], fields["panel_count"]), last, lambda: [], hint="last")
