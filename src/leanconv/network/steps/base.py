"""What a step of a compiled network is: an operator on values at known places, as phases of the native program.

A `Placer` knows one or more operators.  It says whether a node can be lowered at all (`refusal`) and where its values
may lie.  A `Lowerer` also says, once every value has its place, in which ways the node can be computed (`options`),
each with its time and its exact bytes.  The way that is chosen is built: its phases name *roles*, and `roles` says what
each of them is: a place, or memory that the step keeps (packed weights, tables).  Workspace buffers have their own
names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, TypeAlias

from leanconv.arrays import Array, address_of
from leanconv.classes import dataclass, replace
from leanconv.compiled import KernelSpec, at_hand
from leanconv.host import Host
from leanconv.memory import Block, Buffer, arena_bytes
from leanconv.network.constants import Constant
from leanconv.network.graph import Node, ValueType
from leanconv.network.places import Place, channels_last, order_of, row_major
from leanconv.network.shared import Share, SharedWeights, apart
from leanconv.plan import Plan
from leanconv.problem import Problem
from leanconv.program import Phase

FLOATS = ("float32", "float64")
Types: TypeAlias = Sequence[ValueType | None]
Arrays: TypeAlias = Sequence[Array | None]


def for_any_extents(spec: KernelSpec) -> KernelSpec:
    """The kernel that computes the same, with the same fields, for images of any size; the same if there is no other.

    A specification of which a part depends on the size of an image has a method of this name.
    """
    other = getattr(spec, "for_any_extents", None)
    found: KernelSpec = spec if other is None else other()
    return found


def stand_in(phase: Phase) -> Phase:
    """The phase on a kernel that serves images of other sizes too, if slower; the same phase if none does.

    A specification made for a size has a method of this name, which gives another specification and its fields.
    """
    make = getattr(phase.spec, "stand_in", None)
    found = None if make is None else make(phase.fields)
    return phase if found is None else replace(phase, spec=found[0], fields=found[1])


@dataclass(frozen=True, slots=True)
class Decided:
    """A way that was chosen before, to be made again without making others.

    Attributes:
        algorithm: of a layer; `""` for a block.
        threads: at most.
        settings: of the algorithm.
        limit: bytes that its plan was made within, or None.
        staging: bytes of workspace that it was to keep to, if others.
        seconds: predicted.
        restore: makes the plan of a layer without its algorithm, from what was kept.
    """

    algorithm: str
    threads: int
    settings: Mapping[str, int]
    limit: int | None
    staging: int | None
    seconds: float
    restore: Callable[[Problem], Plan] | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """What all steps of a network share.

    Attributes:
        host: the machine.
        threads: that the program runs on; workspace buffers of threads are counted by it.
        limited: whether memory is limited, so that slower ways in fewer bytes are of interest.
        algorithm: of convolutions, as in `leanconv.plan`; so are accuracy and deterministic.
        decided: of the step that is asked for, if that was chosen before.
        shared: packed weights that other networks of the model may have as well.
        free: whether the network is wanted in other sizes too, so that kernels should serve them.
        later: whether it is there in another size already, so that no kernel should be compiled for this one.
    """

    host: Host
    threads: int
    limited: bool = False
    algorithm: Any = "auto"
    accuracy: str = "standard"
    deterministic: bool = False
    decided: Decided | None = None
    shared: SharedWeights | None = None
    free: bool = False
    later: bool = False

    def serving(self, phases: Sequence[Phase]) -> tuple[Phase, ...]:
        """Phases on kernels that serve other sizes too, where there are such."""
        if not self.free:
            return tuple(phases)
        return tuple(self._serving(phase) for phase in phases)

    def _serving(self, phase: Phase) -> Phase:
        spec = for_any_extents(phase.spec)
        phase = phase if spec is phase.spec else replace(phase, spec=spec)
        # What happens to be at hand must not decide about bits.
        return stand_in(phase) if self.later and not self.deterministic and not at_hand(spec) else phase

    def spare(self, phases: Sequence[Phase]) -> tuple[KernelSpec, ...]:
        """The kernels that stand in for those of some phases when another size is asked for."""
        if not self.free or self.later or self.deterministic:
            return ()
        return tuple(spec for phase, spec in ((each, stand_in(each).spec) for each in phases) if spec is not phase.spec)

    def share(self, operands: Sequence[Operand | None], *more: Hashable) -> Share:
        """How the blocks are come by that are packed from some constants, `more` deciding about them too."""
        return apart if self.shared is None else self.shared.of([o.place.storage if o else "" for o in operands], *more)


@dataclass(frozen=True, slots=True)
class Operand:
    """An input of a node: where it lies, and its value if that is known beforehand."""

    place: Place
    handle: Constant | None = None

    @property
    def constant(self) -> Array | None:
        """The value; weights are brought into memory by this, which only packing them is worth."""
        return None if self.handle is None else self.handle.array()


@dataclass(frozen=True, slots=True)
class Call:
    """A node with the places of its values; None for those that are absent."""

    node: Node
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Place | None, ...]

    def input(self, position: int) -> Operand | None:
        """An input that may be absent."""
        return self.inputs[position] if position < len(self.inputs) else None

    def given(self, position: int) -> Place:
        """The place of an input that must be there."""
        found = self.inputs[position]
        assert found is not None, f"{self.node.name}: input {position} is missing"
        return found.place

    @property
    def output(self) -> Place:
        """The first output."""
        found = self.outputs[0]
        assert found is not None
        return found


Memory: TypeAlias = Block | Array


def address(memory: Memory) -> int:
    """Where memory that a step keeps starts."""
    return memory.address if isinstance(memory, Block) else address_of(memory)


@dataclass(frozen=True, slots=True)
class Built:
    """A step ready to be linked.

    Attributes:
        phases: they name roles and workspace buffers.
        roles: what each role is: a place, memory that is kept, or an address of something that exists already.
        keep: what must stay alive besides.
    """

    phases: tuple[Phase, ...]
    roles: Mapping[str, Place | Memory | int]
    keep: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One way to compute a step.

    Attributes:
        name: for people: an algorithm, or what the kernel is.
        seconds: predicted.
        workspace: buffers that are needed while the step runs.
        kept_bytes: memory that is kept for the step between runs, packed weights among it.
        extra_bytes: what of it counts against a limit: all but the size of the plain weights.
        build: makes the phases, packs weights and compiles nothing yet.
        plan: of a single layer, if that is what the option is.
        remake: the same step by another plan of its layer.
        specs: kernels that building and running it take, if it takes any to build it.
        decided: what makes it again, of ways that are worth not being weighed twice.
    """

    name: str
    seconds: float
    build: Callable[[], Built]
    workspace: tuple[Buffer, ...] = ()
    kept_bytes: int = 0
    extra_bytes: int = 0
    plan: Plan | None = None
    remake: Callable[[Plan], Option] | None = None
    specs: tuple[KernelSpec, ...] = ()
    decided: Decided | None = None

    def workspace_bytes(self, threads: int) -> int:
        """Bytes of the workspace, every rounding to cache lines counted."""
        return arena_bytes(self.workspace, threads)


