"""Every pixel less the mean of its channel, times a factor, plus a summand; then a function of one operand."""

from __future__ import annotations

from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Module, Value, lanes_of
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.net_expression import Formula
from leanconv.kernels.net_moments import strips


@dataclass(frozen=True, slots=True)
class StandardSpec:
    """`formula((x - mean) * factor + bias)`; channels are adjacent, here and in the output, which may be the input.

    A chunk is a block of pixels of one image.  Buffers: in0, out; statistics, (images, 2, channels): mean and factor;
    bias, (channels).  Fields: `{p,n}_{div,count}`, `pixels`, `block`, `channels`, `in0_n in0_row out_n out_row`.
    """

    target: Target
    dtype: str
    formula: Formula

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        item = 8 if self.dtype == "float64" else 4
        image, part = kernel.index("n"), kernel.index("p")
        begin = fn.mul(part, fields["block"])
        count = fn.sub(fn.smin(fn.add(begin, fields["block"]), fields["pixels"]), begin)
        x, out = (
            fn.gep(
                fields.buffer(role),
                fn.add(fn.mul(image, fields[f"{role}_n"]), fn.mul(begin, fields[f"{role}_row"])),
            )
            for role in ("in0", "out")
        )
        line = fn.mul(fields["channels"], item)
        statistics = fn.gep(fields.buffer("statistics"), fn.mul(image, fn.mul(line, 2)))

        def strip(at: Value, kind: str, vectors: int) -> None:
            shift, step = fn.mul(at, item), lanes_of(kind) * item
            means, factors = (
                [fn.load(kind, fn.gep(start, shift), i * step) for i in range(vectors)]
                for start in (statistics, fn.gep(statistics, line))
            )
            biases = [fn.load(kind, fn.gep(fields.buffer("bias"), shift), i * step) for i in range(vectors)]

            def pixel(_: Value, state: list[Value]) -> list[Value]:
                source, target = state
                for i in range(vectors):
                    apart = fn.binary("fsub", fn.load(kind, source, i * step), means[i])
                    value = fn.multiply_add(apart, factors[i], biases[i], fused=self.target.fma)
                    fn.store(self.formula.emit(fn, kind, [value]), target, i * step)
                return [fn.gep(source, fields["in0_row"]), fn.gep(target, fields["out_row"])]

            fn.loop(0, count, 1, [fn.gep(x, shift), fn.gep(out, shift)], pixel, hint="pixel")

        strips(fn, fields["channels"], SCALARS[self.dtype], self.target.lanes(self.dtype), strip)
        return kernel.finish()

    def cost(self, f: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """A load, a store and a few operations for each vector."""
        lanes = host.target.lanes(self.dtype)
        vectors = f["n_count"] * f["pixels"] * (f["channels"] // lanes + f["channels"] % lanes)
        nbytes = f["n_count"] * f["pixels"] * f["channels"] * (8 if self.dtype == "float64" else 4)
        counts = {"vector": float(vectors), "multiply": float(vectors * (2 + len(self.formula.steps)))}
        return Cost(counts, ((nbytes, nbytes),), ((nbytes, nbytes),), chunks)
