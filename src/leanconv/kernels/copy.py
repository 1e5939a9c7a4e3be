"""A strided copy of an image: what stands between the core and an array it cannot store into or read as it lies."""

from __future__ import annotations

from dataclasses import dataclass

from leanconv.codegen.ir import SCALARS, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import KernelFunction


@dataclass(frozen=True, slots=True)
class CopySpec:
    """Copy (N, C, *spatial) elements between any byte strides; one chunk is one image and channel.

    Buffers: source, target.  Fields: `n_* c_*` for the chunk; `size{d}`; `s_n s_c s_{d}`, `t_n t_c t_{d}`
    byte strides.
    """

    target: Target
    dtype: str
    dims: int

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        n, c = kernel.index("n"), kernel.index("c")
        ends = [
            fn.gep(
                fields.buffer(role),
                fn.add(fn.mul(n, fields[f"{letter}_n"]), fn.mul(c, fields[f"{letter}_c"])),
            )
            for role, letter in (("source", "s"), ("target", "t"))
        ]

        def level(dim: int, source: Value, target: Value) -> None:
            if dim == self.dims:
                fn.store(fn.load(SCALARS[self.dtype], source), target)
                return

            def step(_: Value, state: list[Value]) -> list[Value]:
                level(dim + 1, state[0], state[1])
                return [fn.gep(state[0], fields[f"s_{dim}"]), fn.gep(state[1], fields[f"t_{dim}"])]

            fn.loop(0, fields[f"size{dim}"], 1, [source, target], step, hint="copy")

        level(0, ends[0], ends[1])
        return kernel.finish()
