"""Copies: runs of elements, and an image that lies otherwise than the core can store into or read."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value
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


def copy_run(
    fn: Function,
    kind: str,
    count: Index,
    source: Value | None,
    target: Value,
    steps: tuple[Index, Index],
    adjacent: bool,
) -> None:
    """Copy `count` elements `steps` bytes apart (vectors where both ends are adjacent); zeros without a source."""
    lanes = int(kind[1:].split(" ")[0])
    scalar = kind[1:-1].split(" x ")[1]
    item = 8 if scalar == "double" else 4
    done: Index = 0
    state = [source or target, target]
    if adjacent:
        done = fn.mul(fn.udiv(count, lanes), lanes)

        def many(_: Value, state: list[Value]) -> list[Value]:
            value = fn.load(kind, state[0]) if source is not None else fn.const(kind, 0.0)
            fn.store(value, state[1])
            return [fn.gep(state[0], lanes * item), fn.gep(state[1], lanes * item)]

        state = fn.loop(0, done, lanes, state, many, guard=True, hint="copy")

    def one(_: Value, state: list[Value]) -> list[Value]:
        value = fn.load(scalar, state[0]) if source is not None else fn.const(scalar, 0.0)
        fn.store(value, state[1])
        return [fn.gep(state[0], steps[0]), fn.gep(state[1], steps[1])]

    fn.loop(done, count, 1, state, one, guard=True, hint="copy")
