"""Mean and spread of each channel, or of each group of them, over the pixels of an image; then all pixels by them.

The image is read once for its moments: a block of pixels that stays in the first-level cache is summed, and then the
squares of its distances from its own mean.  Blocks are joined in float64 (Chan, Golub, LeVeque).  What a block is
depends on the shape only, so the bits of a result do not depend on the number of threads.

T. F. Chan, G. H. Golub, R. J. LeVeque: Algorithms for Computing the Sample Variance, 1983.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, lanes_of, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction

VECTORS = 4  # of channels that are summed at a time
WIDE = "double"


@dataclass(frozen=True, slots=True)
class MomentsSpec:
    """Mean, and sum of squared distances from it, of each channel over a block of pixels; channels are adjacent.

    A chunk is a block of one image.  Buffers: x; moments, (images, blocks, 2, channels).  Fields: `{p,n}_{div,count}`
    split the chunk's number; `pixels`, `block` of them, `channels`, `x_n x_row` bytes between images and pixels.
    """

    target: Target
    dtype: str

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, item, scalar = kernel.fn, kernel.fields, _item(self.dtype), SCALARS[self.dtype]
        image, part = kernel.index("n"), kernel.index("p")
        begin = fn.mul(part, fields["block"])
        count = fn.sub(fn.smin(fn.add(begin, fields["block"]), fields["pixels"]), begin)
        x = fn.gep(fields.buffer("x"), fn.add(fn.mul(image, fields["x_n"]), fn.mul(begin, fields["x_row"])))
        line = fn.mul(fields["channels"], item)
        number = fn.add(fn.mul(image, fields["p_count"]), part)
        out = fn.gep(fields.buffer("moments"), fn.mul(number, fn.mul(line, 2)))
        size = fn.op(scalar, f"sitofp i64 {fn.i64(count).name} to {scalar}")

        def strip(at: Value, kind: str, vectors: int) -> None:
            shift, step = fn.mul(at, item), lanes_of(kind) * item
            width = lanes_of(kind)

            def total(term: Callable[[int, Value, Value], Value]) -> list[Value]:
                def pixel(_: Value, state: list[Value]) -> list[Value]:
                    place, *sums = state
                    return [
                        fn.gep(place, fields["x_row"]),
                        *(term(i, s, fn.load(kind, place, i * step)) for i, s in enumerate(sums)),
                    ]

                zero = fn.const(kind, 0.0)
                return fn.loop(0, count, 1, [fn.gep(x, shift), *[zero] * vectors], pixel, hint="pixel")[1:]

            sums = total(lambda i, s, value: fn.binary("fadd", s, value))
            spread_size = fn.splat(size, width) if kind.startswith("<") else size
            means = [fn.binary("fdiv", s, spread_size) for s in sums]

            def square(i: int, s: Value, value: Value) -> Value:
                apart = fn.binary("fsub", value, means[i])
                return fn.multiply_add(apart, apart, s, fused=self.target.fma)

            place = fn.gep(out, shift)
            for i, (mean, spread) in enumerate(zip(means, total(square), strict=True)):
                fn.store(mean, place, i * step)
                fn.store(spread, fn.gep(place, line), i * step)

        strips(fn, fields["channels"], scalar, self.target.lanes(self.dtype), strip)
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Each pixel twice, once from memory."""
        vectors = f["n_count"] * f["pixels"] * _vectors(f["channels"], host.target.lanes(self.dtype))
        nbytes = f["n_count"] * f["pixels"] * f["channels"] * _item(self.dtype)
        return Cost({"multiply": 2.5 * vectors, "run": float(chunks)}, ((nbytes, nbytes),), (), chunks)


