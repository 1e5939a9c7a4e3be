"""Pixels of one image from pixels of another, by tables along each axis: resizing, and padding with what is inside.

Along each spatial axis every output position has `taps` input positions and as many weights; an output pixel is the sum
over all combinations.  With one tap an axis and no weights it is a copy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, SCALARS, Function, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import Fields, KernelFunction

VECTORS = 4  # of channels summed at a time


@dataclass(frozen=True, slots=True)
class GatherSpec:
    """Sum over `taps` along each of the spatial axes, or copy if not `weighted`.

    `unit`: channels are adjacent, here and there.  A chunk is some rows of outputs of one image.  Buffers: x, out,
    `index{d}` (i64 bytes from the image's start along the axis, [out][taps]), `weight{d}` (elements, [out][taps]).
    Fields: `{p,n}_{div,count}`, `p_block`, `channels`, `x_n x_c o_n o_c`, `out{d} to{d}`.
    """

    target: Target
    dtype: str
    taps: tuple[int, ...]
    weighted: bool
    unit: bool

    @property
    def _item(self) -> int:
        return 8 if self.dtype == "float64" else 4

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        image, part = kernel.index("n"), kernel.index("p")
        x = fn.gep(fields.buffer("x"), fn.mul(image, fields["x_n"]))
        out = fn.gep(fields.buffer("out"), fn.mul(image, fields["o_n"]))
        begin = fn.mul(part, fields["p_block"])
        stop = fn.smin(fn.add(begin, fields["p_block"]), fields["out0"])
        dims = len(self.taps)

        def output(dim: int, out: Value, terms: list[tuple[Value, Value | None]]) -> None:
            if dim == dims:
                self._channels(fn, fields, out, terms)
                return

            def at(index: Value, state: list[Value]) -> list[Value]:
                # The combinations of taps so far, each with those of this axis.
                more = [
                    self._term(fn, fields, dim, index, tap, base, weight)
                    for base, weight in terms
                    for tap in range(self.taps[dim])
                ]
                output(dim + 1, state[0], more)
                return [fn.gep(state[0], fields[f"to{dim}"])]

            if dim:
                fn.loop(0, fields[f"out{dim}"], 1, [out], at, hint="output")
            else:
                fn.loop(begin, stop, 1, [fn.gep(out, fn.mul(begin, fields["to0"]))], at, hint="output")

        output(0, out, [(x, None)])
        return kernel.finish()

    def _term(
        self, fn: Function, fields: Fields, dim: int, index: Value, tap: int, base: Value, weight: Value | None
    ) -> tuple[Value, Value | None]:
        """The address of one combination of taps, and its weight."""
        place = fn.add(fn.mul(index, self.taps[dim]), tap)
        offset = fn.load(I64, fn.gep(fields.buffer(f"index{dim}"), fn.mul(place, 8)))
        moved = fn.gep(base, offset)
        if not self.weighted:
            return moved, None
        scalar = SCALARS[self.dtype]
        here = fn.load(scalar, fn.gep(fields.buffer(f"weight{dim}"), fn.mul(place, self._item)))
        return moved, here if weight is None else fn.binary("fmul", weight, here)

    def _channels(self, fn: Function, fields: Fields, out: Value, terms: list[tuple[Value, Value | None]]) -> None:
        scalar, lanes = SCALARS[self.dtype], self.target.lanes(self.dtype) if self.unit else 1
        count, done = fields["channels"], fn.i64(0)
        steps = (self._item, self._item) if self.unit else (fields["x_c"], fields["o_c"])
        vectors = VECTORS if len(terms) <= 4 else 1
        for many, width in [(vectors, lanes), (1, lanes), (1, 1)] if lanes > 1 else [(1, 1)]:
            kind = vector(scalar, width) if width > 1 else scalar
            size = many * width
            end = fn.i64(fn.add(done, fn.mul(fn.udiv(fn.sub(count, done), size), size)))

            def some(at: Value, _: list[Value], kind: str = kind, many: int = many, width: int = width) -> list[Value]:
                for i in range(many):
                    total: Value | None = None
                    for base, weight in terms:
                        value = fn.load(kind, fn.gep(base, fn.mul(at, steps[0])), i * width * self._item)
                        if weight is not None:
                            spread = fn.splat(weight, width) if width > 1 else weight
                            value = (
                                fn.binary("fmul", value, spread)
                                if total is None
                                else fn.multiply_add(value, spread, total, fused=self.target.fma)
                            )
                        total = value
                    assert total is not None
                    fn.store(total, fn.gep(out, fn.mul(at, steps[1])), i * width * self._item)
                return []

            fn.loop(done, end, size, [], some, guard=True, hint="channels")
            done = end

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """A load and a multiply-add for each combination of taps."""
        lanes = host.target.lanes(self.dtype) if self.unit else 1
        outputs = f["n_count"] * math.prod(f[f"out{d}"] for d in range(len(self.taps)))
        vectors = f["channels"] // lanes + f["channels"] % lanes
        terms = math.prod(self.taps)
        written = outputs * f["channels"] * self._item
        counts = {"vector": float(outputs * terms * vectors), "edge": float(outputs)}
        return Cost(counts, ((written, written),), ((written, written),), chunks)
