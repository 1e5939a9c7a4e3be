"""When a window tensor is written: whole, as a phase of its own, or in bands, each by the thread that reads it."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import Function, Index, Module, Value
from leanconv.codegen.targets import Target
from leanconv.kernels.fields import Fields, KernelFunction
from leanconv.kernels.windows import Windows


@dataclass(frozen=True, slots=True)
class WindowSpec:
    """A window tensor as a phase of its own: one chunk is one group and some rows of positions of one image.

    Buffers: x, windows.  Fields besides those of `Windows`: `g_* b_*` for the chunk, `n_first` the image, `block` rows
    a block, `rows` in all, `x_n x_g t_g` bytes between images, between groups, and between the tensors of groups.
    """

    windows: Windows

    @property
    def target(self) -> Target:
        """The CPU it is for."""
        return self.windows.target

    def emit(self, module: Module, name: str) -> tuple[str, ...]:
        """Emit the kernel; returns the names of its fields in order."""
        kernel = KernelFunction(module, name)
        fn, fields = kernel.fn, kernel.fields
        group, block = kernel.index("g"), kernel.index("b")
        width = fields[f"e{self.windows.last}"]
        first = fn.mul(block, fields["block"])
        end = fn.smin(fn.add(first, fields["block"]), fields["rows"])
        offset = fn.add(fn.mul(fields["n_first"], fields["x_n"]), fn.mul(group, fields["x_g"]))
        x = fn.gep(fields.buffer("x"), offset)
        tensor = fn.gep(fields.buffer("windows"), fn.mul(group, fields["t_g"]))
        self.windows.emit(fn, fields, x, tensor, fn.mul(first, width), fn.mul(end, width))
        if self.windows.past:
            fn.stream_end(self.target.triple)
        return kernel.finish()


@dataclass(frozen=True, slots=True)
class WindowBand:
    """The part of a window tensor that a block of output pixels reads, staged by the thread that reads it.

    Windows slide along the last dimension, so the part is one range of entries.  Fields besides those of `Windows`:
    `out{d}` of the last dimension, `hop` entries from window to window, `reach` entries of a window.
    """

    windows: Windows

    def emit(
        self, fn: Function, fields: Fields, x: Value, scratch: Value, first: Value, end: Value
    ) -> tuple[Value, Index]:
        """Stage pixels [first, end); returns where entry 0 of the whole tensor would stand, and the first pixel."""
        last = self.windows.last
        width, columns = fields[f"e{last}"], fields[f"out{last}"]

        def entry(pixel: Index) -> Index:
            row, column = fn.udiv(pixel, columns), fn.urem(pixel, columns)
            return fn.add(fn.mul(row, width), fn.mul(column, fields["hop"]))

        low, high = entry(first), fn.add(entry(fn.sub(end, 1)), fields["reach"])
        tensor = fn.gep(scratch, fn.sub(0, fn.mul(low, fields[f"m{last}"])))
        self.windows.emit(fn, fields, x, tensor, low, high)
        return tensor, first
