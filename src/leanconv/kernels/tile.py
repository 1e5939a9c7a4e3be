"""A tile of the core: how many pixels by how many registers of output channels, and how its weights are packed."""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.codegen.ir import SCALARS, Function, Value, vector
from leanconv.codegen.targets import Target
from leanconv.kernels.epilogue import load_lanes


@dataclass(frozen=True, slots=True)
class Tile:
    """A register tile and the names of its emitter's surroundings.

    `valid` channels are in the last register of a row of weights packed without a gap (0: rows are whole registers).
    `pairs`: the last register holds at most half as many channels as it has lanes, of two pixels.
    """

    target: Target
    dtype: str
    rows: int
    vectors: int
    bias: bool
    valid: int = 0
    pairs: bool = False

    @property
    def scalar(self) -> str:
        """LLVM's name of the element type."""
        return SCALARS[self.dtype]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return 8 if self.dtype == "float64" else 4

    @property
    def vec(self) -> str:
        """LLVM's vector type."""
        return vector(self.scalar, self.target.lanes(self.dtype))

    @property
    def sums(self) -> int:
        """Accumulators: those of whole registers, pixel by pixel, then those of pairs."""
        return self.rows * (self.vectors - 1) + -(-self.rows // 2) if self.pairs else self.rows * self.vectors

    @property
    def step_bytes(self) -> int:
        """Bytes of packed weights that one step of the reduction reads."""
        lanes = self.target.lanes(self.dtype)
        return ((self.vectors - 1) * lanes + (self.valid or lanes)) * self.itemsize

    def row(self, fn: Function, weights: Value, at: int) -> list[Value]:
        """One row of packed weights, `at` bytes behind an address."""
        width, masks = self.target.vector_bytes, self.target.masks
        apart = self.pairs or bool(self.valid)
        whole = [fn.load(self.vec, weights, at + v * width) for v in range(self.vectors - apart)]
        if self.pairs:
            half = self.target.lanes(self.dtype) // 2
            last = fn.load(vector(self.scalar, half), weights, at + len(whole) * width)
            return [*whole, fn.shuffle(last, last, [*range(half), *range(half)])]
        if not self.valid:
            return whole
        return [*whole, load_lanes(fn, self.vec, fn.gep(weights, at + len(whole) * width), self.valid, masks=masks)]
