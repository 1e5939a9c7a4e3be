"""The table of holes: where a shifted row of pixels would take over what belongs to the row before or after it."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import I32, I64, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import KernelFunction


@dataclass(frozen=True, slots=True)
class HolesSpec:
    """For each column of the kernel and of the output, 1, or 0 where it would read beyond its row.

    Numbers are as large as elements of `dtype`.  One chunk is one column of the kernel.  Buffer: holes.  Fields: `j_*`
    for the chunk; `in2` columns of output and image; `dilation2 pad2`.
    """

    target: Target
    dtype: str

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        kind, item = (I64, 8) if self.dtype == "float64" else (I32, 4)
        column, width = kernel.index("j"), fields["in2"]
        right = fn.sub(fn.mul(column, fields["dilation2"]), fields["pad2"])
        table = fn.gep(fields.buffer("holes"), fn.mul(fn.mul(column, width), item))

        def mark(at: Value, _: list[Value]) -> list[Value]:
            whole = fn.cmp("ult", fn.add(at, right), width)
            number = fn.op(kind, f"zext i1 {whole.name} to {kind}")
            fn.store(number, table, fn.mul(at, item))
            return []

        fn.loop(0, width, 1, [], mark, hint="mark")
        return kernel.finish()