@dataclass(frozen=True, slots=True)
class StatisticsSpec:
    """Mean and factor `1 / sqrt(variance + epsilon)` of each channel, times the channel's scale, from its moments.

    `grouped`: channels of a group, `members` adjacent ones, have mean and variance in common.  A chunk is an image.
    Buffers: moments; scale, (channels); statistics, (images, 2, channels).  Fields: `{p,n}_count`, `n_div`, `pixels`,
    `block`, `channels`, and `members` if grouped.
    """

    target: Target
    dtype: str
    epsilon: float
    grouped: bool

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields, item, scalar = kernel.fn, kernel.fields, _item(self.dtype), SCALARS[self.dtype]
        image, blocks, line = kernel.index("n"), fields["p_count"], fn.mul(fields["channels"], item)
        pair = fn.mul(line, 2)
        x = fn.gep(fields.buffer("moments"), fn.mul(image, fn.mul(blocks, pair)))
        out = fn.gep(fields.buffer("statistics"), fn.mul(image, pair))
        last = fn.sub(blocks, 1)

        def number(index: Index, wide: str) -> Value:
            value = fn.op(WIDE, f"sitofp i64 {fn.i64(index).name} to {WIDE}")
            return fn.splat(value, lanes_of(wide)) if wide.startswith("<") else value

        def strip(at: Value, kind: str, vectors: int) -> None:
            width = lanes_of(kind)
            wide = vector(WIDE, width) if kind.startswith("<") else WIDE
            start = fn.gep(x, fn.mul(at, item))
            whole, pixels = number(fields["block"], wide), number(fields["pixels"], wide)
            rest = number(fn.sub(fields["pixels"], fn.mul(last, fields["block"])), wide)

            def size(block: Value) -> Value:
                return fn.select(fn.cmp("eq", block, last), rest, whole)

            def add_mean(block: Value, state: list[Value]) -> list[Value]:
                mean = _widened(fn, fn.load(kind, state[1]), wide)
                return [fn.binary("fadd", state[0], fn.binary("fmul", mean, size(block))), fn.gep(state[1], pair)]

            zero = fn.const(wide, 0.0)
            mean = fn.binary("fdiv", fn.loop(0, blocks, 1, [zero, start], add_mean, hint="block")[0], pixels)

            def add_spread(block: Value, state: list[Value]) -> list[Value]:
                apart = fn.binary("fsub", _widened(fn, fn.load(kind, state[1]), wide), mean)
                here = _widened(fn, fn.load(kind, fn.gep(state[1], line)), wide)
                more = fn.binary("fmul", fn.binary("fmul", apart, apart), size(block))
                return [fn.binary("fadd", state[0], fn.binary("fadd", here, more)), fn.gep(state[1], pair)]

            spread = fn.loop(0, blocks, 1, [zero, start], add_spread, hint="block")[0]
            place = fn.gep(out, fn.mul(at, item))
            fn.store(_narrowed(fn, mean, kind), place)
            if self.grouped:
                fn.store(_narrowed(fn, spread, kind), fn.gep(place, line))
                return
            root = fn.intrinsic(
                "sqrt", fn.binary("fadd", fn.binary("fdiv", spread, pixels), fn.const(wide, self.epsilon))
            )
            scale = _widened(fn, fn.load(kind, fields.buffer("scale"), fn.mul(at, item)), wide)
            fn.store(_narrowed(fn, fn.binary("fdiv", scale, root), kind), fn.gep(place, line))

        strips(fn, fields["channels"], scalar, self.target.lanes(self.dtype), strip, most=1)
        if self.grouped:
            self._groups(fn, kernel, out, line, number)
        return kernel.finish()

    def _groups(
        self, fn: Function, kernel: KernelFunction, out: Value, line: Index, number: Callable[[Index, str], Value]
    ) -> None:
        """Channels joined to groups, one group after the other."""
        fields, item, scalar = kernel.fields, _item(self.dtype), SCALARS[self.dtype]
        members = fields["members"]
        pixels = number(fields["pixels"], WIDE)

        def group(first: Value, _: list[Value]) -> list[Value]:
            end = fn.add(first, members)

            def each(body: Callable[[Value, Value, Value], Value]) -> Value:
                def member(c: Value, state: list[Value]) -> list[Value]:
                    place = fn.gep(out, fn.mul(c, item))
                    mean = _widened(fn, fn.load(scalar, place), WIDE)
                    return [body(state[0], mean, fn.gep(place, line))]

                return fn.loop(first, end, 1, [fn.const(WIDE, 0.0)], member, hint="member")[0]

            mean = fn.binary("fdiv", each(lambda s, m, _: fn.binary("fadd", s, m)), number(members, WIDE))

            def spread_of(s: Value, m: Value, place: Value) -> Value:
                apart = fn.binary("fsub", m, mean)
                here = _widened(fn, fn.load(scalar, place), WIDE)
                return fn.binary(
                    "fadd", s, fn.binary("fadd", here, fn.binary("fmul", fn.binary("fmul", apart, apart), pixels))
                )

            variance = fn.binary("fdiv", each(spread_of), fn.binary("fmul", number(members, WIDE), pixels))
            root = fn.intrinsic("sqrt", fn.binary("fadd", variance, fn.const(WIDE, self.epsilon)))

            def store(c: Value, _: list[Value]) -> list[Value]:
                shift = fn.mul(c, item)
                place = fn.gep(out, shift)
                scale = _widened(fn, fn.load(scalar, fields.buffer("scale"), shift), WIDE)
                fn.store(_narrowed(fn, mean, scalar), place)
                fn.store(_narrowed(fn, fn.binary("fdiv", scale, root), scalar), fn.gep(place, line))
                return []

            fn.loop(first, end, 1, [], store, hint="member")
            return []

        fn.loop(0, fields["channels"], members, [], group, hint="group")

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """Some operations for each block, and for each channel of a group."""
        vectors = f["n_count"] * f["p_count"] * _vectors(f["channels"], host.target.lanes(self.dtype))
        members = f["n_count"] * f["channels"] * 3.0 if self.grouped else 0.0
        return Cost({"multiply": 12.0 * vectors, "element": members}, (), (), chunks)


def strips(
    fn: Function,
    channels: Index,
    scalar: str,
    lanes: int,
    body: Callable[[Value, str, int], None],
    most: int = VECTORS,
) -> None:
    """All channels: several vectors at a time, then single vectors, then single channels.

    `body` is called with the first channel, the type of a vector, and how many vectors.
    """
    done: Index = 0
    for vectors, width in dict.fromkeys(((most, lanes), (1, lanes), (1, 1))):
        kind = vector(scalar, width) if width > 1 else scalar
        size = vectors * width
        end = fn.add(done, fn.mul(fn.udiv(fn.sub(channels, done), size), size))

        def some(at: Value, _: list[Value], kind: str = kind, vectors: int = vectors) -> list[Value]:
            body(at, kind, vectors)
            return []

        fn.loop(done, end, size, [], some, guard=True, hint="channels")
        done = end


def _item(dtype: str) -> int:
    return 8 if dtype == "float64" else 4


def _vectors(channels: int, lanes: int) -> int:
    return channels // lanes + channels % lanes


def _widened(fn: Function, value: Value, wide: str) -> Value:
    return value if value.type == wide else fn.op(wide, f"fpext {value.type} {value.name} to {wide}")


def _narrowed(fn: Function, value: Value, kind: str) -> Value:
    return value if value.type == kind else fn.op(kind, f"fptrunc {value.type} {value.name} to {kind}")
