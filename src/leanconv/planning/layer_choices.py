"""One option for each layer of a network: the fastest within a number of bytes, the cheapest at a price for a byte."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TypeAlias

from leanconv.planning.figures import figures
from leanconv.planning.layer_options import LayerOption
from leanconv.problem import Problem

_Way: TypeAlias = "tuple[LayerOption, _Way] | None"
BYTE = 1e-10  # seconds that a byte saved may cost at most: its first touch, 0.1 us a KiB
CONVERTED = 4.0  # slots of an element that changes its layout, as measured for transposes and copies


def choice_within(
    layers: Sequence[tuple[str, Problem]], rows: list[list[LayerOption]], spare: int | None, chain: bool, first: str
) -> list[LayerOption] | None:
    """The fastest choice whose weights take at most `spare` bytes beyond the plain ones, nearly; None if none does."""
    if spare is not None and sum(min(option.weights for option in row) for row in rows) > spare:
        return None
    # A price for a byte turns the limit into a sum: the dearer, the fewer bytes (Lagrange); bisected.
    chosen = cheapest_path(layers, rows, 0.0, chain, first)
    if spare is None or sum(option.weights for option in chosen) <= spare:
        return chosen
    low, high = 0.0, 1.0
    best = cheapest_path(layers, rows, high, chain, first)
    if sum(option.weights for option in best) > spare:
        best = [min(row, key=lambda option: (option.weights, option.seconds)) for row in rows]
    for _ in range(24):
        middle = (low * high) ** 0.5 if low else high / 64
        chosen = cheapest_path(layers, rows, middle, chain, first)
        if sum(option.weights for option in chosen) <= spare:
            best, high = chosen, middle
        else:
            low = middle
    return filled_choice(rows, best, spare)


def leaner_choice(rows: list[list[LayerOption]], chosen: list[LayerOption], spare: float) -> list[LayerOption]:
    """A choice less what its bytes are not worth: most bytes for a second first, so many seconds in all."""
    chosen = list(chosen)
    while True:
        swaps = [
            ((now.weights - option.weights) / max(option.seconds - now.seconds, 1e-12), at, option)
            for at, (now, row) in enumerate(zip(chosen, rows, strict=True))
            for option in row
            if option.layout == now.layout and option.weights < now.weights and option.seconds - now.seconds <= spare
        ]
        worth, at, option = max(swaps, key=lambda swap: swap[0], default=(0.0, 0, None))
        if option is None or worth * BYTE < 1:
            return chosen
        spare -= option.seconds - chosen[at].seconds
        chosen[at] = option


def filled_choice(rows: list[list[LayerOption]], chosen: list[LayerOption], spare: int) -> list[LayerOption]:
    """A choice with what a price for a byte left unspent: the swap that saves most time first, layouts as they are."""
    chosen, left = list(chosen), spare - sum(option.weights for option in chosen)
    while True:
        swaps = [
            (now.seconds - option.seconds, at, option)
            for at, (now, row) in enumerate(zip(chosen, rows, strict=True))
            for option in row
            if option.layout == now.layout and option.seconds < now.seconds and option.weights - now.weights <= left
        ]
        if not swaps:
            return chosen
        _, at, option = max(swaps, key=lambda swap: swap[0])
        left -= option.weights - chosen[at].weights
        chosen[at] = option


def cheapest_path(
    layers: Sequence[tuple[str, Problem]], rows: list[list[LayerOption]], price: float, chain: bool, first: str
) -> list[LayerOption]:
    """The cheapest choice at a price in seconds for each byte of weights; over layouts if it is a chain."""
    cheapest = [_cheapest(row, price) for row in rows]
    if not chain:
        return [min(by_layout.values(), key=lambda pair: pair[0])[1] for by_layout in cheapest]
    # Of each layout the cost so far, and the way there: its last option, and the way to that.
    states: dict[str, tuple[float, _Way]] = {first: (0.0, None)}
    slot = figures().slot
    for (_, problem), by_layout in zip(layers, cheapest, strict=True):
        turning = _turned_slots(problem) * slot
        after: dict[str, tuple[float, _Way]] = {}
        for layout, (cost, option) in by_layout.items():
            costs = [(so_far + turning * (before != layout), before) for before, (so_far, _) in states.items()]
            total, before = min(costs)
            after[layout] = total + cost, (option, states[before][1])
        states = after
    _, way = min(states.values(), key=lambda state: state[0])
    path = []
    while way is not None:
        option, way = way
        path.append(option)
    return path[::-1]


def _cheapest(row: list[LayerOption], price: float) -> dict[str, tuple[float, LayerOption]]:
    """The cheapest option of each layout, with what it costs; of equals the first."""
    found: dict[str, tuple[float, LayerOption]] = {}
    for option in row:
        cost = option.seconds + price * option.weights
        known = found.get(option.layout)
        if known is None or cost < known[0]:
            found[option.layout] = cost, option
    return found


def conversion(problem: Problem, before: str, after: str) -> float:
    """Seconds of turning a layer's input from one layout into another."""
    return 0.0 if before == after else _turned_slots(problem) * figures().slot


@lru_cache(maxsize=4096)
def _turned_slots(problem: Problem) -> float:
    """Slots of turning a layer's input into another layout."""
    return 0.0 if problem.in_channels == 1 else problem.x_bytes / problem.itemsize * CONVERTED


def total_seconds(layers: Sequence[tuple[str, Problem]], chosen: list[LayerOption], first: str, chain: bool) -> float:
    """Predicted seconds of a choice, with those of turning layouts if it is a chain that begins with layout `first`."""
    total, layout = 0.0, first
    for (_, problem), option in zip(layers, chosen, strict=True):
        total += option.seconds + (conversion(problem, layout, option.layout) if chain else 0.0)
        layout = option.layout
    return total
