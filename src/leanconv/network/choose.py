"""Which way each step is computed, so that the whole network is fast and stays under a limit of bytes.

What counts: the arena, with values and workspaces placed by their lifetimes, and memory that is kept beyond the plain
weights.  A step's workspace may be as large as what the values alive at that moment leave.  Kept bytes add up over all
steps: a price for a byte, bisected, turns their limit into a sum (Lagrange), as for layers planned together.

Without a limit weights may still not grow without end: Winograd's may take four times the plain ones for a gain of some
per cent, so that a network would take more memory than other runtimes need for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from leanconv.classes import dataclass, replace
from leanconv.errors import LeanconvError, MemoryLimitError
from leanconv.network.arena import ArenaPlan, Region, plan_arena
from leanconv.network.arrange import arrange
from leanconv.network.arrangement import Arrangement, lifetimes, live
from leanconv.network.fusion import FoundBlock, find_blocks, with_blocks
from leanconv.network.graph import Graph
from leanconv.network.kept import keep, question, recalled
from leanconv.network.lock import pinned_blocks, pinned_options
from leanconv.network.native import workspace_region
from leanconv.network.nearby import Ways
from leanconv.network.steps.base import Built, Decided, Option, Setting

SHARES = (1.0, 0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05, 0.0)
"""Parts of what a limit leaves that are tried for kept bytes; the rest is for workspace."""

BYTE_SECONDS = 1e-11
"""What a kept byte takes in a run beyond its layer's own time: a network's weights are seldom in the cache when their
turn comes. Measured on the layers of GoogLeNet and ResNet-18, two threads: 0 to 2.7e-11."""

FREE_BYTES = 8 << 20
"""Packed weights beyond the plain ones that are always allowed without a limit; beyond that they may be twice as large
as the plain ones."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The options chosen (None for steps of NumPy), and the arena that results.

    `pressed`: a limit asked for others than the fastest ones.
    """

    options: tuple[Option | None, ...]
    arena: ArenaPlan
    pressed: bool = False

    def without_recipes(self) -> Choice:
        """The same choice, once all steps are built: recipes keep weights in memory."""
        spent = tuple(None if option is None else replace(option, build=_spent, remake=None) for option in self.options)
        return replace(self, options=spent)

    @property
    def extra_bytes(self) -> int:
        """Kept memory beyond the plain weights."""
        return sum(option.extra_bytes for option in self.options if option is not None)

    @property
    def needed_bytes(self) -> int:
        """What counts against a limit."""
        return self.arena.nbytes + self.extra_bytes

    @property
    def seconds(self) -> float:
        """Predicted, of the steps that are predicted."""
        return sum(option.seconds for option in self.options if option is not None)


def _spent() -> Built:
    raise AssertionError("the step is built already")


def plan_network(
    graph: Graph,
    setting: Setting,
    limit: int | None,
    pinned: Mapping[str, Any] | None = None,
    like: Ways | None = None,
) -> tuple[Arrangement, Choice]:
    """Places and ways for a whole network.

    Blocks of layers are one step where what lies between the layers would not stay in the cache, and where the limit
    asks for it.  With `pinned`, which `lock.decisions` made, all is as it says; with `like`, the ways of the same
    network at another size, layers of a similar size are computed as there.

    Raises:
        MemoryLimitError: nothing fits the limit; says the least that would do.
        CacheError: what is pinned is not for this network, or cannot be carried out here.
    """
    blocks = find_blocks(graph) if setting.algorithm == "auto" else []
    rows: list[list[Option]] = []
    if pinned is not None:
        whole = with_blocks(graph, pinned_blocks(blocks, pinned))
        for tight in (False, True):
            found = arrange(whole, tight=tight)
            rows = pinned_options(found, options_of(found, setting), pinned)
            try:
                return found, choose(found, rows, setting.threads, limit)
            except MemoryLimitError:
                if tight:
                    raise
    key = question(graph, setting, limit)
    known = recalled(key)
    if known is not None:
        with contextlib.suppress(LeanconvError):
            taken = [block for block in blocks if block.node.name in known.blocks]
            found = arrange(with_blocks(graph, taken), tight=known.tight)
            chosen = known.pick(found, options_of(found, setting, known.decided(found)))
            choice = _within_limit(_choice(found, chosen, setting.threads), limit)
            return found, replace(choice, pressed=known.pressed)
    joined = [block for block in blocks if block.middle_bytes(graph) > block.pays_from * setting.host.l2]
    if like is not None:
        with contextlib.suppress(LeanconvError):  # a limit that asks for other ways
            taken = [
                block for block in blocks if block in joined or (limit is not None and block.node.name in like.steps)
            ]
            found = arrange(with_blocks(graph, taken))
            rows = options_of(found, setting, like.decided(found))
            # Not kept: a process that begins with this size shall weigh it.
            return found, choose(found, rows, setting.threads, limit)
    least: MemoryLimitError | None = None
    while True:
        whole = with_blocks(graph, joined)
        for tight in (False, True):
            found = arrange(whole, tight=tight)
            if tight and not found.shrunk:
                break
            rows = options_of(found, setting)
            try:
                choice = choose(found, rows, setting.threads, limit)
                # Asked again: the machine's figures may have been measured for the weighing.
                key = question(graph, setting, limit)
                if key is not None:
                    keep(key, found, rows, choice.options, pressed=choice.pressed)
                return found, choice
            except MemoryLimitError as error:
                least = error if least is None or error.needed < least.needed else least
        # The blocks with a step that runs when most is alive; if there is none, all that are left.
        smallest = [min((o.workspace_bytes(setting.threads) for o in row), default=0) for row in rows]
        levels = [a + b for a, b in zip(live(found), smallest, strict=True)]
        worst = max(levels, default=0)
        names = {step.name for step, level in zip(found.steps, levels, strict=True) if level >= 0.95 * worst}
        left: list[FoundBlock] = [block for block in blocks if block not in joined]
        more = [block for block in left if any(node.name in names for node in block.nodes)] or left
        if not more:
            assert least is not None
            raise least
        joined += more


def options_of(
    found: Arrangement, setting: Setting, decided: Sequence[Decided | None] | None = None
) -> list[list[Option]]:
    """The ways to compute each step, only the one that is `decided` where one is; none for steps of NumPy."""
    settings = [setting] * len(found.steps)
    if decided is not None:
        settings = [setting if each is None else replace(setting, decided=each) for each in decided]
    return [
        [] if step.lowerer is None else step.lowerer.options(step.call, own)
        for step, own in zip(found.steps, settings, strict=True)
    ]


def _within_limit(choice: Choice, limit: int | None) -> Choice:
    if limit is not None and choice.needed_bytes > limit:
        raise MemoryLimitError(limit, choice.needed_bytes, "a network that was chosen before")
    return choice


def choose(found: Arrangement, rows: Sequence[Sequence[Option]], threads: int, limit: int | None) -> Choice:
    """The fastest choice within a limit, nearly.

    Raises:
        MemoryLimitError: nothing fits; says the least that would do.
    """
    fastest = _choice(found, _cheapest(rows, BYTE_SECONDS), threads)
    if limit is None:
        plain = sum(o.kept_bytes - o.extra_bytes for o in fastest.options if o is not None)
        most = max(FREE_BYTES, plain)
        return fastest if fastest.extra_bytes <= most else _choice(found, _keeping(rows, most), threads)
    if fastest.needed_bytes <= limit:
        return fastest
    alive = live(found)
    best: Choice | None = None
    least: Choice | None = None
    room = limit - max(alive, default=0)
    for share in SHARES:
        kept = max(0, int(room * share))
        slack = 0
        for _ in range(3):  # what the placement wastes is taken from the workspaces
            picked = _within(rows, [limit - kept - slack - here for here in alive], kept, threads)
            choice = _choice(found, picked, threads)
            if least is None or choice.needed_bytes < least.needed_bytes:
                least = choice
            if choice.needed_bytes <= limit:
                if best is None or choice.seconds < best.seconds:
                    best = choice
                break
            slack += choice.needed_bytes - limit
    if best is None:
        smallest = _choice(
            found,
            [min(r, key=lambda o: o.workspace_bytes(threads) + o.extra_bytes) if r else None for r in rows],
            threads,
        )
        if least is None or smallest.needed_bytes < least.needed_bytes:
            least = smallest
        if least.needed_bytes <= limit:
            return replace(least, pressed=True)
        raise MemoryLimitError(limit, least.needed_bytes, f"the network of {len(rows)} steps")
    return replace(best, pressed=True)


def _within(rows: Sequence[Sequence[Option]], rooms: Sequence[int], kept: int, threads: int) -> list[Option | None]:
    """Fast options whose workspaces fit each step's room and whose kept bytes fit together, as far as there are any."""
    allowed = [
        [o for o in row if o.workspace_bytes(threads) <= room]
        or sorted(row, key=lambda o: o.workspace_bytes(threads))[:1]
        for row, room in zip(rows, rooms, strict=True)
    ]

    return _keeping(allowed, kept)


