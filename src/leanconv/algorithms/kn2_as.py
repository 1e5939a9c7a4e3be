"""Accumulating kn2row and kn2col: the map of one tap at a time, shifted and added before the next is made.

Idea        as kn2row and kn2col, with one map that the taps use in turn; a block of output rows goes through all taps
            before the next, so that its part of the map stays in the cache
Workspace   K * P * W elements, which is K * H * W for "same" padding (P * Q where a row makes several blocks); with
            `strip` or under a memory limit a thread's map holds the rows of one block and one panel of output
            channels only
Good for    many channels and little memory
Bad for     few channels: a map is written, read and added for C multiply-adds an element

A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution algorithms for deep neural
networks, 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import panels_of
from leanconv.algorithms.dense import pack_weights
from leanconv.algorithms.tapwise import MAP, PAPER, Cut, Walk, cut, flat, map_fields, phase, pixels_of, refusal
from leanconv.host import Host
from leanconv.kernels.steps import Product, ShiftAdd
from leanconv.memory import Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase


class _Accumulating(Algorithm):
    """One map; `layout` says how it lies."""

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
        product = Product(pixels_of(p, host), flat(p), strip=False)
        strip = tunables.get("strip")
        blocks = cut(p, host, threads, walk, 1)
        width = walk.size[2] if blocks.cols == walk.out[2] else walk.out[2]
        positions = walk.out[0] * walk.out[1] * width
        whole = (Buffer(MAP, p.out_channels * positions * p.itemsize),)
        if strip is None and (workspace is None or arena_bytes(whole) <= workspace):
            maps = map_fields(p, host, positions, width)
            made = [phase(p, host, walk, ShiftAdd(product), blocks, image, maps=maps) for image in range(p.batch)]
            parameters = made[0][1] if made else {}
            what = f"one map of {p.out_channels} x {positions}"
            return self._lowering(p, host, tuple(core for core, _ in made), whole, parameters, what)
        blocks, buffer = self._strips(p, host, threads, walk, workspace, strip)
        held = _held(blocks, walk)
        product = Product(product.pixels, product.flat, strip=True)
        maps = map_fields(p, host, held, walk.size[2], channels=_widest(p, host))
        core, parameters = phase(p, host, walk, ShiftAdd(product), blocks, maps=maps)
        what = f"a map of {_widest(p, host)} x {held} a thread"
        return self._lowering(p, host, (core,), (buffer,), {**parameters, "strip": blocks.rows}, what)

    @staticmethod
    def _strips(
        p: Problem, host: Host, threads: int, walk: Walk, workspace: int | None, strip: int | None
    ) -> tuple[Cut, Buffer]:
        """Blocks whose maps fit the workspace, or the smallest there are."""
        pixel = _widest(p, host) * p.itemsize
        height, width = walk.out[1:]
        if strip is not None:
            blocks = Cut(min(strip, height), width, cut(p, host, threads, walk, p.batch).group)
            return blocks, Buffer(MAP, _held(blocks, walk) * pixel, per_thread=True)
        most = (workspace or 0) // threads // 64 * 64 // pixel
        # Each row of a block of several holds as many pixels as the image is wide, also those no output reads.
        most = most // walk.size[2] * width if most >= walk.size[2] else min(most, width)
        blocks = cut(p, host, threads, walk, p.batch, max(1, most))
        return blocks, Buffer(MAP, _held(blocks, walk) * pixel, per_thread=True)

    @staticmethod
    def _lowering(
        p: Problem,
        host: Host,
        phases: tuple[Phase, ...],
        buffers: tuple[Buffer, ...],
        parameters: Mapping[str, int | str],
        what: str,
    ) -> Lowering:
        return Lowering(
            phases,
            buffers,
            pack_weights(p, host),
            (
                f"core {parameters.get('tile', '')} multiplies block by block by one tap after the other, into {what}, "
                "which is shifted and added to the output",
            ),
            parameters,
        )


def _held(blocks: Cut, walk: Walk) -> int:
    """Pixels in the map of a block, whose rows are as wide as the image."""
    return (blocks.rows - 1) * walk.size[2] + min(blocks.cols, walk.size[2])


def _widest(problem: Problem, host: Host) -> int:
    """Output channels of the widest panel."""
    panels = panels_of(problem, host)
    width = max(panels.vectors if panels.count else 0, panels.last) * host.target.lanes(problem.dtype)
    return min(width, problem.group_out)


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
