"""The gradient with respect to depthwise weights: each channel's pixels times its gradient, in vectors.

With channels adjacent a vector is of channels; with pixels adjacent it is of pixels of a line, and its lanes are added
up at the end. Taps of a line of the kernel are summed together, so that the gradient is loaded once: in one loop
where all of them read inside the image, and tap by tap beside it. As in `backward_weights`, sums of boxes of pixels are
added to totals, and nothing is padded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.boxes import Box, Walker, each_box, each_line, inside, position_of_tap
from leanconv.kernels.copy import copy_run
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import load_lanes
from leanconv.kernels.fields import KernelFunction

TOGETHER = 5  # taps of a line that are summed together: two registers each, and one of the gradient


@dataclass(frozen=True, slots=True)
class BackwardDepthwiseSpec:
    """One chunk is some units: `vectors` of channels, or (0) one channel whose pixels are in vectors.

    `rest` channels are in the last unit (0: as many as in the others); `near` whether the image's pixels of a line of
    windows are adjacent, as those of the gradient are (`vectors` 0).

    Buffers: x, weights (the gradient of the output), out, bias, and sums (totals) of each thread.  Fields: `u_*` for
    the chunk; `units` a chunk, `unit_count` in all; `batch out{d} in{d} b_n b_{d}`; `x_n x_u at{d} step{d} tap{d}`
    bytes of the image; `y_n y_u y_{d}` of the gradient; `o_k o_{d}` of the result; `tap_count`; `sum_unit` bytes of
    totals a unit, `sum_bytes` in all.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    vectors: int
    rest: int
    near: bool
    bias: bool

    @property
    def lanes(self) -> int:
        """Elements of a vector."""
        return self.target.lanes(self.dtype)

    @property
    def item(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def vec(self) -> str:
        """LLVM's vector type."""
        return vector(SCALARS[self.dtype], self.lanes)

    @property
    def whole(self) -> tuple[int, ...]:
        """Lanes that count of each vector of a unit."""
        return (self.lanes,) * max(1, self.vectors)

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        begin = fn.i64(fn.mul(kernel.index("u"), fields["units"]))
        end = fn.i64(fn.smin(fn.add(begin, fields["units"]), fields["unit_count"]))
        sums = fn.gep(fields.buffer("sums"), fn.mul(kernel.thread, fields["thread_sums"]))
        copy_run(fn, self.vec, fn.udiv(fields["sum_bytes"], self.item), None, sums, (self.item, self.item), True)

        def units(body: Callable[[_Unit], None]) -> None:
            def unit(at: Value, _: list[Value]) -> list[Value]:
                totals = fn.gep(sums, fn.mul(fn.sub(at, begin), fields["sum_unit"]))

                def one(counts: tuple[int, ...]) -> list[Value]:
                    body(_Unit(self, kernel, at, totals, counts))
                    return []

                if self.rest:
                    full, valid = divmod(self.rest, self.lanes)
                    counts = (self.lanes,) * full + ((valid,) if valid else ())
                    last = fn.cmp("eq", fn.add(at, 1), fields["unit_count"])
                    fn.if_(last, lambda: one(counts), lambda: one(self.whole), hint="rest")
                else:
                    one(self.whole)
                return []

            fn.loop(begin, end, 1, [], unit, guard=True, hint="unit")

        each_box(fn, fields, len(self.kernel), lambda box: units(lambda unit: unit.add(box)))
        units(lambda unit: unit.store())
        return kernel.finish()

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Two loads a multiply-add; image and gradient come from memory once."""
        f = fields
        pixels = f["batch"] * math.prod(f[f"out{d}"] for d in range(len(self.kernel)))
        vectors = pixels * f["unit_count"] * f["tap_count"] * (self.vectors or 1 / self.lanes)
        image = f["batch"] * math.prod(f[f"in{d}"] for d in range(len(self.kernel)))
        nbytes = (pixels + image) * f["unit_count"] * (self.vectors * self.lanes or 1) * self.item
        counts = {"multiply": 2 * vectors}
        if not self.vectors and not self.near:
            counts["element"] = vectors * self.lanes
        return Cost(counts, ((nbytes, nbytes),), (), chunks)


@dataclass(slots=True)
class _Unit:
    """Emits what is done for one unit; `counts` lanes count of each of its vectors."""

    spec: BackwardDepthwiseSpec
    kernel: KernelFunction
    number: Value
    totals: Value
    counts: tuple[int, ...]

    @property
    def fn(self) -> Function:
        return self.kernel.fn

    def add(self, box: Box) -> None:
        """The sums over a box, added to the totals."""
        fn, fields, spec = self.fn, self.kernel.fields, self.spec
        dims = len(spec.kernel)
        corner = fn.gep(fields.buffer("x"), fn.mul(self.number, fields["x_u"]))
        for d in range(dims):
            corner = fn.gep(corner, fn.mul(fields[f"at{d}"], -spec.pad_low[d]))
        start = fn.gep(fields.buffer("weights"), fn.mul(self.number, fields["y_u"]))
        grad = Walker(start, fields["y_n"], [fields[f"y_{d}"] for d in range(dims)])

        def line(number: Value, _: list[Value]) -> list[Value]:
            """The taps of one line of the kernel."""
            position = position_of_tap(fn, number, spec.kernel[:-1]) if dims > 1 else []
            first, ranges = corner, []
            for d, at in enumerate(position):
                first = fn.gep(first, fn.mul(at, fields[f"tap{d}"]))
                low, high = inside(fn, fields, spec.stride[d], spec.dilation[d], spec.pad_low[d], d, at)
                begin, end = box.ranges[d]
                ranges.append((fn.i64(fn.smax(low, begin)), fn.i64(fn.smin(high, end))))
            image = Walker(first, fields["x_n"], [fields[f"step{d}"] for d in range(dims)])
            base = fn.gep(self.totals, fn.mul(number, spec.kernel[-1] * self._tap_bytes))
            for low_tap in range(0, spec.kernel[-1], TOGETHER):
                taps = range(low_tap, min(low_tap + TOGETHER, spec.kernel[-1]))
                self._taps(box, ranges, image, grad, taps, fn.gep(base, low_tap * self._tap_bytes))
            return []

        fn.loop(0, math.prod(spec.kernel[:-1]), 1, [], line, hint="taps")
        if spec.bias:

            def gradient(places: list[Value], count: Value, accs: list[Value]) -> list[Value]:
                return self._span(places[0], None, count, [0], accs, 0)

            zeros = [fn.const(spec.vec, 0.0)] * len(self.counts)
            accs = each_line(fn, box, box.ranges, (grad,), zeros, gradient)
            self._total(accs, fn.gep(self.totals, fn.mul(fields["tap_count"], self._tap_bytes)))

    @property
    def _tap_bytes(self) -> int:
        return max(1, self.spec.vectors) * self.spec.target.vector_bytes

    def _taps(
        self,
        box: Box,
        outer: list[tuple[Value, Value]],
        image: Walker,
        grad: Walker,
        taps: range,
        totals: Value,
    ) -> None:
        """Some taps of one line of the kernel."""
        fn, fields, spec, last = self.fn, self.kernel.fields, self.spec, len(self.spec.kernel) - 1
        begin, end = box.ranges[last]
        stride, dilation, pad = spec.stride[last], spec.dilation[last], spec.pad_low[last]
        spans = []
        for tap in taps:
            low, high = inside(fn, fields, stride, dilation, pad, last, tap)
            spans.append((fn.i64(fn.smax(low, begin)), fn.i64(fn.smin(high, end))))
        # Positions where all of them read inside the image; before and behind, each tap has its own.
        first, stop = spans[0]
        for low, high in spans[1:]:
            first, stop = fn.i64(fn.smax(first, low)), fn.i64(fn.smin(stop, high))
        stop = fn.i64(fn.smax(stop, first))
        offsets = [fn.mul(fields[f"tap{last}"], tap) for tap in taps]
        wide = len(self.counts)

        def line(places: list[Value], _: Value, accs: list[Value]) -> list[Value]:
            y, x = places

            def span(low: Value, high: Value, chosen: list[int], accs: list[Value]) -> list[Value]:
                ahead = fn.sub(low, begin)
                here = fn.gep(y, fn.mul(ahead, grad.steps[last]))
                there = fn.gep(x, fn.mul(ahead, image.steps[last]))
                return self._span(here, there, fn.sub(high, low), [offsets[i] for i in chosen], accs, stride)

            accs = span(first, stop, list(range(len(spans))), accs)
            for i, (low, high) in enumerate(spans):
                mine = accs[i * wide : (i + 1) * wide]
                mine = span(low, fn.i64(fn.smin(first, high)), [i], mine)
                mine = span(fn.i64(fn.smax(stop, low)), high, [i], mine)
                accs = [*accs[: i * wide], *mine, *accs[(i + 1) * wide :]]
            return accs

        zeros = [fn.const(spec.vec, 0.0)] * (wide * len(taps))
        self._total(each_line(fn, box, [*outer, (begin, end)], (grad, image), zeros, line), totals)

    def _span(
        self,
        grad: Value,
        image: Value | None,
        count: Index,
        offsets: Sequence[Index],
        accs: list[Value],
        stride: int,
    ) -> list[Value]:
        """`count` positions (none if negative) under the taps at `offsets`; without an image the gradient alone."""
        fn, fields, spec, last = self.fn, self.kernel.fields, self.spec, len(self.spec.kernel) - 1
        channels = spec.vectors > 0
        strides: list[Index] = [
            fields[f"y_{last}"] if channels else spec.item,
            spec.item if spec.near and not channels else fields[f"step{last}"],
        ]
        several = 1 if channels else spec.lanes
        count = fn.i64(count)
        places = [grad] if image is None else [grad, image]

        def added(at: list[Value], accs: list[Value], left: Value | None) -> list[Value]:
            result = list(accs)
            for v, valid in enumerate(self.counts):
                move = v * spec.target.vector_bytes
                value = self._loaded(fn.gep(at[0], move), strides[0], valid, left)
                for i, offset in enumerate(offsets):
                    acc = i * len(self.counts) + v
                    if image is None:
                        result[acc] = fn.binary("fadd", result[acc], value)
                        continue
                    pixels = self._loaded(fn.gep(fn.gep(at[1], offset), move), strides[1], valid, left)
                    result[acc] = fn.multiply_add(value, pixels, result[acc], fused=spec.target.fma)
            return result

        def step(_: Value, state: list[Value]) -> list[Value]:
            at, accs = state[: len(places)], state[len(places) :]
            moved = [fn.gep(place, fn.mul(s, several)) for place, s in zip(at, strides, strict=False)]
            return [*moved, *added(at, accs, None)]

        whole: Index = count
        if several > 1:
            whole = fn.sub(count, fn.urem(fn.smax(count, 0), several))
        state = fn.loop(0, whole, several, [*places, *accs], step, guard=True, hint="pixels")
        if several == 1:
            return state[len(places) :]
        at, accs = state[: len(places)], state[len(places) :]
        left = fn.i64(fn.sub(count, whole))
        return fn.if_(fn.cmp("sgt", left, 0), lambda: added(at, accs, left), lambda: accs, hint="rest")

    def _loaded(self, place: Value, step: Index, valid: int, left: Value | None) -> Value:
        """A vector of channels, or of pixels `step` bytes apart, of which `left` exist (None: all)."""
        fn, spec = self.fn, self.spec
        if spec.vectors:
            return load_lanes(fn, spec.vec, place, valid, masks=spec.target.masks)
        if step == spec.item:
            if left is None:
                return fn.load(spec.vec, place)
            return fn.masked_load(spec.vec, place, fn.lane_mask(spec.lanes, left))
        scalar, value = SCALARS[spec.dtype], fn.const(spec.vec, 0.0)
        for lane in range(spec.lanes):
            # A lane that does not exist reads the first element, and counts as zero.
            exists = fn.cmp("slt", lane, left) if left is not None and lane else None
            offset: Index = fn.mul(step, lane)
            element = fn.load(scalar, place, offset if exists is None else fn.select(exists, offset, 0))
            if exists is not None:
                element = fn.select(exists, element, fn.const(scalar, 0.0))
            value = fn.op(spec.vec, f"insertelement {spec.vec} {value.name}, {scalar} {element.name}, i32 {lane}")
        return value

    def _total(self, accs: Sequence[Value], totals: Value) -> None:
        """Add sums to totals: those of one tap after the other, each as wide as whole units are."""
        fn, wide = self.fn, len(self.counts)
        for i, acc in enumerate(accs):
            place = fn.gep(totals, (i // wide) * self._tap_bytes + (i % wide) * self.spec.target.vector_bytes)
            fn.store(fn.binary("fadd", fn.load(self.spec.vec, place), acc), place)

    def store(self) -> None:
        """Write the totals to where they were asked for."""
        fn, fields, spec = self.fn, self.kernel.fields, self.spec
        first = fn.mul(self.number, spec.vectors * spec.lanes or 1)
        out = fn.gep(fields.buffer("out"), fn.mul(first, fields["o_k"]))

        def tap(number: Value, _: list[Value]) -> list[Value]:
            place = out
            for d, at in enumerate(position_of_tap(fn, number, spec.kernel)):
                place = fn.gep(place, fn.mul(at, fields[f"o_{d}"]))
            self._put(place, fields["o_k"], number)
            return []

        fn.loop(0, fields["tap_count"], 1, [], tap, hint="tap")
        if spec.bias:
            self._put(fn.gep(fields.buffer("bias"), fn.mul(first, spec.item)), spec.item, fields["tap_count"])

    def _put(self, place: Value, step: Index, number: Index) -> None:
        """The totals of one tap: lanes to channels, or the sum of all lanes."""
        fn, spec, scalar = self.fn, self.spec, SCALARS[self.spec.dtype]
        source = fn.gep(self.totals, fn.mul(number, self._tap_bytes))
        for v, valid in enumerate(self.counts):
            value = fn.load(spec.vec, source, v * spec.target.vector_bytes)
            lanes = [fn.op(scalar, f"extractelement {spec.vec} {value.name}, i32 {lane}") for lane in range(valid)]
            while not spec.vectors and len(lanes) > 1:
                lanes = [fn.binary("fadd", a, b) for a, b in zip(lanes[::2], lanes[1::2], strict=True)]
            for lane, element in enumerate(lanes):
                fn.store(element, fn.gep(place, fn.mul(step, v * spec.lanes + lane)))
