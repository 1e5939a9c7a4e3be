"""Indirect sums over pixels: a table says where the pixel lies that each output reads under each tap.

Idea        the table of the forward pass, an offset for each output pixel and tap; the gradient is staged as in
            `direct`, and each step reads one entry and, there, one pixel of the tile's channels. All pixels of a box
            make one run, whatever the width of the output
Workspace   P * Q * taps offsets of 4 bytes (8 in an image of 2 GiB and more) and C/g zeros; and that of `direct`
Good for    padding of any mode
Bad for     the table is read once for each tile, an entry for few multiply-adds
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms.base import Algorithm, Lowering
from leanconv.algorithms.indirect import Indirect, offsets_table
from leanconv.backward.direct import gradient_phase, weights_error_bound
from leanconv.host import Host
from leanconv.memory import arena_bytes
from leanconv.problem import Problem


class IndirectWeights(Algorithm):
    """Sums over pixels found through a table."""

    automatic: ClassVar[bool] = False
    name: ClassVar[str] = "indirect"
    title: ClassVar[str] = "sums over pixels found through a table of offsets"
    paper: ClassVar[str] = Indirect.paper

    def refusal(self, problem: Problem) -> str | None:
        """Any problem."""
        return None

    def weighed(self, problem: Problem) -> bool:
        """Where the image is padded otherwise than by zeros, which `direct` does not read."""
        return problem.pad_mode != "zeros"

    def error_bound(self, problem: Problem) -> float:
        """That of `direct`."""
        return weights_error_bound(super().error_bound(problem), problem)

    def lower(
        self, problem: Problem, host: Host, threads: int, workspace: int | None, tunables: Mapping[str, int]
    ) -> Lowering:
        """The table, then one phase."""
        p = problem
        tables, entry_bytes, padded = offsets_table(p, host)
        rest = None if workspace is None else max(0, workspace - arena_bytes(tables.buffers))
        phase, buffers, parameters = gradient_phase(p, host, threads, rest, table=(entry_bytes, padded))
        return Lowering(
            phases=(*tables.phases, phase),
            workspace=(*tables.buffers, *buffers),
            steps=(
                f"fill a table of {math.prod(p.out_size)} x {p.taps} offsets",
                f"each thread stages the gradient of {parameters['box']} pixels of a panel of output channels",
                f"core {parameters['tile']} reads the image through the table, tap by tap, and adds to totals",
            ),
            parameters=parameters,
        )
