"""Implicit GEMM: the packing of a matrix product reads the image instead of a patch matrix.

Idea        a GEMM packs blocks of its operand into panels that stay in the cache; here the packing step finds the
            windows in the image itself, so that the patch matrix exists in a panel at a time only
Workspace   taps * C/g * block elements a thread (and a vector), block pixels as the cache or the limit has room for;
            those of two or four tiles where tiles are packed while others are multiplied
Good for    channels first (pixels of a channel are packed in runs), odd geometries; no edges in the core
Bad for     1x1 with few output channels, where packing is a large part of the work

    image        a tile of three pixels, packed [tap, channel][pixel of the tile], 2 x 2 taps, one channel
    a b c d      a b c    tap (0, 0)
    e f g h      b c d        (0, 1)
    i j k l      e f g        (1, 0)
                 f g h        (1, 1)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.blocking import MANY, Blocking, busiest, panels_of, wanted_chunks
from leanconv.algorithms.dense import (
    CoreInput,
    dense_phase,
    image_input,
    lies_well,
    output_refusal,
    pack_weights,
    panel_fields,
)
from leanconv.algorithms.lowered import fitting_strips, patch_fields, patches, strip_pixels
from leanconv.host import Host
from leanconv.kernels.micropanels import FOUR, Micropanels, PackTiles
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem

LEAST_RUN = 64  # adjacent elements of a window: sixteen rounds, behind which the next run's address is worked out
PARTS = 8  # of tiles, at the least, that each thread packs while it multiplies the ones before: the first is not


class ImplicitGemm(Algorithm):
    """A matrix product whose packing step reads windows of the image."""

    name: ClassVar[str] = "implicit_gemm"
    title: ClassVar[str] = "GEMM whose packing step reads the image"
    paper: ClassVar[str] = (
        "P. San Juan, A. Castello, M. F. Dolz, P. Alonso-Jorda, E. S. Quintana-Orti: High Performance and Portable "
        "Convolution Operators for Multicore Processors, SBAC-PAD 2020"
    )
    tunables: ClassVar[Mapping[str, str]] = {"strip": "output rows packed at one time by a thread"}

    def weighed(self, problem: Problem) -> bool:
        """Wherever a copy may lie better than the image does."""
        return not lies_well(problem)

    def refusal(self, problem: Problem) -> str | None:
        """Any problem whose output the core can store into."""
        return output_refusal(problem)

    def least_bytes(self, problem: Problem, host: Host) -> int:
        """A scratch."""
        return ALIGNMENT

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: a chunk packs its block of pixels in tiles, and runs the core over them."""
        p, depth = problem, problem.taps * problem.group_in
        part = 0 if "strip" in tunables else _tiles_ahead(p, host, threads, workspace)
        heights, cut = _chunks(p, host, threads, part) if part else _strips(p, host, threads, workspace, tunables)
        height = heights[0] if panels_of(p, host).count else heights[1]  # the tiles are packed for all panels alike
        image = image_input(p).fields
        fields = patch_fields(p, {}) | {"x_n": image["x_n"], "x_g": image["x_g"], "depth": depth}
        lanes, joint, fours = host.target.lanes(p.dtype), _joint_taps(p), _in_fours(p, host)
        tails = p.group_in % lanes, joint * p.group_in % lanes
        stage = PackTiles(patches(p, host, True, True), height, tails[0], joint, tails[1], fours)
        kernel, channels = _runs(p)
        fields |= {"slot": slot_bytes(p, host, height), "part": part} if part else {}
        source = CoreInput(
            Micropanels(p.dtype, fours), kernel, channels, True, False, fields, "x", stage, ahead=part > 0
        )
        core, parameters = dense_phase(p, host, source, (height, height), cut, threads=threads)
        packed = 2 * part * fields["slot"] if part else cut.block * depth * p.itemsize + host.target.vector_bytes
        return Lowering(
            (core,),
            (Buffer("scratch", packed, per_thread=True),),
            pack_weights(p, host),
            (
                (
                    f"each thread packs the windows of {part * height} output pixels, interleaved tile by tile,"
                    " while it multiplies those before"
                )
                if part
                else f"each thread packs the windows of {cut.block} output pixels, interleaved tile by tile",
                f"core {parameters['tile']} multiplies the panel while it is in the cache",
            ),
            {**parameters, "strip": part * height or cut.block},
        )


