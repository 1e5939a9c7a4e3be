"""Windows sampled anywhere: rows of a patch matrix whose pixels lie at positions given by a map.

A map holds a position (y, x) for every output pixel and tap, in pixels, whole numbers at their centres.  "nearest"
takes the pixel there; "bilinear" blends the four around it, and copies the one pixel that is hit exactly.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I64, SCALARS, Function, Index, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.copy import copy_run
from leanconv.kernels.fields import Fields
from leanconv.kernels.patches import each_pixel

FARTHEST = 2.0**40  # positions are cut off here, where they still have whole numbers to be rounded to (not a number: 0)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The two pixels around a position along one axis, and their weights; None for a weight that is always one.

    `inside`: whether they are in the image, None where they always are.
    """

    at: tuple[Index, Index]
    weights: tuple[Value, Value] | None
    inside: Value | None


@dataclass(frozen=True, slots=True)
class Gather:
    """How windows are sampled.

    `map_dtype` is the map's element type, `interpolation` "nearest" or "bilinear", `pad_modes` what is outside the
    image above and below, and left and right: "zeros", "replicate" or "circular"; `channels` if few enough to be
    written out.  Buffer: map.  Fields: `in0 in1` and `at0 at1` size of the image and bytes between its pixels; `s_c`
    bytes between channels; `channels`; `out1`; `m_pixel m_tap` bytes in the matrix; `map_p map_q map_r map_s map_yx`
    bytes in the map between output pixels, taps and coordinates.
    """

    target: Target
    dtype: str
    map_dtype: str
    kernel: tuple[int, int]
    interpolation: str
    pad_modes: tuple[str, str]
    unit_channel: bool
    channels: int | None

    def emit(
        self, fn: Function, fields: Fields, x: Value, matrix: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Sample the windows of output pixels [first, end) into the matrix, whose first row is that of `first`."""
        places = fields.buffer("map")

        def pixel(position: list[Value], state: list[Value]) -> list[Value]:
            shift = fn.add(fn.mul(position[0], fields["map_p"]), fn.mul(position[1], fields["map_q"]))
            row: list[Value] = [fn.gep(places, shift), state[0]]

            def line(_: Value, state: list[Value]) -> list[Value]:
                def tap(_: Value, state: list[Value]) -> list[Value]:
                    self._sample(fn, fields, x, state[0], state[1])
                    return [fn.gep(state[0], fields["map_s"]), fn.gep(state[1], fields["m_tap"])]

                _, target = fn.loop(0, self.kernel[1], 1, state, tap, hint="tap")
                return [fn.gep(state[0], fields["map_r"]), target]

            fn.loop(0, self.kernel[0], 1, row, line, hint="line")
            return [fn.gep(state[0], fields["m_pixel"])]

        each_pixel(fn, fields, 2, first, end, [matrix], pixel)
        return matrix, 0

    def _sample(self, fn: Function, fields: Fields, x: Value, place: Value, target: Value) -> None:
        """All channels at one position."""
        y, z = (self._axis(fn, fields, dim, place) for dim in range(2))
        rows = [fn.gep(x, fn.mul(at, fields["at0"])) for at in y.at]

        def corner(i: int, j: int) -> Value:
            return fn.gep(rows[i], fn.mul(z.at[j], fields["at1"]))

        def nothing() -> list[Value]:
            self._copy(fn, fields, None, target)
            return []

        def copied() -> list[Value]:
            self._copy(fn, fields, corner(0, 0), target)
            return []

        def blended() -> list[Value]:
            assert y.weights and z.weights
            weights = [fn.binary("fmul", v, h) for v in y.weights for h in z.weights]
            self._blend(fn, fields, [corner(i, j) for i in range(2) for j in range(2)], weights, target)
            return []

        def sampled() -> list[Value]:
            if not (y.weights and z.weights):
                return copied()
            one = fn.const(SCALARS[self.dtype], 1.0)
            exact = fn.both(fn.fcmp("oeq", y.weights[0], one), fn.fcmp("oeq", z.weights[0], one))
            return fn.if_(exact, copied, blended, hint="exact")

        some = [axis.inside for axis in (y, z) if axis.inside is not None]
        if not some:
            sampled()
        else:
            fn.if_(some[0] if len(some) == 1 else fn.both(*some), sampled, nothing, hint="inside")

    def _axis(self, fn: Function, fields: Fields, dim: int, place: Value) -> _Axis:
        kind, size, mode = SCALARS[self.map_dtype], fields[f"in{dim}"], self.pad_modes[dim]
        at = fn.load(kind, place, fn.mul(fields["map_yx"], dim))
        # Unordered comparison: what is not a number goes to the far end as well, and reads nothing by accident.
        for edge, test in ((-FARTHEST, "ult"), (FARTHEST, "ogt")):
            limit = fn.const(kind, edge)
            at = fn.select(fn.fcmp(test, at, limit), limit, at)
        if self.interpolation == "nearest":
            low, _ = self._floor(fn, fn.binary("fadd", at, fn.const(kind, 0.5)))
            where, inside = self._inside(fn, low, size, mode)
            return _Axis((where, where), None, inside)
        low, whole = self._floor(fn, at)
        part = self._as_element(fn, fn.binary("fsub", at, whole))
        zero, one = fn.const(SCALARS[self.dtype], 0.0), fn.const(SCALARS[self.dtype], 1.0)
        lower, low_inside = self._inside(fn, low, size, mode)
        upper, high_inside = self._inside(fn, fn.i64(fn.add(low, 1)), size, mode)
        # A pixel that has no part in the sum is not read, so that what is not a number there stays there.
        shared = fn.fcmp("one", part, zero)
        upper = fn.select(shared, upper, lower)
        below, above = fn.binary("fsub", one, part), part
        if low_inside is None or high_inside is None:
            return _Axis((lower, upper), (below, above), None)
        high_inside = fn.both(high_inside, shared)
        return _Axis(
            (lower, upper),
            (fn.select(low_inside, below, zero), fn.select(high_inside, above, zero)),
            fn.either(low_inside, high_inside),
        )

    def _floor(self, fn: Function, at: Value) -> tuple[Value, Value]:
        """The greatest whole number that is not above `at`, as an integer and as it was.

        Not the intrinsic, which some targets leave to the C library.
        """
        cut = fn.op(I64, f"fptosi {at.type} {at.name} to i64")
        back = fn.op(at.type, f"sitofp i64 {cut.name} to {at.type}")
        above = fn.fcmp("ogt", back, at)
        one = fn.const(at.type, 1.0)
        return fn.select(above, fn.sub(cut, 1), cut), fn.select(above, fn.binary("fsub", back, one), back)

    def _as_element(self, fn: Function, part: Value) -> Value:
        scalar = SCALARS[self.dtype]
        if part.type == scalar:
            return part
        return fn.op(scalar, f"{'fpext' if scalar == 'double' else 'fptrunc'} {part.type} {part.name} to {scalar}")

    def _inside(self, fn: Function, at: Value, size: Value, mode: str) -> tuple[Value, Value | None]:
        """A pixel of the image for any number, and whether the number is one of the image's, if that matters.

        Beside a number outside that has a weight there is one inside next to it, which is what it is cut to.
        """
        if mode == "circular":

            def wrapped() -> list[Value]:
                rest = fn.op(I64, f"srem i64 {at.name}, {size.name}")
                return [fn.select(fn.cmp("slt", rest, 0), fn.add(rest, size), rest)]

            return fn.if_(fn.cmp("ult", at, size), lambda: [at], wrapped, hint="wrap")[0], None
        cut = fn.i64(fn.smin(fn.smax(at, 0), fn.sub(size, 1)))
        return cut, fn.cmp("ult", at, size) if mode == "zeros" else None

    def _copy(self, fn: Function, fields: Fields, source: Value | None, target: Value) -> None:
        item = 8 if self.dtype == "float64" else 4
        kind = vector(SCALARS[self.dtype], self.target.lanes(self.dtype))
        adjacent = self.unit_channel or source is None
        step: Index = item if adjacent else fields["s_c"]
        copy_run(fn, kind, self._count(fields), source, target, (step, item), adjacent)

    def _count(self, fields: Fields) -> Index:
        return self.channels if self.channels is not None else fields["channels"]

    def _blend(self, fn: Function, fields: Fields, corners: list[Value], weights: list[Value], target: Value) -> None:
        """Weighted sums of the four pixels, channel by channel, in vectors where channels are adjacent."""
        item, lanes = 8 if self.dtype == "float64" else 4, self.target.lanes(self.dtype)
        step: Index = item if self.unit_channel else fields["s_c"]
        count = self._count(fields)

        def mixed(width: int, spread: list[Value], state: list[Value], source_step: Index) -> list[Value]:
            *sources, to = state
            kind = spread[0].type
            total = fn.binary("fmul", fn.load(kind, sources[0]), spread[0])
            for source, weight in zip(sources[1:], spread[1:], strict=True):
                total = fn.multiply_add(fn.load(kind, source), weight, total, fused=self.target.fma)
            fn.store(total, to)
            return [*(fn.gep(source, source_step) for source in sources), fn.gep(to, width * item)]

        state = [*corners, target]
        many: Index = 0
        if self.unit_channel and (self.channels is None or self.channels >= lanes):
            many = fn.mul(fn.udiv(count, lanes), lanes)
            spread = [fn.splat(weight, lanes) for weight in weights]
            state = fn.loop(
                0, many, lanes, state, lambda _, s: mixed(lanes, spread, s, lanes * item), guard=True, hint="blend"
            )
        if isinstance(many, int) and isinstance(count, int):
            for _ in range(many, count):
                state = mixed(1, weights, state, step)
            return
        fn.loop(many, count, 1, state, lambda _, s: mixed(1, weights, s, step), guard=True, hint="blend")
