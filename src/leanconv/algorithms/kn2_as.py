"""Accumulating kn2row and kn2col: the map of one tap at a time, shifted and added before the next is made.

Idea        as kn2row and kn2col, with one map that the taps use in turn; a block of output rows goes through all taps
            before the next, so that its part of the map stays in the cache
Workspace   K * P * W elements, which is K * H * W for "same" padding (P * Q where a row makes several blocks); with
            `strip` or under a memory limit a thread's map holds the rows of one block and one panel of output
            channels only (a residual after the activation: also the partial sums of that block and panel)
Good for    many channels and little memory
Bad for     few channels: a map is written, read and added for C multiply-adds an element

    for each tap     weights [K][C]   *   rows of the image [C][P * W]   ->   map [K][P * W]
                     map, shifted by the tap's place   ->   added to the output

A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution algorithms for deep neural
networks, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.dense import pack_weights
from leanconv.algorithms.tapwise import (
    PAPER,
    Cut,
    Walk,
    affordable,
    cut,
    flat,
    phase,
    pixels_of,
    refusal,
    sum_bytes,
    sums,
    widest,
)
from leanconv.host import Host
from leanconv.kernels.maps import BlockMap, Product, ShiftAdd
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem


class _Accumulating(Algorithm):
    """One map; `layout` says how it lies."""

    automatic: ClassVar[bool] = False
    layout: ClassVar[str]
    paper: ClassVar[str] = PAPER
    tunables: ClassVar[Mapping[str, str]] = {
        "strip": "output rows whose map a thread holds at one time; without it, one map of the whole image"
    }

    def refusal(self, problem: Problem) -> str | None:
        """Its layout, stride 1, padding by zeros."""
        return refusal(problem, self.layout)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """The map of an image, each block with a part of its own, or of a strip for each thread."""
        p, walk = problem, Walk.of(problem)
        strip = tunables.get("strip")
        blocks = cut(p, host, threads, walk, 1)
        positions = walk.out[0] * walk.out[1] * _map_width(p, walk, blocks)
        buffer = Buffer("maps", p.out_channels * positions * p.itemsize)
        images: list[int | None] = list(range(p.batch))
        what = f"its part of a map of {p.out_channels} x {positions}"
        chosen: dict[str, int | str] = {}
        needed = _bytes(p, host, threads, blocks, buffer)
        if strip is not None or (workspace is not None and needed > workspace):
            part, mapped = _strips(p, host, threads, walk, workspace, strip)
            if strip is not None or _bytes(p, host, threads, part, mapped) < needed:
                blocks, buffer, images = part, mapped, [None]
                chosen = {"strip": blocks.rows}
                what = f"a map of {buffer.nbytes // p.itemsize} elements a thread"
        width = _map_width(p, walk, blocks)
        block_map = BlockMap(strip=images == [None])
        product = Product(pixels_of(p, host), block_map, flat(p) and width == walk.size[2])
        maps = {"map_width": width, "map_pixel": p.out_channels * p.itemsize, "group_out": p.group_out}
        made = [phase(p, host, walk, ShiftAdd(block_map, product), blocks, image, maps=maps) for image in images]
        parameters = {**made[0][1], **chosen} if made else {}
        return Lowering(
            tuple(core for core, _ in made),
            (buffer, *sums(p, host, blocks)),
            pack_weights(p, host),
            (
                f"core {parameters.get('tile', '')} multiplies a block by one tap after the other, into {what}",
                "which is shifted and added to the output, before the next tap",
            ),
            parameters,
        )


def _map_width(problem: Problem, walk: Walk, blocks: Cut) -> int:
    """Pixels in a row of a map: those of the image if rows follow each other evenly and few of them go unused."""
    wide = blocks.cols == walk.out[2] >= walk.size[2] and flat(problem)
    return walk.size[2] if wide else walk.out[2]


def _bytes(p: Problem, host: Host, threads: int, blocks: Cut, buffer: Buffer) -> int:
    """The workspace with such a map."""
    return arena_bytes((buffer, *sums(p, host, blocks)), threads)


def _strips(
    p: Problem, host: Host, threads: int, walk: Walk, workspace: int | None, strip: int | None
) -> tuple[Cut, Buffer]:
    """Blocks whose maps fit the workspace, or the smallest there are; and the map of one panel of such a block."""
    pixel = min(widest(p, host), p.group_out) * p.itemsize
    if strip is not None:
        blocks = Cut(min(strip, walk.out[1]), walk.out[2], cut(p, host, threads, walk, p.batch).group)
    else:
        both = [size for size in (pixel, sum_bytes(p, host)) if size]
        blocks = cut(p, host, threads, walk, p.batch, affordable(workspace, threads, None, *both))
    held = (blocks.rows - 1) * _map_width(p, walk, blocks) + min(blocks.cols, walk.size[2])
    return blocks, Buffer("maps", held * pixel, per_thread=True)


class Kn2rowAs(_Accumulating):
    """The map is a plane of pixels for each channel."""

    name: ClassVar[str] = "kn2row_as"
    title: ClassVar[str] = "accumulating kn2row: one map, shifted and added tap by tap; channels first"
    layout: ClassVar[str] = "NCHW"


class Kn2colAs(_Accumulating):
    """The map is a row of channels for each pixel."""

    name: ClassVar[str] = "kn2col_as"
    title: ClassVar[str] = "accumulating kn2col: one map, shifted and added tap by tap; channels last"
    layout: ClassVar[str] = "NHWC"
