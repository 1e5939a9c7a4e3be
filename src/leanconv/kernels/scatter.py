"""Stores a finished tile whose pixels are not evenly spaced: every other place of an output, or a view with gaps."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Value
from leanconv.kernels.epilogue import load_lanes, store_lanes
from leanconv.kernels.output import Output


@dataclass(frozen=True, slots=True)
class ScatteredOutput(Output):
    """Each pixel has an address of its own; with `columns` each of its channels too.

    Fields: `z{d}` output sizes; `o_{d}`/`r_{d}` bytes between output positions of dimension d, `o_k`/`r_k` between
    channels ("columns").
    """

    dims: int = 2

    def store(self, accs: list[Value], out: Value, residual: Value | None, pixel: Value) -> None:
        """Apply the epilogue to the tile at a pixel and store it."""
        targets, *more = self._places([out, *([residual] if residual is not None else [])], pixel)
        sources = more[0] if more else None
        put = self._elements if self.columns else self._vectors
        for i, target in enumerate(targets):
            put(accs[i * self.tile.vectors : (i + 1) * self.tile.vectors], target, sources[i] if sources else None)

    def _places(self, bases: list[Value], pixel: Value) -> list[list[Value]]:
        """The addresses of the tile's pixels in the output, and in the residual if there is one."""
        fn, fields, last = self.fn, self.fields, self.dims - 1
        letters = [self.letter, self.extra][: len(bases)]
        position: list[Value] = []
        rest = pixel
        for dim in reversed(range(1, self.dims)):
            position.insert(0, fn.i64(fn.urem(rest, fields[f"z{dim}"])))
            rest = fn.i64(fn.udiv(rest, fields[f"z{dim}"]))
        position.insert(0, rest)
        places = list(bases)
        for dim, at in enumerate(position):
            places = [
                fn.gep(place, fn.mul(at, fields[f"{letter}_{dim}"]))
                for place, letter in zip(places, letters, strict=True)
            ]
        # Where a line ends the next one begins: a step back over the whole line, and one along the dimension before.
        turns = {
            (letter, dim): fn.sub(fields[f"{letter}_{dim - 1}"], fn.mul(fields[f"{letter}_{dim}"], fields[f"z{dim}"]))
            for letter in letters
            for dim in range(1, self.dims)
        }
        result = [[place] for place in places]
        for _ in range(1, self.tile.rows):
            places = [fn.gep(place, fields[f"{letter}_{last}"]) for place, letter in zip(places, letters, strict=True)]
            position[last] = fn.i64(fn.add(position[last], 1))
            for dim in reversed(range(1, self.dims)):
                ends = fn.cmp("eq", position[dim], fields[f"z{dim}"])
                places = [
                    fn.gep(place, fn.select(ends, turns[letter, dim], 0))
                    for place, letter in zip(places, letters, strict=True)
                ]
                position[dim] = fn.select(ends, 0, position[dim])
                position[dim - 1] = fn.select(ends, fn.add(position[dim - 1], 1), position[dim - 1])
            for line, place in zip(result, places, strict=True):
                line.append(place)
        return result

    def _vectors(self, accs: list[Value], target: Value, source: Value | None) -> None:
        """The channels of a pixel lie side by side."""
        fn, tile, masks = self.fn, self.tile, self.tile.target.masks
        width = tile.target.vector_bytes
        for v, value in enumerate(accs):
            extra = None
            if source is not None:
                extra = load_lanes(fn, tile.vec, fn.gep(source, v * width), self._count(v), masks=masks)
            store_lanes(
                fn, self.epilogue.apply(fn, value, extra), fn.gep(target, v * width), self._count(v), masks=masks
            )

    def _elements(self, accs: list[Value], target: Value, source: Value | None) -> None:
        """The channels of a pixel lie anywhere."""
        fn, tile = self.fn, self.tile
        lanes = tile.target.lanes(tile.dtype)
        for v, value in enumerate(accs):
            extra = None
            if source is not None:
                extra = fn.const(tile.vec, 0.0)
                for lane in range(self._count(v)):
                    place = fn.gep(source, fn.mul(self.fields[f"{self.extra}_k"], v * lanes + lane))
                    element = fn.load(tile.scalar, place)
                    extra = fn.op(
                        tile.vec,
                        f"insertelement {tile.vec} {extra.name}, {tile.scalar} {element.name}, i32 {lane}",
                    )
            result = self.epilogue.apply(fn, value, extra)
            for lane in range(self._count(v)):
                element = fn.op(tile.scalar, f"extractelement {result.type} {result.name}, i32 {lane}")
                fn.store(element, fn.gep(target, fn.mul(self.fields[f"{self.letter}_k"], v * lanes + lane)))
