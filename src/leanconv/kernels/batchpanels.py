"""What kernels with vectors along the last axis do with a window: all panels of a chunk, each summed and stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from leanconv.codegen.ir import Function, Index, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.batchsum import BatchSum, Window
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.tile import Tile


class Shape(Protocol):
    """What a kernel is made for, as far as panels need to know."""

    @property
    def target(self) -> Target:
        """The CPU it is for."""

    @property
    def dtype(self) -> str:
        """Element type."""

    @property
    def rows(self) -> int:
        """Output channels of a panel."""

    @property
    def short(self) -> bool:
        """Whether the last panels are one row shorter."""

    @property
    def bias(self) -> bool:
        """Whether packed weights begin with the bias."""

    @property
    def across(self) -> bool:
        """Whether vectors of a tile are of neighbouring pixels."""

    @property
    def epilogue(self) -> Epilogue:
        """What happens to sums before they are stored."""


class Place:
    """The arrays of a chunk, and its panels.

    Fields: `{n,g,k}_*`, `n_first`, `panels panel_count panel_long w_g w_row x_n x_g o_n o_g o_k r_n r_g r_k`, and
    `oat{d} rat{d}` bytes between pixels of output and residual.
    """

    def __init__(self, shape: Shape, kernel: KernelFunction, source: str = "x") -> None:
        self.shape, self.kernel = shape, kernel
        self.fn: Function = kernel.fn
        self.fields: Fields = kernel.fields
        fn, fields = self.fn, self.fields
        self.index = {letter: kernel.index(letter) for letter in "ngbk"}
        image = fn.add(self.index["n"], fields["n_first"])

        def moved(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(self.index["g"], fields[f"{letter}_g"]))
            return fn.gep(fields.buffer(role), offset)

        self.x, self.out = moved(source, "x"), moved("out", "o")
        self.residual = moved("residual", "r") if shape.epilogue.residual else None
        self.weights = fn.gep(fields.buffer("w"), fn.mul(self.index["g"], fields["w_g"]))
        first = fn.i64(fn.mul(self.index["k"], fields["panels"]))
        self.panels = (first, fn.smin(fn.add(first, fields["panels"]), fields["panel_count"]))

    def all_panels(
        self,
        position: list[Index],
        shift: Index,
        vectors: int,
        window: Window,
        sum_of: Callable[[Tile], BatchSum],
    ) -> None:
        """All panels of the chunk for the output pixel at a position, `shift` bytes into it."""
        fn, fields, shape = self.fn, self.fields, self.shape

        def place(base: Value, letter: str) -> Value:
            for dim, at in enumerate(position):
                base = fn.gep(base, fn.mul(at, fields[f"{letter}at{dim}"]))
            return fn.gep(base, shift)

        out = place(self.out, "o")
        residual = place(self.residual, "r") if self.residual is not None else None
        long = fields["panel_long"]
        begin, stop = self.panels
        spans: list[tuple[int, Index, Index]] = [(shape.rows, begin, fn.smin(stop, long))]
        if shape.short:
            spans.append((shape.rows - 1, fn.smax(begin, long), stop))
        for rows, first, end in spans:
            tile = Tile(shape.target, shape.dtype, rows, vectors, shape.bias)

            def panel(at: Value, _: list[Value], tile: Tile = tile) -> list[Value]:
                # Panels before this one hold rows * at channels, less one for each short panel among them.
                channel = fn.mul(at, shape.rows)
                if tile.rows < shape.rows:
                    channel = fn.sub(channel, fn.sub(at, long))
                sum_ = sum_of(tile)
                accs = sum_.window_sums(window, fn.gep(self.weights, fn.mul(channel, fields["w_row"])))
                o = fn.gep(out, fn.mul(channel, fields["o_k"]))
                r = fn.gep(residual, fn.mul(channel, fields["r_k"])) if residual is not None else None
                self._store(sum_, accs, len(position) - 1, o, r)
                return []

            fn.loop(first, end, 1, [], panel, guard=True, hint="panel")

    def _store(self, sum_: BatchSum, accs: list[Value], last: int, out: Value, residual: Value | None) -> None:
        fn, fields, tile, shape = self.fn, self.fields, sum_.tile, self.shape

        def apart(letter: str, vector: int) -> Index:
            if not shape.across:
                return vector * shape.target.vector_bytes
            return fn.mul(fields[f"{letter}at{last}"], vector)

        for i in range(tile.rows):
            row = fn.gep(out, fn.mul(fields["o_k"], i))
            extra_row = fn.gep(residual, fn.mul(fields["r_k"], i)) if residual is not None else None
            for v in range(tile.vectors):
                mask, extra = sum_.mask(v), None
                if extra_row is not None:
                    source = fn.gep(extra_row, apart("r", v))
                    extra = fn.load(tile.vec, source) if mask is None else fn.masked_load(tile.vec, source, mask)
                value = shape.epilogue.apply(fn, accs[i * tile.vectors + v], extra)
                target = fn.gep(row, apart("o", v))
                if mask is None:
                    fn.store(value, target)
                else:
                    fn.masked_store(value, target, mask)


def each_line(fn: Function, fields: Fields, block: Index, dims: int, line: Callable[[list[Index]], None]) -> None:
    """Run `line(position)` for the rows of output pixels of a block; `dims` axes, of which rows are the last.

    Fields: `block` rows a block, `lines` rows in all, `out{d}`.
    """
    begin = fn.i64(fn.mul(block, fields["block"]))
    end = fn.smin(fn.add(begin, fields["block"]), fields["lines"])

    def body(at: Value, _: list[Value]) -> list[Value]:
        position: list[Index] = []
        rest: Index = at
        for dim in reversed(range(1, dims - 1)):
            position.insert(0, fn.urem(rest, fields[f"out{dim}"]))
            rest = fn.udiv(rest, fields[f"out{dim}"])
        line([rest, *position] if dims > 1 else [])
        return []

    fn.loop(begin, end, 1, [], body, hint="line")
