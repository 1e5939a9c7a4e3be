"""Phases of the published baseline: one BLAS call, then a pass for bias, residual and activation."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I32, SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import KernelFunction


@dataclass(frozen=True, slots=True)
class GemmSpec:
    """One Fortran ?GEMM a chunk (a group): C = op(A) op(B), matrices column by column, C overwritten.

    Buffers: a, b, c, and "gemm", the function itself.  Fields: `g_*` for the chunk; `m n k lda ldb ldc`; `a_g
    b_g c_g` bytes between groups; `c_first` bytes to the image.
    """

    target: Target
    dtype: str
    transpose_a: bool
    transpose_b: bool

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group = kernel.index("g")
        scalar = SCALARS[self.dtype]

        def integer(field: str) -> Value:
            place = fn.alloca(8)
            fn.store(fn.op(I32, f"trunc i64 {fields[field].name} to i32"), place)
            return place

        def letter(transposed: bool) -> Value:
            place = fn.alloca(8)
            fn.do(f"store i8 {ord('T' if transposed else 'N')}, ptr {place.name}")
            return place

        def number(value: float) -> Value:
            place = fn.alloca(8)
            fn.store(fn.const(scalar, value), place)
            return place

        def operand(role: str) -> Value:
            return fn.gep(fields.buffer(role), fn.mul(group, fields[f"{role}_g"]))

        m, n, k = integer("m"), integer("n"), integer("k")
        c = fn.gep(operand("c"), fields["c_first"])
        args = (
            letter(self.transpose_a),
            letter(self.transpose_b),
            m,
            n,
            k,
            number(1.0),
            operand("a"),
            integer("lda"),
            operand("b"),
            integer("ldb"),
            number(0.0),
            c,
            integer("ldc"),
        )
        gemm = fields.buffer("gemm")
        fn.do(f"call void {gemm.name}({', '.join(f'ptr {a.name}' for a in args)})")
        return kernel.finish()


@dataclass(frozen=True, slots=True)
class FinishSpec:
    """Bias, residual and activation over an output in place; one chunk is one line of adjacent elements.

    Lines are the channels of a pixel (`columns` false) or the pixels of a channel.  Buffers: out, residual,
    bias.  Fields: `n_* l_*` for the chunk (image, line); `length`; `p_n p_l o_n o_l r_n r_l` byte strides of images
    and lines.
    """

    target: Target
    dtype: str
    columns: bool
    bias: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        scalar = SCALARS[self.dtype]
        item = 8 if self.dtype == "float64" else 4
        lanes = self.target.lanes(self.dtype)
        image, line = kernel.index("n"), kernel.index("l")

        def start(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(image, fields[f"{letter}_n"]), fn.mul(line, fields[f"{letter}_l"]))
            return fn.gep(fields.buffer(role), offset)

        product, out = start("product", "p"), start("out", "o")
        residual = start("residual", "r") if self.epilogue.residual else None
        bias = fields.buffer("bias") if self.bias else None
        whole = fn.mul(fn.udiv(fields["length"], lanes), lanes)

        def step(kind: str, at: Index) -> list[Value]:
            value = self._add_bias(fn, kind, fn.load(kind, product, at), bias, line, at)
            extra = fn.load(kind, residual, at) if residual is not None else None
            fn.store(self.epilogue.apply(fn, value, extra), out, at)
            return []

        kind = vector(scalar, lanes)
        fn.loop(0, whole, lanes, [], lambda i, _: step(kind, fn.mul(i, item)), guard=True, hint="vector")
        fn.loop(
            whole,
            fields["length"],
            1,
            [],
            lambda i, _: step(scalar, fn.mul(i, item)),
            guard=True,
            hint="rest",
        )
        return kernel.finish()

    def _add_bias(self, fn: Function, kind: str, value: Value, bias: Value | None, line: Index, at: Index) -> Value:
        if bias is None:
            return value
        if not self.columns:
            return fn.binary("fadd", value, fn.load(kind, bias, at))
        scalar = SCALARS[self.dtype]
        one = fn.load(scalar, bias, fn.mul(line, 8 if scalar == "double" else 4))
        if kind != scalar:
            one = fn.splat(one, self.target.lanes(self.dtype))
        return fn.binary("fadd", value, one)