class Placer:
    """Knows where the values of some operators may lie: all there is to know of those that are always a `view`.

    Attributes:
        image: outputs of three and more axes lie channels last, whatever the inputs.
        follows: otherwise the output lies as the first input does; or else in C order.
        elementwise: each element of the output depends on the elements at its place only, so that the output may
            take the place of an input that lies exactly so.
        in_place: positions of inputs for which that holds too, in other operators.
    """

    image: ClassVar[bool] = False
    follows: ClassVar[bool] = False
    elementwise: ClassVar[bool] = False
    in_place: ClassVar[tuple[int, ...]] = ()

    def refusal(self, node: Node, types: Types, constants: Arrays) -> str | None:
        """Why there are no kernels for a node, or None."""
        if any(types[i] is not None and t.dtype not in FLOATS for i, t in enumerate(types) if t is not None):
            return "kernels compute in float32 and float64"
        return None

    def view(self, node: Node, inputs: Sequence[Operand | None], out: Sequence[ValueType]) -> list[Place] | None:
        """Places of the outputs as parts of the first input; None if they are values of their own."""
        return None

    def accepts(self, node: Node, position: int, place: Place) -> bool:
        """Whether an input may be read where it lies; if not, it is copied to C order (images: channels last)."""
        return True

    def writes(self, node: Node, place: Place, types: Types) -> bool:
        """Whether the output may be written there; if not, it is written as `accepts` says, and copied."""
        return True

    def overwrites(self, node: Node, place: Place, out: ValueType) -> bool:
        """Whether a smaller output may be written over the beginning of the first input, which nobody else reads."""
        return False

    def order(self, node: Node, first: Place | None, rank: int) -> tuple[int, ...]:
        """The order of axes in memory that suits the output best."""
        if self.image:
            return channels_last(rank)
        if self.follows and first is not None and len(first.shape) == rank:
            return order_of(first)
        return row_major(rank)


class Lowerer(Placer, ABC):
    """Knows how to compute some operators natively."""

    @abstractmethod
    def options(self, call: Call, setting: Setting) -> list[Option]:
        """The ways to compute the node, fastest first; at least one."""


@dataclass(slots=True)
class Registry:
    """What is known, by operator."""

    by_op: dict[str, Placer] = field(default_factory=dict)

    def add(self, placer: Placer, *ops: str) -> None:
        """Enter what is known of some operators."""
        for op in ops:
            assert op not in self.by_op, op
            self.by_op[op] = placer
