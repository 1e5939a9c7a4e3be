"""Every value of a network gets its place: which storage, in which order of axes, as a part or a view of what.

Images lie channels last inside, whatever the caller has.  A value that only shows another one differently is a view;
the inputs of a Concat are written where the output has them; an element-wise step writes over an operand that nobody
reads any more; an output of the network is written where the caller gets it.  What none of that allows is a copy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from leanconv.classes import replace
from leanconv.network.arrangement import ARENA, CONSTANT, INPUT, OUTPUT, Arrangement, Step, lifetimes, live, live_bytes
from leanconv.network.constants import Values
from leanconv.network.graph import Graph, Node, ValueType
from leanconv.network.joins import concat_slots
from leanconv.network.places import Place, channels_last, dense, order_of, row_major, sliced
from leanconv.network.steps import COPY, placer
from leanconv.network.steps.base import Call, Lowerer, Operand, Placer
from leanconv.network.steps.convolution import Convolution
from leanconv.network.steps.shaping import Concat, concat_axis

__all__ = ["Arrangement", "arrange"]


def arrange(graph: Graph, *, joined: bool = True, tight: bool = False) -> Arrangement:
    """Give every value its place.

    Args:
        graph: what is to be computed.
        joined: whether inputs of a Concat may be written where the output has them.
        tight: whether steps may write a smaller output over their input, on fewer threads perhaps.
    """
    first = _Arranger(graph, {}, tight)
    plain = first.run()
    if not joined:
        return plain
    slots = concat_slots(graph, plain)
    if not slots:
        return plain
    found = _Arranger(graph, slots, tight, first.placers).run()
    least = live_bytes(found)
    # A part that lives long keeps the whole output alive: where that costs memory, it is copied after all.
    for concat in [node for node in graph.nodes if node.op == "Concat"]:
        fewer = {name: part for name, part in slots.items() if part.storage != ARENA + concat.outputs[0]}
        if len(fewer) == len(slots) or not _at_peak(found, ARENA + concat.outputs[0]):
            continue
        other = _Arranger(graph, fewer, tight, first.placers).run()
        if live_bytes(other) < least:
            slots, found, least = fewer, other, live_bytes(other)
    return found


def _at_peak(found: Arrangement, storage: str) -> bool:
    """Whether a storage is alive when most is."""
    levels = live(found)
    first, last = lifetimes(found).get(storage, (0, -1))
    return any(levels[i] == max(levels) for i in range(first, last + 1))


Found: TypeAlias = tuple[Placer | None, str]
"""What knows where the values of a node may lie, or None and why."""


class _Arranger:
    """One pass over the nodes, in order; `slots` are parts of Concat outputs that values are to be written to."""

    def __init__(
        self, graph: Graph, slots: Mapping[str, Place], tight: bool, placers: list[Found] | None = None
    ) -> None:
        self.graph, self.slots, self.tight = graph, slots, tight
        self.result = Arrangement()
        self.last: dict[str, int] = {}
        self.users: dict[str, list[int]] = {}
        for number, node in enumerate(graph.nodes):
            for name in node.inputs:
                if name:
                    self.last[name] = number
                    self.users.setdefault(name, []).append(number)
        self.members: dict[str, list[str]] = {}  # values that lie in each storage
        self.placers = placers or [self._placer(node) for node in graph.nodes]

    def run(self) -> Arrangement:
        """All places and steps."""
        graph, places = self.graph, self.result.places
        for name, type_ in graph.inputs.items():
            places[name] = dense(INPUT + name, type_)
        for name, constant in graph.constants.handles():
            places[name] = dense(CONSTANT + name, ValueType(constant.shape, constant.element))
        for name in dict.fromkeys(graph.outputs):
            if name in places:
                self._to_output(name)
        for number, node in enumerate(graph.nodes):
            self._node(number, node)
        return self.result

    def _placer(self, node: Node) -> Found:
        found = placer(node.op)
        if found is None:
            return None, f"no kernels for {node.op}"
        types = [self.graph.types[name] if name else None for name in node.inputs]
        handles = [self.graph.constants.handle(name) for name in node.inputs]
        if any(t is not None and not t.size and c is None for t, c in zip(types, handles, strict=True)):
            return None, "an empty input"
        reason = found.refusal(node, types, Values(handles))
        return (found, "") if reason is None else (None, reason)

    def _node(self, number: int, node: Node) -> None:
        found, reason = self.placers[number]
        graph, places = self.graph, self.result.places
        inputs = [Operand(places[n], graph.constants.handle(n)) if n else None for n in node.inputs]
        types = [graph.types[name] if name else None for name in node.outputs]
        present = [t for t in types if t is not None]
        if isinstance(found, Concat):
            self._concat(node, inputs)
            return
        views = found.view(node, inputs, present) if found is not None else None
        if views is not None:
            for name, seen in zip([n for n in node.outputs if n], views, strict=True):
                self._enter(name, seen)
                if name in graph.outputs:
                    self._to_output(name)
            return
        if found is not None:
            assert isinstance(found, Lowerer), f"{node.op} is always a view"
            inputs = [
                o if o is None or found.accepts(node, i, o.place) else self._copied(node, i, o, found)
                for i, o in enumerate(inputs)
            ]
        outputs: list[Place | None] = [
            None if type_ is None else self._place(number, node, found, inputs, name, type_)
            for name, type_ in zip(node.outputs, types, strict=True)
        ]
        wanted: list[Place | None] = list(outputs)
        sources = [graph.types[name] if name else None for name in node.inputs]
        if found is not None and outputs[0] is not None and not found.writes(node, outputs[0], sources):
            outputs[0] = self._storage(f"{node.name}/written", present[0], _usual(found, len(present[0].shape)))
        self._add(Step(node.name, Call(node, tuple(inputs), tuple(outputs)), found, reason))
        if outputs[0] is not None and wanted[0] is not None and outputs[0] is not wanted[0]:
            self._copy(f"{node.name}/moved", outputs[0], wanted[0])
        for name, place in zip(node.outputs, wanted, strict=True):
            if name and place is not None:
                self._enter(name, place)
                if name in graph.outputs and place.storage != OUTPUT + name:
                    self._to_output(name)

    # -- places ---------------------------------------------------------------------------------------------

    def _place(
        self,
        number: int,
        node: Node,
        found: Placer | None,
        inputs: Sequence[Operand | None],
        name: str,
        type_: ValueType,
    ) -> Place:
        """Where an output is written."""
        slot = self.slots.get(name)
        if slot is not None:
            self.result.sizes.setdefault(slot.storage, self._whole(slot.storage))
            return slot
        rank = len(type_.shape)
        first = next((o.place for o in inputs if o is not None and o.handle is None), None)
        order = row_major(rank) if found is None else self._order(number, node, found, first, name, rank)
        if name in self.graph.outputs and name not in self.users:
            flat = all(n == 1 for n in type_.shape[2:]) or order == row_major(rank)
            if flat or isinstance(found, Convolution):
                return dense(OUTPUT + name, type_)
        over = self._over(number, found, inputs, type_) or self._front(number, node, found, inputs, type_)
        return over or self._storage(name, type_, order)

    def _order(
        self, number: int, node: Node, found: Placer, first: Place | None, name: str, rank: int
    ) -> tuple[int, ...]:
        order = found.order(node, first, rank)
        if rank >= 3 and order == row_major(rank) and self._image(name, 3):
            return channels_last(rank)
        return order

    def _image(self, name: str, depth: int) -> bool:
        """Whether a value is read as an image, by steps that want channels last."""
        for user in self.users.get(name, ()):
            found, _ = self.placers[user]
            node = self.graph.nodes[user]
            if found is None or name not in node.inputs[:1] + node.inputs[3:]:
                continue
            if found.image:
                return True
            if depth and found.follows and node.outputs[0] and self._image(node.outputs[0], depth - 1):
                return True
        return False

    def _over(
        self, number: int, found: Placer | None, inputs: Sequence[Operand | None], type_: ValueType
    ) -> Place | None:
        """The place of an input that the output may take."""
        if found is None:
            return None
        for position, operand in enumerate(inputs):
            if operand is None or not (found.elementwise or position in found.in_place):
                continue
            place = operand.place
            whole = self.result.sizes.get(place.storage) == type_.nbytes and place.size == type_.size
            if not whole or (place.shape, place.dtype) != (type_.shape, type_.dtype):
                continue
            others = [o.place for i, o in enumerate(inputs) if i != position and o is not None]
            if any(o.storage == place.storage and not (found.elementwise and o.same_elements(place)) for o in others):
                continue
            if all(self.last.get(name, -1) <= number for name in self.members.get(place.storage, ())):
                return place
        return None

    def _front(
        self, number: int, node: Node, found: Placer | None, inputs: Sequence[Operand | None], type_: ValueType
    ) -> Place | None:
        """The beginning of the first input, if a smaller output may be written over it."""
        if found is None or not self.tight or not inputs or inputs[0] is None:
            return None
        place = inputs[0].place
        whole = (
            self.result.sizes.get(place.storage) == place.size * place.item and place.storage not in self.result.shrunk
        )
        alone = all(self.last.get(name, -1) <= number for name in self.members.get(place.storage, ()))
        if not whole or not alone or not found.overwrites(node, place, type_):
            return None
        self.result.shrunk[place.storage] = (len(self.result.steps), type_.nbytes)
        return dense(place.storage, type_, order_of(place))

    def _storage(self, name: str, type_: ValueType, order: Sequence[int]) -> Place:
        place = dense(ARENA + name, type_, order)
        self.result.sizes[place.storage] = type_.nbytes
        return place

    def _whole(self, storage: str) -> int:
        return self.graph.types[storage.removeprefix(ARENA)].nbytes

    def _enter(self, name: str, place: Place) -> None:
        self.result.places[name] = place
        self.members.setdefault(place.storage, []).append(name)

    # -- copies ---------------------------------------------------------------------------------------------

    def _add(self, step: Step) -> None:
        if any(place is not None and place.size for place in step.call.outputs):
            self.result.steps.append(step)

    def _copy(self, name: str, source: Place, target: Place) -> None:
        node = Node("leanconv.Copy", name, (source.storage,), (target.storage,))
        native = COPY.refusal(node, [ValueType(source.shape, source.dtype)], [None])
        self._add(Step(name, Call(node, (Operand(source),), (target,)), COPY if native is None else None, native or ""))

    def _copied(self, node: Node, position: int, operand: Operand, found: Placer) -> Operand:
        type_ = ValueType(operand.place.shape, operand.place.dtype)
        place = self._storage(f"{node.name}/{position}", type_, _usual(found, len(type_.shape)))
        self._copy(f"{node.name}/input {position}", operand.place, place)
        return replace(operand, place=place)

    def _to_output(self, name: str) -> None:
        source = self.result.places[name]
        self._copy(f"{name}/output", source, dense(OUTPUT + name, ValueType(source.shape, source.dtype)))

    def _concat(self, node: Node, inputs: Sequence[Operand | None]) -> None:
        """Copies of those inputs that are not in their parts yet."""
        name = node.outputs[0]
        type_ = self.graph.types[name]
        rank = len(type_.shape)
        axis = concat_axis(node, rank)
        parts = [operand.place for operand in inputs if operand is not None]
        whole = self.slots.get(name)
        if whole is None:
            orders = {order_of(part) for part in parts if len(part.shape) == rank}
            order = channels_last(rank) if rank >= 3 and channels_last(rank) in orders else row_major(rank)
            only = name in self.graph.outputs and name not in self.users and order == row_major(rank)
            taken = ARENA + name in self.result.sizes
            whole = dense(OUTPUT + name, type_) if only and not taken else dense(ARENA + name, type_, order)
        if whole.storage.startswith(ARENA):
            self.result.sizes.setdefault(whole.storage, self._whole(whole.storage))
        first = 0
        for position, part in enumerate(parts):
            starts = [first if a == axis else 0 for a in range(rank)]
            target = sliced(whole, starts, (1,) * rank, part.shape)
            if not target.same_elements(part):
                self._copy(f"{node.name}/part {position}", part, target)
            first += part.shape[axis]
        self._enter(name, whole)
        if name in self.graph.outputs and whole.storage != OUTPUT + name:
            self._to_output(name)


def _usual(found: Placer, rank: int) -> tuple[int, ...]:
    """The order of axes that a step can read and write in any case."""
    return channels_last(rank) if found.image else row_major(rank)
