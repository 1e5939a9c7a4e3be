"""Direct convolution over a band of the image that is copied first, padding and all.

Idea        the input rows that a block of output rows needs are copied once into a thread's own memory, transposed
            by blocks in registers if channels come first; the core then reads adjacent channels and no edges.
            At most eight channels that come first stay apart: vectors are then pixels of a row, and are stored as such
Workspace   rows * (W + pads) * C/g elements a thread, rows as the cache or the memory limit has room for; images
            of which a thread would get less than a row's share are copied whole, before, by all threads
Good for    channels first with many channels, and with few on wide rows; few channels with padding
Bad for     1x1 with few output channels

    image [C][H][W]            band [rows][W + pads][C], a thread's own
    channel 0   a0 b0 c0 ...   0 0 0 ... | a0 a1 a2 ... | b0 b1 b2 ... | c0 c1 c2 ... | ... | 0 0 0 ...
    channel 1   a1 b1 c1 ...   the rows that a block of output rows reads, each element once
    channel 2   a2 b2 c2 ...

    few channels, vectors of pixels   [C][rows][stride][(W + pads) / stride], in whole vectors
    tap 0, channel 0   a0 b0 c0 ...   *   a weight of each of some output channels   ->   rows of their planes
    tap 1, channel 0   b0 c0 d0 ...
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from leanconv.algorithms import planeband
from leanconv.algorithms.base import TAPS, Algorithm, Lowering
from leanconv.algorithms.batchjoin import joined
from leanconv.algorithms.blocking import blocking, panels_of, tile_heights
from leanconv.algorithms.dense import (
    CoreInput,
    dense_phase,
    image_input,
    lies_well,
    output_refusal,
    pack_weights,
    rows_input,
)
from leanconv.algorithms.lowered import fitting_strips
from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.band import Band, BandSpec
from leanconv.kernels.image import Image, Rows
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

BAND = "band"


@dataclass(frozen=True, slots=True)
class _Axis:
    """One spatial dimension: of the image, and in positions that are copied.

    `size at pad out` as in the problem (`at` in bytes), `gather` pixels between copied positions, `stride` and `reach`
    the stride and the extent of the kernel in copied positions, `dilation` the distance of its taps.
    """

    size: int
    at: int
    pad: int
    out: int
    gather: int
    stride: int
    dilation: int
    reach: int

    @property
    def band(self) -> int:
        """Positions that all outputs read."""
        return (self.out - 1) * self.stride + self.reach


def _axes(problem: Problem) -> tuple[_Axis, ...]:
    """The dimensions; all in one if the image is a matrix with a row per pixel anyway."""
    p, item = problem, problem.itemsize
    flat = rows_input(p) if p.taps == 1 and set(p.stride) == {1} and not any((*p.pad_low, *p.pad_high)) else None
    if flat is not None:
        pixels = math.prod(p.in_size)
        return (_Axis(pixels, flat.fields["x_row"], 0, pixels, 1, 1, 1, 1),)
    result = []
    for d, taps in enumerate(p.kernel):
        gather = p.stride[d] if taps == 1 else math.gcd(p.stride[d], p.dilation[d])
        stride, dilation = p.stride[d] // gather, max(1, p.dilation[d] // gather)
        at, pad = p.x_strides[2 + d] * item, p.pad_low[d]
        reach = (taps - 1) * dilation + 1
        result.append(_Axis(p.in_size[d], at, pad, p.out_size[d], gather, stride, dilation, reach))
    return tuple(result)


class DirectBand(Algorithm):
    """Direct convolution over copied bands."""

    name: ClassVar[str] = "direct_band"
    sum_order: ClassVar[str | None] = TAPS
    title: ClassVar[str] = "direct convolution over copied bands"
    paper: ClassVar[str] = (
        "E. Georganas et al.: Anatomy of High-Performance Deep Learning Convolutions on SIMD Architectures, SC 2018 "
        "(the core); the band is packed as a GEMM packs its panels (K. Goto, R. van de Geijn, TOMS 2008)"
    )
    tunables: ClassVar[Mapping[str, str]] = {"rows": "output rows whose band a thread copies at one time"}

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
        """One phase that copies and sums band by band or, for few bands, one that copies and one that sums."""
        if planeband.applies(problem, host):
            most = None if workspace is None else workspace // threads // ALIGNMENT * ALIGNMENT
            return planeband.lower(problem, host, threads, most, tunables.get("rows"))
        p = joined(problem, host, first=True)
        axes = _axes(p)
        plane = math.prod(axis.out for axis in axes[1:])
        row_bytes = math.prod(axis.band for axis in axes[1:]) * p.group_in * p.itemsize
        first = axes[0]
        if "rows" in tunables:
            rows = min(tunables["rows"], first.out)
        else:
            budget = host.l2 // 2 if workspace is None else min(host.l2 // 2, workspace // threads // 64 * 64)
            rows = max(1, min(first.out, (budget // row_bytes - first.reach) // first.stride + 1))
            if threads > 1:
                most = first.out * p.batch * p.groups // (4 * threads)
                if most == 0 or most * first.stride < first.reach // 2:
                    return _copied_whole(problem, p, host, threads, axes, row_bytes)
                rows = min(rows, most)
        apart = _fields(p, axes)[f"step{len(axes) - 1}"]
        heights, cut = fitting_strips(p, host, rows * plane, plane, apart=apart)
        best = tile_heights(math.prod(p.out_size), host, panels_of(p, host), apart=apart)
        if heights < best and workspace is None and "rows" not in tunables:
            # Low tiles cost more than a band that is twice the size (7 x 7 outputs).
            heights, cut = fitting_strips(p, host, min(first.out, 2 * rows + 4) * plane, plane, apart=apart)
        rows = cut.block // plane
        nbytes = ((rows - 1) * first.stride + first.reach) * row_bytes
        source = _source(p, axes, _fields(p, axes), _band(p, host, axes))
        core, parameters = dense_phase(p, host, source, heights, cut, threads=threads)
        return Lowering(
            (core,),
            (Buffer("scratch", nbytes, per_thread=True),),
            pack_weights(problem, host),
            (
                f"each thread copies the band that {rows} output rows read, channels last",
                f"core {parameters['tile']} reads the band while it is in the cache",
            ),
            {**parameters, "rows": rows},
        )


def _band(problem: Problem, host: Host, axes: tuple[_Axis, ...]) -> Band:
    """How the band is copied."""
    p, item = problem, problem.itemsize
    adjacent = axes[-1].at == item and p.x_strides[1] != 1
    return Band(
        host.target,
        p.dtype,
        tuple(axis.gather for axis in axes),
        tuple(axis.pad for axis in axes),
        any(p.pad_low) or any(p.pad_high),
        p.pad_mode,
        axes[0].stride,
        axes[0].reach,
        p.x_strides[1] == 1,
        adjacent,
        p.x_strides[1] == 1 and axes[-1].at == p.group_in * item,
        p.group_in % host.target.lanes(p.dtype) if adjacent else 0,
    )


def _fields(problem: Problem, axes: tuple[_Axis, ...]) -> dict[str, int]:
    """Fields of the copy and of the core that reads it."""
    image = image_input(problem).fields
    plane = math.prod(axis.out for axis in axes[1:])
    fields = {"channels": problem.group_in, "plane": plane, **{"s_c": image["x_c"], "x_n": image["x_n"]}}
    fields |= {"x_g": image["x_g"], "x_row": problem.group_in * problem.itemsize}
    at = problem.group_in * problem.itemsize
    for d, axis in reversed(list(enumerate(axes))):
        fields |= {f"in{d}": axis.size, f"at{d}": axis.at, f"band{d}": axis.band}
        fields |= {f"out{d}": axis.out, f"step{d}": axis.stride * at, f"tap{d}": axis.dilation * at}
        at *= axis.band
    return fields


def _source(problem: Problem, axes: tuple[_Axis, ...], fields: Mapping[str, int], stage: Band | None) -> CoreInput:
    """The band as the core reads it; with the copy, if that is the first step of each of the core's chunks."""
    merged, buffer = axes[-1].dilation == 1, BAND if stage is None else "x"
    if all(axis.reach == 1 for axis in axes):
        return CoreInput(Rows(None), (1,), problem.group_in, True, False, fields, buffer, stage)
    strides, dilations = tuple(a.stride for a in axes), tuple(a.dilation for a in axes)
    image = Image(strides, dilations, (0,) * len(axes), False, "zeros", None)
    return CoreInput(image, problem.kernel, problem.group_in, True, merged, fields, buffer, stage)


