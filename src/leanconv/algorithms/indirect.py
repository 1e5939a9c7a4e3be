"""Indirect convolution: a table says where every output pixel finds the input pixel under every tap.

Idea        one offset for each output pixel and tap, and a row of zeros for padding; the core reads images through
            it, so that nothing of the image is copied and edges cost no more than the middle
Workspace   P * Q * taps offsets of 4 bytes (8 in an image of 2 GiB and more) and C/g zeros; made once by a bound
            plan and kept with it, the same for all images of the batch and all groups
Good for    channels last, ragged geometries, padding of any mode
Bad for     large images with few channels, for whose table the cache is too small

    image        table [P * Q][R * S] of offsets, 2 x 2 taps      at each offset: channels c0 c1 c2 ...
    a b c d      pixel 0   &a &b &e &f
    e f g h            1   &b &c &f &g
    i j k l            2   &c &d &g &h        (where a tap lies outside the image: &zeros)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering, Tables
from leanconv.algorithms.dense import CoreInput, core_phase, image_input, pack_weights
from leanconv.algorithms.lowered import patches
from leanconv.host import Host
from leanconv.kernels.indirect import Indirect as Source
from leanconv.kernels.indirect import TableSpec
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

_FIRST_LONG = 2**31  # bytes that offsets of 4 bytes do not reach
_BLOCK = 4096  # entries that a thread fills at a time: some 5 us


class Indirect(Algorithm):
    """Indirect convolution."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "indirect"
    title: ClassVar[str] = "indirect convolution: pixels found through a table of offsets"
    paper: ClassVar[str] = "M. Dukhan: The Indirect Convolution Algorithm, 2019, arXiv:1907.02129"

    def refusal(self, problem: Problem) -> str | None:
        """Any problem."""
        return None

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """One phase: the core over the image, through the table."""
        p, image = problem, image_input(problem)
        tables, entry_bytes, padded = offsets_table(p, host)
        pixels = math.prod(p.out_size)
        source = CoreInput(
            Source(p.taps, entry_bytes, padded), (p.taps,), p.group_in, image.unit_channel, False, image.fields
        )
        core, parameters = core_phase(p, host, threads, source)
        return Lowering(
            phases=(core,),
            packing=pack_weights(p, host),
            tables=tables,
            steps=(f"core {parameters['tile']} reads the image through a table of {pixels} x {p.taps} offsets",),
            parameters=parameters,
        )


def offsets_table(problem: Problem, host: Host) -> tuple[Tables, int, bool]:
    """The table of a problem and the phase that fills it; bytes of an entry, and whether some mean padding."""
    p, image = problem, image_input(problem)
    reach = sum(abs(image.fields[f"at{d}"]) * (size - 1) for d, size in enumerate(p.in_size))
    entry_bytes = 4 if reach < _FIRST_LONG else 8
    padded = p.pad_mode == "zeros" and (any(p.pad_low) or any(p.pad_high))
    zero_row = padded and image.unit_channel
    pixels = math.prod(p.out_size)
    buffers = [Buffer("offsets", pixels * p.taps * entry_bytes)]
    if zero_row:
        buffers.append(Buffer("zeros", p.group_in * p.itemsize))
    block = max(1, _BLOCK // p.taps)
    build = Phase(
        "fill the table",
        TableSpec(patches(p, host, rows=True, unit_matrix=True), entry_bytes, zero_row),
        {**image.fields, "block": block, "pixels": pixels, "channels": p.group_in},
        -(-pixels // block),
    )
    return Tables(tuple(buffers), build), entry_bytes, padded
