"""CPU targets as short tables: what a port must supply, and the register-tile formula that reads it."""

from __future__ import annotations

from leanconv.classes import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """An instruction set as the generators see it.

    Of the vector `registers`, of `vector_bytes` bytes, `accumulators` may hold sums; `pointers` general registers
    that may hold pixel addresses in the inner loop (the rest hold the weights' address, the loop counter and the
    stack); `masks` whether a store under a mask costs about what a plain one costs.  `fma` whether multiply-add is one
    instruction; `pairs` whether one instruction loads two adjacent elements into two registers.  `cpu` and
    `features` go to LLVM as they are.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    registers: int
    accumulators: int
    pointers: int
    masks: bool
    fma: bool = True
    pairs: bool = False

    def lanes(self, dtype: str) -> int:
        """Elements of `dtype` in one vector register."""
        return self.vector_bytes // (8 if dtype == "float64" else 4)

    def tile_rows(self, vectors: int, *, even: bool = False) -> int:
        """The most rows of a register tile that is `vectors` vector registers wide.

        Accumulators take rows * vectors registers, weights `vectors` and a broadcast pixel 1; a few must stay free for
        the loads of the next step, or LLVM spills. Each row also needs an address. AVX2: 6x2, 4x3, 8x1; AVX-512: 12x2,
        9x3, 12x1; NEON: 10x2, 6x3, 10x1.

        Where multiply-adds can broadcast what they load (`masks`) and rows are `even`ly spaced, so that three share an
        address, AVX-512 has 24x1: 25 loads in the 12 cycles of 24 multiply-adds, in place of 13 in 6. Two a cycle are
        all that there can be.
        """
        if even and self.masks and vectors == 1:
            return 2 * self.pointers
        return max(1, min(self.accumulators // vectors, self.pointers))


_X86 = "x86_64-unknown-linux-gnu"
AVX2 = Target("avx2", _X86, "haswell", "+avx2,+fma", 32, 16, 12, 8, masks=False)
AVX512 = Target("avx512", _X86, "skylake-avx512", "-prefer-256-bit", 64, 32, 27, 12, masks=True)
NEON = Target("neon", "aarch64-unknown-linux-gnu", "generic", "+neon", 16, 32, 20, 10, masks=False, pairs=True)
PORTABLE = Target("portable", _X86, "x86-64", "", 16, 16, 12, 8, masks=False, fma=False)

TARGETS = {target.name: target for target in (AVX2, AVX512, NEON, PORTABLE)}