def _copied_whole(
    problem: Problem, p: Problem, host: Host, threads: int, axes: tuple[_Axis, ...], row_bytes: int
) -> Lowering:
    """One image after the other, or all that are joined in `p`: all threads copy it, then the core reads it."""
    fields = _fields(p, axes)
    rows = -(-axes[0].band // (4 * threads))
    blocks = -(-axes[0].band // rows)
    group_bytes = axes[0].band * row_bytes
    copying = {"b_div": 1, "b_count": blocks, "g_div": blocks, "g_count": p.groups, "rows": rows}
    copying |= {"band0": axes[0].band, "row_bytes": row_bytes, "m_g": group_bytes}
    source = _source(p, axes, {**fields, "x_n": 0, "x_g": group_bytes}, None)
    heights = tile_heights(math.prod(p.out_size), host, panels_of(p, host), apart=fields[f"step{len(axes) - 1}"])
    cut = blocking(p, host, threads, heights)
    spec = BandSpec(_band(p, host, axes))
    phases: list[Phase] = []
    parameters: dict[str, int | str] = {}
    for image in range(p.batch):
        phases.append(Phase("copy", spec, {**fields, **copying, "n_first": image}, p.groups * blocks, {"band": BAND}))
        core, parameters = dense_phase(p, host, source, heights, cut, image, threads=threads)
        phases.append(core)
    return Lowering(
        tuple(phases),
        (Buffer(BAND, p.groups * group_bytes),),
        pack_weights(problem, host),
        ("all threads copy an image, channels last", f"core {parameters.get('tile', '')} reads the copy"),
        parameters,
    )
