"""Copies the rows under a band of output rows, for kernels whose vectors are pixels along a row (see `rowstage`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.image import mapped_position
from leanconv.kernels.rowstage import RowStage
from leanconv.kernels.window import Window


class Staged(Protocol):
    """What a kernel is specialised for, as far as its staged rows need to know."""

    @property
    def target(self) -> Target:
        """The CPU it is for."""

    @property
    def dtype(self) -> str:
        """Element type."""

    @property
    def window(self) -> Window:
        """The geometry."""

    @property
    def channels(self) -> int:
        """Input channels of a group."""

    @property
    def stage(self) -> RowStage:
        """How a row is copied."""


def tap_distance(fn: Function, fields: Fields, window: Window, item: int, tap: Index) -> Index:
    """Bytes from a pixel of phase 0 to what an innermost tap reads there."""
    position = fn.mul(tap, window.dilation[-1])
    phase = fn.mul(fn.urem(position, window.stride[-1]), fields["s_phase"])
    return fn.add(phase, fn.mul(fn.udiv(position, window.stride[-1]), item))


def copies(spec: Staged, f: Mapping[str, int], bands: float) -> dict[str, float]:
    """What it takes to copy the rows of so many bands, for the cost model."""
    stage, lanes = spec.stage, spec.target.lanes(spec.dtype)
    single = not stage.piece or not stage.unit
    rows, width = bands * f["s_bytes"] / f["s_row"], f[f"in{spec.window.dims - 1}"]
    return {"run": rows * stage.stride, "element" if single else "vector": rows * width / (1 if single else lanes)}


@dataclass(slots=True)
class PlaneStage:
    """Emits the copies of one kernel.

    Zeros for padding: all of the scratch is cleared once (`_clear`), or pads only, as rows are copied (`pads`), which
    pays where rows are long and each chunk copies once.  Fields: `in{d} at{d}` as in `Image`; `x_c` bytes between
    channels; `s_phase s_row s_slice s_channel` bytes of scratch between phases, rows, positions of the outermost of
    three dimensions, and channels; `s_bytes` in all; `s_tail` bytes of a phase that surely hold pixels or the pad
    before them, in whole registers (`pads`).
    """

    kernel: KernelFunction
    fn: Function
    fields: Fields
    spec: Staged
    pads: ClassVar[bool] = False

    @property
    def _item(self) -> int:
        return 8 if self.spec.dtype == "float64" else 4

    @property
    def _lanes(self) -> int:
        return self.spec.target.lanes(self.spec.dtype)

    @property
    def _kind(self) -> str:
        return vector(SCALARS[self.spec.dtype], self._lanes)

    @property
    def _dims(self) -> int:
        return self.spec.window.dims

    @property
    def _zeros(self) -> bool:
        """Whether there are pads, and they are zeros."""
        return any(self.spec.window.padded) and self.spec.window.pad_mode == "zeros"

    def _scratch(self) -> Value:
        """The thread's own memory, clear where rows to be copied there have pads that are zeros."""
        fn = self.fn
        scratch = fn.gep(self.fields.buffer("scratch"), fn.mul(self.kernel.thread, self.fields["thread_scratch"]))
        if self._zeros and not self.pads:
            self._clear(scratch, 0, self.fields["s_bytes"])
        return scratch

    def _clear(self, place: Value, first: Index, end: Index) -> None:
        """Zeros in bytes [first, end) behind a place, whole registers."""
        fn = self.fn

        def body(at: Value, _: list[Value]) -> list[Value]:
            fn.store(fn.const(self._kind, 0.0), place, at)
            return []

        fn.loop(first, end, self.spec.target.vector_bytes, [], body, guard=True, hint="clear")

    def _clear_pads(self, row: Value) -> None:
        """Zeros where a row to be copied has pads, and some pixels."""
        stage, width = self.spec.stage, self.spec.target.vector_bytes
        before = -(-stage.pad_low // stage.stride) * self._item
        for phase in range(stage.stride):
            place = self.fn.gep(row, self.fn.mul(self.fields["s_phase"], phase))
            self._clear(place, 0, -(-before // width) * width)
            self._clear(place, self.fields["s_tail"], self.fields["s_phase"])

    def _stage(self, x: Value, scratch: Value, outer: Index, top: Value, bottom: Value) -> None:
        """Copy the rows under output rows [top, bottom) of one group."""
        fn, fields, window = self.fn, self.fields, self.spec.window
        row_dim = self._dims - 2
        if row_dim >= 0:
            corner = fn.sub(fn.mul(top, window.stride[row_dim]), window.pad_low[row_dim])
            span = fn.sub(fn.sub(bottom, top), 1)
            rows = fn.add(
                fn.mul(span, window.stride[row_dim]), (window.kernel[row_dim] - 1) * window.dilation[row_dim] + 1
            )
        else:
            corner, rows = 0, 1

        def slices(x: Value, scratch: Value) -> None:
            if self._dims < 3:
                self._rows(x, scratch, corner, rows)
                return

            def tap(index: Value, _: list[Value]) -> list[Value]:
                at = fn.sub(fn.mul(outer, window.stride[0]), window.pad_low[0])
                at = fn.i64(fn.add(at, fn.mul(index, window.dilation[0])))
                target = fn.gep(scratch, fn.mul(index, fields["s_slice"]))

                def copy(at: Value) -> list[Value]:
                    return self._rows(fn.gep(x, fn.mul(at, fields["at0"])), target, corner, rows)

                def nothing() -> list[Value]:
                    if self.pads:
                        self._clear(target, 0, fn.mul(rows, fields["s_row"]))
                    return []

                self._inside(0, at, copy, nothing)
                return []

            fn.loop(0, window.kernel[0], 1, [], tap, hint="slice")

        if self.spec.channels == 1:
            slices(x, scratch)
            return

        def channel(index: Value, _: list[Value]) -> list[Value]:
            slices(fn.gep(x, fn.mul(index, fields["x_c"])), fn.gep(scratch, fn.mul(index, fields["s_channel"])))
            return []

        fn.loop(0, self.spec.channels, 1, [], channel, hint="channel")

    def _rows(self, x: Value, scratch: Value, corner: Index, rows: Index) -> list[Value]:
        """Copy `rows` rows from row `corner` on, which may lie above the image."""
        fn, fields, stage = self.fn, self.fields, self.spec.stage
        dim = self._dims - 2
        pads = self.pads and self._zeros
        if dim < 0:
            if pads:
                self._clear_pads(scratch)
            stage.emit(fn, fields, x, scratch)
            return []
        asks = self.spec.window.padded[dim]
        first: Index = 0
        end: Index = rows
        if asks and self.spec.window.pad_mode == "zeros":
            first = fn.smax(fn.sub(0, corner), 0)
            end = fn.smin(rows, fn.sub(fields[f"in{dim}"], corner))
            if pads:
                first = fn.smin(first, rows)
                end = fn.smax(end, first)
                self._clear(scratch, 0, fn.mul(first, fields["s_row"]))
                self._clear(scratch, fn.mul(end, fields["s_row"]), fn.mul(rows, fields["s_row"]))

        def row(index: Value, _: list[Value]) -> list[Value]:
            at = fn.i64(fn.add(corner, index))
            if asks and self.spec.window.pad_mode != "zeros":
                at = mapped_position(fn, at, fields[f"in{dim}"], self.spec.window.pad_mode)
            source = fn.gep(x, fn.mul(at, fields[f"at{dim}"]))
            target = fn.gep(scratch, fn.mul(index, fields["s_row"]))
            if pads and stage.padded:
                self._clear_pads(target)
            stage.emit(fn, fields, source, target)
            return []

        return fn.loop(first, end, 1, [], row, guard=True, hint="row")

    def _inside(
        self, dim: int, at: Value, copy: Callable[[Value], list[Value]], nothing: Callable[[], list[Value]]
    ) -> None:
        """Copy if a position lies inside the image, or copy what the pad mode names; else do what makes zeros."""
        fn, window = self.fn, self.spec.window
        if not window.padded[dim]:
            copy(at)
        elif window.pad_mode != "zeros":
            copy(mapped_position(fn, at, self.fields[f"in{dim}"], window.pad_mode))
        else:
            fn.if_(fn.cmp("ult", at, self.fields[f"in{dim}"]), lambda: copy(at), nothing, hint="inside")