def slot_bytes(problem: Problem, host: Host, height: int) -> int:
    """What a packed tile takes, in whole lines: packing on its own writes up to a vector behind it."""
    packed = height * problem.taps * problem.group_in * problem.itemsize + host.target.vector_bytes
    return -(-packed // ALIGNMENT) * ALIGNMENT


def _tiles_ahead(problem: Problem, host: Host, threads: int, workspace: int | None) -> int:
    """How many tiles are packed while as many are multiplied (0: a block is packed first).

    One, or two where weights come from beyond the second-level cache, so that each of their lines serves two. On Zen 5
    packing is 3 to 14 % of the time of layers with 64 to 512 outputs, and hidden so but for 1 to 4 %.
    """
    p, panels = problem, panels_of(problem, host)
    if not _can_pack_ahead(p, host):
        return 0
    part = 1 if panel_fields(p, host)["w_g"] <= host.l2 else 2
    height = host.target.tile_rows(panels.vectors if panels.count else panels.last)
    if (
        workspace is not None
        and threads * 2 * part * -(-slot_bytes(p, host, height) // ALIGNMENT) * ALIGNMENT > workspace
    ):
        return 0
    if threads == 1 or _many(p, threads, part * height):
        return part
    return 0 if panels.last or panels.total < threads else part


def _many(problem: Problem, threads: int, pixels: int) -> bool:
    """Whether threads can share so many pixels at a time, and each begin anew seldom enough."""
    return problem.batch * problem.groups * math.prod(problem.out_size) >= threads * PARTS * pixels


def _can_pack_ahead(problem: Problem, host: Host) -> bool:
    """Whether a sum has rounds enough to copy a tile in, and registers: of sixteen the sums take twelve."""
    p = problem
    long = p.kernel[-1] * p.group_in >= LEAST_RUN and _joint_taps(p) == p.kernel[-1]
    return host.target.masks and _in_fours(p, host) and long


def _chunks(problem: Problem, host: Host, threads: int, part: int) -> tuple[tuple[int, int], Blocking]:
    """Tile heights, and blocks of tiles that are packed ahead: few, for the first part of each is not.

    One thread has one an image. Several share blocks evenly or, where pixels are few, the panels of all of them.
    """
    p, pixels = problem, math.prod(problem.out_size)
    whole = fitting_strips(p, host, pixels, 1, longer=True)
    height = whole[0][0]
    if threads == 1:
        return whole
    if not _many(p, threads, part * height):
        return _by_panels(p, host, threads, whole)
    copies = p.batch * p.groups

    def load(found: tuple[tuple[int, int], Blocking]) -> int:
        cut = found[1]
        sizes = [cut.block] * (cut.blocks - 1) + [pixels - (cut.blocks - 1) * cut.block]
        return busiest([size + part * height // PARTS for _ in range(copies) for size in sizes], threads)

    most = max(1, min(wanted_chunks(p, threads), copies * pixels // (PARTS * part * height)) // copies)
    many = MANY * threads // copies
    counts = range(many if 1 < many <= most else 1, most + 1)
    sizes = sorted({-(-pixels // count // height) * height or pixels for count in counts}, reverse=True)
    return min((fitting_strips(p, host, size, 1, longer=True) for size in sizes), key=load)


def _strips(
    problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
) -> tuple[tuple[int, int], Blocking]:
    """Tile heights, and strips that are packed before they are multiplied.

    Several threads share the panels of strips that would be lower than a tile: of 512 channels on 5 x 5 pixels two
    threads had three pixels at a time, and took 2.4 times as long as `direct`.
    """
    p, panels, chosen = problem, panels_of(problem, host), tunables.get("strip")
    size, unit = strip_pixels(p, host, threads, workspace, chosen, whole_rows=False)
    full = host.target.tile_rows(panels.vectors)
    if threads > 1 and chosen is None and size < min(full, math.prod(p.out_size)) and panels.total >= threads:
        room = None if workspace is None else workspace // threads
        size, unit = strip_pixels(p, host, 1, room, None, whole_rows=False)
        return _by_panels(p, host, threads, fitting_strips(p, host, size, unit))
    return fitting_strips(p, host, size, unit)


def _by_panels(
    problem: Problem, host: Host, threads: int, found: tuple[tuple[int, int], Blocking]
) -> tuple[tuple[int, int], Blocking]:
    """The same blocks, each packed by several threads, which share its panels."""
    heights, cut = found
    total = panels_of(problem, host).total
    shared = max(1, threads // (problem.batch * problem.groups * cut.blocks))
    return heights, Blocking(cut.block, cut.blocks, -(-total // shared))


def _joint_taps(problem: Problem) -> int:
    """Taps of the last dimension that are packed as one: all, if they make a run.

    11x11 taps of 3 channels, 96 outputs: 87 % of the peak instead of 75, 3x3 taps: 76 instead of 63 (AVX-512).
    """
    p = problem
    run = p.x_strides[1] == 1 and p.x_strides[-1] == p.group_in and p.dilation[-1] == 1
    return p.kernel[-1] if run else 1


def _runs(problem: Problem) -> tuple[tuple[int, ...], int]:
    """Taps that are counted, and terms of each: rows of taps if they are long, else one run of all.

    Sections of sums end with them, so this depends on the problem's shape alone.
    """
    p = problem
    run = p.kernel[-1] * p.group_in
    if run >= LEAST_RUN and run % FOUR == 0:
        return p.kernel[:-1] or (1,), run
    return (1,), p.taps * p.group_in


def _in_fours(problem: Problem, host: Host) -> bool:
    """Whether four channels of a pixel stay together: where they are adjacent, and vectors hold whole fours.

    Where one instruction loads two adjacent elements the second would wait for its step in a register.
    """
    p, target = problem, host.target
    return p.x_strides[1] == 1 and p.group_in % FOUR == 0 and target.lanes(p.dtype) % FOUR == 0 and not target.pairs
