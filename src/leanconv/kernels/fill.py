"""Outputs that no tap reaches: the bias, with residual and activation, written to any strides."""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Index, Module, Value, vector
from leanconv.codegen.targets import Target
from leanconv.host import Host
from leanconv.kernels.cost import Cost
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fields import KernelFunction


@dataclass(frozen=True, slots=True)
class FillSpec:
    """Fill axes of any strides; one chunk is one image and element of the outermost axis.

    `axes` axes, of which axis `channel` counts output channels; `adjacent` whether elements of the innermost lie side
    by side.  Buffers: bias, residual, out.  Fields: `n_* a_*` for the chunk; `size{d}`; `o_n o_{d}`, `r_n r_{d}` byte
    strides.
    """

    target: Target
    dtype: str
    axes: int
    channel: int
    adjacent: bool
    bias: bool
    epilogue: Epilogue

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        n, first = kernel.index("n"), kernel.index("a")
        item = 8 if self.dtype == "float64" else 4

        def start(role: str, letter: str) -> Value:
            offset = fn.add(fn.mul(n, fields[f"{letter}_n"]), fn.mul(first, fields[f"{letter}_0"]))
            return fn.gep(fields.buffer(role), offset)

        pointers = [start("out", "o")]
        letters = ["o"]
        if self.epilogue.residual:
            pointers.append(start("residual", "r"))
            letters.append("r")
        bias = fields.buffer("bias") if self.bias else None
        if bias is not None and self.channel == 0:
            bias = fn.gep(bias, fn.mul(first, item))

        def level(axis: int, places: list[Value], bias: Value | None) -> None:
            if axis == self.axes - 1:
                steps = [item if self.adjacent else fields[f"{letter}_{axis}"] for letter in letters]
                self._line(fn, fields[f"size{axis}"], places, steps, bias, item)
                return

            def step(_: Value, state: list[Value]) -> list[Value]:
                here = state[len(letters)] if bias is not None else None
                level(axis + 1, state[: len(letters)], here)
                moved = [
                    fn.gep(place, fields[f"{letter}_{axis}"]) for place, letter in zip(state, letters, strict=False)
                ]
                if here is not None:
                    moved.append(fn.gep(here, item) if self.channel == axis else here)
                return moved

            fn.loop(0, fields[f"size{axis}"], 1, [*places, *([bias] if bias is not None else [])], step, hint="axis")

        level(1, pointers, bias)
        return kernel.finish()

    def _line(
        self, fn: Function, count: Value, places: list[Value], steps: list[Index], bias: Value | None, item: int
    ) -> None:
        """The innermost axis: vectors while they last, then single elements."""
        scalar, lanes = SCALARS[self.dtype], self.target.lanes(self.dtype)
        counts = self.channel == self.axes - 1
        constant = fn.load(scalar, bias) if bias is not None and not counts else None

        def put(kind: str, state: list[Value]) -> None:
            value = fn.const(kind, 0.0)
            if bias is not None:
                if counts:
                    value = fn.load(kind, state[-1])
                else:
                    assert constant is not None
                    value = constant if kind == scalar else fn.splat(constant, lanes)
            extra = fn.load(kind, state[1]) if self.epilogue.residual else None
            fn.store(self.epilogue.apply(fn, value, extra), state[0])

        state = [*places, *([bias] if bias is not None and counts else [])]
        moves = [*steps, *([item] if len(state) > len(places) else [])]
        done: Index = 0
        if self.adjacent:
            done = fn.mul(fn.udiv(count, lanes), lanes)

            def many(_: Value, state: list[Value]) -> list[Value]:
                put(vector(scalar, lanes), state)
                return [fn.gep(place, item * lanes) for place in state]

            state = fn.loop(0, done, lanes, state, many, guard=True, hint="fill")

        def one(_: Value, state: list[Value]) -> list[Value]:
            put(scalar, state)
            return [fn.gep(place, move) for place, move in zip(state, moves, strict=True)]

        fn.loop(done, count, 1, state, one, guard=True, hint="fill")

    def cost(self, fields: Mapping[str, int], chunks: int, host: Host) -> Cost:
        """One pass over the output."""
        elements = chunks * math.prod(fields[f"size{d}"] for d in range(1, self.axes))
        nbytes = elements * (8 if self.dtype == "float64" else 4)
        counts = {"store": elements / self.target.lanes(self.dtype)} if self.adjacent else {"element": elements}
        return Cost(counts, (), ((nbytes, nbytes),), chunks)
