"""The definition as a kernel: one output element at a time, summed in float64, no memory beyond the arrays.

It reads and writes any strides and any pad mode, so it stands beside every other algorithm as the one to
compare with; nothing ever falls back to it silently.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import KernelFunction
from leanconv.kernels.image import mapped_position


@dataclass(frozen=True, slots=True)
class NaiveSpec:
    """One chunk is one image and output channel; buffers: x, weights, bias, out, residual.

    Fields: `n_*`, `k_*` for the chunk; `out{d} in{d} at{d} o_{d} r_{d} w_{d}` sizes and byte strides per
    dimension; `x_n x_c o_n o_k r_n r_k w_k w_c` byte strides; `channels` and `group_out` channels of a group.
    """

    target: Target
    dtype: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    pad_low: tuple[int, ...]
    pad_mode: str
    bias: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        n, k = kernel.index("n"), kernel.index("k")
        scalar = SCALARS[self.dtype]
        dims = len(self.kernel)
        group = fn.udiv(k, fields["group_out"])
        first_channel = fn.mul(fn.mul(group, fields["channels"]), fields["x_c"])
        x = fn.gep(fields.buffer("x"), fn.add(fn.mul(n, fields["x_n"]), first_channel))
        weights = fn.gep(fields.buffer("weights"), fn.mul(k, fields["w_k"]))

        def place(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(n, fields[f"{letter}_n"]), fn.mul(k, fields[f"{letter}_k"]))
            return fn.gep(fields.buffer(role), offset)

        out = place("out", "o")
        residual = place("residual", "r") if self.epilogue.residual else None
        start = fn.const("double", 0.0)
        if self.bias:
            start = self._wide(fn, fn.load(scalar, fields.buffer("bias"), fn.mul(k, 8 if scalar == "double" else 4)))

        def pixels(dim: int, position: list[Value], out: Value, residual: Value | None) -> None:
            if dim < dims:

                def step(at: Value, _: list[Value]) -> list[Value]:
                    r = None if residual is None else fn.gep(residual, fn.mul(at, fields[f"r_{dim}"]))
                    pixels(dim + 1, [*position, at], fn.gep(out, fn.mul(at, fields[f"o_{dim}"])), r)
                    return []

                fn.loop(0, fields[f"out{dim}"], 1, [], step, hint="pixel")
                return
            total = self._taps(fn, kernel, 0, position, x, weights, start)
            if scalar == "float":
                total = fn.op("float", f"fptrunc double {total.name} to float")
            extra = fn.load(scalar, residual) if residual is not None else None
            fn.store(self.epilogue.apply(fn, total, extra), out)

        pixels(0, [], out, residual)
        return kernel.finish()

    def _wide(self, fn: Function, value: Value) -> Value:
        return value if value.type == "double" else fn.op("double", f"fpext float {value.name} to double")

    def _taps(
        self,
        fn: Function,
        kernel: KernelFunction,
        dim: int,
        position: list[Value],
        x: Value,
        w: Value,
        total: Value,
    ) -> Value:
        """Add all taps from dimension `dim` on."""
        fields = kernel.fields
        if dim == len(self.kernel):

            def channel(_: Value, state: list[Value]) -> list[Value]:
                a, b, total = state
                scalar = SCALARS[self.dtype]
                product = fn.binary("fmul", self._wide(fn, fn.load(scalar, a)), self._wide(fn, fn.load(scalar, b)))
                return [fn.gep(a, fields["x_c"]), fn.gep(b, fields["w_c"]), fn.binary("fadd", total, product)]

            return fn.loop(0, fields["channels"], 1, [x, w, total], channel, hint="channel")[2]

        def tap(index: Value, state: list[Value]) -> list[Value]:
            corner = fn.sub(fn.mul(position[dim], self.stride[dim]), self.pad_low[dim])
            at = fn.i64(fn.add(corner, fn.mul(index, self.dilation[dim])))
            size = fields[f"in{dim}"]
            here = fn.gep(w, fn.mul(index, fields[f"w_{dim}"]))

            def inside() -> list[Value]:
                where = at if self.pad_mode == "zeros" else mapped_position(fn, at, size, self.pad_mode)
                moved = fn.gep(x, fn.mul(where, fields[f"at{dim}"]))
                return [self._taps(fn, kernel, dim + 1, position, moved, here, state[0])]

            if self.pad_mode != "zeros":
                return inside()
            return fn.if_(fn.cmp("ult", at, size), inside, lambda: [state[0]], hint="inside")

        return fn.loop(0, self.kernel[dim], 1, [total], tap, hint="tap")[0]
