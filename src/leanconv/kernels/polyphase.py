"""Fast convolution with a stride: a filter falls into interleaved ones without.

The taps r, r + s, r + 2 s, ... of one phase r only ever meet the inputs r, r + s, ...; each phase is an F(m, taps of
the phase) of its own, and their outputs are added up.  Two phases of 3 taps with stride 2 (2 taps and 1) take 9
products for 4 outputs, not 12; of 7 taps (4 and 3) 13, not 28.

As matrices a strided transform looks like any other: the phases' points one beside the other, in such an order that the
first ones are those of a smaller tile.
"""

from __future__ import annotations

from leanconv.classes import dataclass
from leanconv.kernels.cook_toom import ONE, ZERO, CookToom, Matrix, Surd


@dataclass(frozen=True, slots=True)
class SingleTap:
    """F(outputs, 1): one product an output, nothing to transform."""

    outputs: int
    taps: int = 1

    def weights(self) -> Matrix:
        """The tap itself, for every output."""
        return ((ONE,),) * self.outputs

    def inputs(self, outputs: int) -> Matrix:
        """The identity."""
        return tuple(tuple(ONE if i == j else ZERO for j in range(outputs)) for i in range(outputs))

    def results(self, outputs: int) -> Matrix:
        """The identity."""
        return self.inputs(outputs)


@dataclass(frozen=True, slots=True)
class Strided:
    """F(outputs, taps) with a stride of at most `taps`, from one transform a phase; the interface of `CookToom`."""

    outputs: int
    taps: int
    stride: int
    phases: tuple[CookToom | SingleTap, ...]

    @staticmethod
    def of(outputs: int, taps: int, stride: int) -> Strided:
        """The phases with their best points."""
        counts = [-(-(taps - phase) // stride) for phase in range(stride)]
        return Strided(
            outputs,
            taps,
            stride,
            tuple(CookToom.of(outputs, count) if count > 1 else SingleTap(outputs) for count in counts),
        )

    @property
    def size(self) -> int:
        """Inputs of a tile, and products."""
        return self.span(self.outputs)

    def span(self, outputs: int) -> int:
        """Inputs and products of a tile of so many outputs."""
        return (outputs - 1) * self.stride + self.taps

    def weights(self) -> Matrix:
        """G (size x taps)."""
        matrices = [phase.weights() for phase in self.phases]
        return tuple(self._spread(phase, matrices[phase][k], self.taps) for phase, k in self._order(self.outputs))

    def inputs(self, outputs: int) -> Matrix:
        """B^T for a tile of `outputs` outputs."""
        matrices = [phase.inputs(outputs) for phase in self.phases]
        size = self.span(outputs)
        return tuple(self._spread(phase, matrices[phase][k], size) for phase, k in self._order(outputs))

    def results(self, outputs: int) -> Matrix:
        """A^T (outputs x points), for products of the whole transform's G."""
        matrices = [phase.results(outputs) for phase in self.phases]
        return tuple(tuple(matrices[phase][i][k] for phase, k in self._order(outputs)) for i in range(outputs))

    def _spread(self, phase: int, row: tuple[Surd, ...], size: int) -> tuple[Surd, ...]:
        """A phase's row with its entries where the phase's inputs or taps stand among all."""
        return tuple(row[j // self.stride] if j % self.stride == phase else ZERO for j in range(size))

    def _order(self, outputs: int) -> list[tuple[int, int]]:
        """(phase, point) of every product: those of a tile of one output, then what each further output adds."""
        first = [(p, k) for p, phase in enumerate(self.phases) for k in range(phase.taps)]
        more = [(p, phase.taps + n) for n in range(outputs - 1) for p, phase in enumerate(self.phases)]
        return first + more


Transform = CookToom | Strided