def _cheapest(rows: Sequence[Sequence[Option]], price: float) -> list[Option | None]:
    """The best options at a price in seconds for each extra byte."""
    return [min(row, key=lambda o: o.seconds + price * o.extra_bytes) if row else None for row in rows]


def _keeping(rows: Sequence[Sequence[Option]], kept: int) -> list[Option | None]:
    """Fast options whose kept bytes beyond the plain ones fit together, as far as there are any."""

    def total(options: Sequence[Option | None]) -> int:
        return sum(o.extra_bytes for o in options if o is not None)

    best = _cheapest(rows, BYTE_SECONDS)
    if total(best) <= kept:
        return best
    best = [min(row, key=lambda o: (o.extra_bytes, o.seconds)) if row else None for row in rows]
    low, high = BYTE_SECONDS, 1.0
    for _ in range(24):
        middle = (low * high) ** 0.5
        options = _cheapest(rows, middle)
        if total(options) <= kept:
            best, high = options, middle
        else:
            low = middle
    return _filled(rows, best, kept - total(best))


def _filled(rows: Sequence[Sequence[Option]], chosen: Sequence[Option | None], left: int) -> list[Option | None]:
    """A choice with what a price for a byte left unspent: equal layers change together, though some might fit."""
    best = list(chosen)
    while True:
        gain, place, found = 0.0, 0, None
        for at, (now, row) in enumerate(zip(best, rows, strict=True)):
            for option in row if now is not None else ():
                assert now is not None
                more = option.extra_bytes - now.extra_bytes
                saved = now.seconds - option.seconds - BYTE_SECONDS * more
                if more <= left and saved > gain:
                    gain, place, found = saved, at, option
        before = best[place]
        if found is None or before is None:
            return best
        left -= found.extra_bytes - before.extra_bytes
        best[place] = found


def _choice(found: Arrangement, options: Sequence[Option | None], threads: int) -> Choice:
    return Choice(tuple(options), plan_arena(regions_of(found, options, threads)))


def regions_of(found: Arrangement, options: Sequence[Option | None], threads: int) -> list[Region]:
    """All that lies in the arena: storages, and the workspaces of the steps."""
    alive = lifetimes(found)
    regions = [
        Region(name, found.sizes[name], first, last, found.shrunk.get(name)) for name, (first, last) in alive.items()
    ]
    for number, option in enumerate(options):
        nbytes = 0 if option is None else option.workspace_bytes(threads)
        if nbytes:
            regions.append(Region(workspace_region(number), nbytes, number, number))
    return regions
