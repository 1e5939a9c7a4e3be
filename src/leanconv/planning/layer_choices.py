"""One option for each layer of a network: the fastest within a number of bytes, the cheapest at a price for a byte."""

from __future__ import annotations

from collections.abc import Sequence

from leanconv.planning.figures import figures
from leanconv.planning.layer_options import LayerOption
from leanconv.problem import Problem

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

    def cost(option: LayerOption) -> float:
        return option.seconds + price * option.weights

    if not chain:
        return [min(row, key=cost) for row in rows]
    states: dict[str, tuple[float, list[LayerOption]]] = {first: (0.0, [])}
    for (_, problem), row in zip(layers, rows, strict=True):
        after: dict[str, tuple[float, list[LayerOption]]] = {}
        for layout in {option.layout for option in row}:
            option = min((o for o in row if o.layout == layout), key=cost)
            total, path = min(
                ((t + conversion(problem, before, layout), p) for before, (t, p) in states.items()),
                key=lambda entry: entry[0],
            )
            after[layout] = total + cost(option), [*path, option]
        states = after
    return min(states.values(), key=lambda entry: entry[0])[1]


def conversion(problem: Problem, before: str, after: str) -> float:
    """Seconds of turning a layer's input from one layout into another."""
    if before == after or problem.in_channels == 1:
        return 0.0
    return problem.x_bytes / problem.itemsize * CONVERTED * figures().slot


def total_seconds(layers: Sequence[tuple[str, Problem]], chosen: list[LayerOption], first: str, chain: bool) -> float:
    """Predicted seconds of a choice, with those of turning layouts if it is a chain that begins with layout `first`."""
    total, layout = 0.0, first
    for (_, problem), option in zip(layers, chosen, strict=True):
        total += option.seconds + (conversion(problem, layout, option.layout) if chain else 0.0)
        layout = option.layout
    return total
