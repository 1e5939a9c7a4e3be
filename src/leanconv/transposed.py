"""A transposed convolution as ordinary ones, one for each phase of the stride; no zeros are inserted.

Output element o takes input element i times tap r where o = i * stride - pad_low + r * dilation. Outputs that leave the
same rest when divided by the stride share their taps: every (stride / gcd(stride, dilation))-th one. With q counting
these outputs, and those taps in reverse order, they are a convolution of stride 1 of the input with a part of the
filter, written to every stride-th place of the output:

    stride 2, 3 taps, padding 1    output 0, 2, 4 ...   tap 1       input q
                                   output 1, 3, 5 ...   taps 2, 0   input q, q + 1

In several dimensions phases are all pairs (triples) of phases. Their outputs are disjoint, and each runs by any
algorithm for ordinary convolutions. Phases without taps, where the stride is larger than the kernel, are filled with
the bias.

V. Dumoulin, F. Visin: A guide to convolution arithmetic for deep learning, arXiv:1603.07285 (the arithmetic).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from leanconv.algorithms.base import Lowering, Tables, WeightPacking
from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.copy import CopySpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.fill import FillSpec
from leanconv.memory import ALIGNMENT, Buffer
from leanconv.problem import Problem, dense_strides
from leanconv.program import Phase


@dataclass(frozen=True, slots=True)
class _Axis:
    """A phase along one axis: its outputs, its taps, and where they read.

    Outputs `first`, first + stride ...; `count` of them. Taps `tap`, tap + step ..., `taps` of them, `dilation` input
    elements apart. Input elements `start` to `start` + `size`, padded by `low` and `high`. No taps: nothing is read.
    """

    first: int
    count: int
    taps: int = 0
    tap: int = 0
    step: int = 1
    dilation: int = 1
    start: int = 0
    size: int = 0
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class StridePhase:
    """A convolution that makes one phase of the outputs.

    Attributes:
        problem: the convolution.
        offsets: elements from the start of "x", "out" and "weights" at which its arrays begin.
    """

    problem: Problem
    offsets: Mapping[str, int]


def _axis_phases(in_size: int, kernel: int, stride: int, dilation: int, low: int, out: int) -> list[_Axis]:
    """The phases along one axis that have outputs."""
    result = []
    common = math.gcd(stride, dilation)
    step = stride // common
    for first in range(min(stride, out)):
        count = (out - 1 - first) // stride + 1
        taps = [r for r in range(min(step, kernel)) if (first + low - r * dilation) % stride == 0]
        empty = _Axis(first, count)
        if not taps:
            result.append(empty)
            continue
        tap = taps[0]
        number = (kernel - 1 - tap) // step + 1
        gap = dilation // common if number > 1 else 1
        # The last of its taps reads input element base - (number - 1) * gap for the first output, the first one base.
        base = (first + low - tap * dilation) // stride
        begin, end = base - (number - 1) * gap, base + count
        if end <= 0 or begin >= in_size:
            result.append(empty)
            continue
        start, stop = max(0, begin), min(in_size, end)
        result.append(_Axis(first, count, number, tap, step, gap, start, stop - start, start - begin, end - stop))
    return result


@lru_cache(maxsize=1024)
def _phases(problem: Problem, turned: bool = True) -> tuple[tuple[StridePhase, ...], tuple[StridePhase, ...]]:
    """The phases with taps, and those without (whose problem has no input that counts).

    Strides of weights are those of their copy if they are `turned`, and otherwise those within a group, where they lie.
    """
    p = problem
    axes = zip(p.in_size, p.kernel, p.stride, p.dilation, p.pad_low, p.out_size, strict=True)
    full: list[StridePhase] = []
    empty: list[StridePhase] = []
    for phase in itertools.product(*(_axis_phases(*axis) for axis in axes)):
        reads = all(axis.taps for axis in phase)
        if not reads:
            phase = tuple(_Axis(axis.first, axis.count) for axis in phase)
        (full if reads else empty).append(_stride_phase(p, phase, reads, turned))
    return tuple(full), tuple(empty)


def _stride_phase(p: Problem, phase: tuple[_Axis, ...], reads: bool, turned: bool) -> StridePhase:
    out_size = tuple(axis.count for axis in phase)
    in_size = tuple(axis.size for axis in phase) if reads else out_size
    kernel = tuple(axis.taps for axis in phase) if reads else (1,) * p.ndim
    residual = p.residual_strides
    weights = _forward_strides(p, turned)

    def strided(strides: tuple[int, ...]) -> tuple[int, ...]:
        apart = [s * step for s, step in zip(strides[2:], p.stride, strict=True)]
        return _plain((*strides[:2], *apart), (p.batch, p.out_channels, *out_size), p.layout)

    inner = replace(
        p,
        in_size=in_size,
        kernel=kernel,
        stride=(1,) * p.ndim,
        dilation=tuple(axis.dilation for axis in phase),
        pad_low=tuple(axis.low for axis in phase),
        pad_high=tuple(axis.high for axis in phase),
        x_strides=_plain(p.x_strides, (p.batch, p.in_channels, *in_size), p.layout),
        w_strides=(*weights[:2], *(-axis.step * s for axis, s in zip(phase, weights[2:], strict=True))),
        out_strides=strided(p.out_strides),
        residual_strides=None if residual is None else strided(residual),
        direction="forward",
    )
    offsets = {"out": sum(axis.first * s for axis, s in zip(phase, p.out_strides[2:], strict=True))}
    if residual is not None:
        offsets["residual"] = sum(axis.first * s for axis, s in zip(phase, residual[2:], strict=True))
    if reads:
        last = [axis.tap + (axis.taps - 1) * axis.step for axis in phase]
        offsets["x"] = sum(axis.start * s for axis, s in zip(phase, p.x_strides[2:], strict=True))
        offsets["weights"] = sum(tap * s for tap, s in zip(last, weights[2:], strict=True))
    return StridePhase(inner, offsets)


def _plain(strides: tuple[int, ...], shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides with those of axes of one element as problems have them."""
    dense = dense_strides(shape, layout)
    return tuple(s if n > 1 else d for s, n, d in zip(strides, shape, dense, strict=True))


def _apart(problem: Problem) -> bool:
    """Whether the weights of the groups have to be copied together: no one stride leads from output to output."""
    p = problem
    return p.groups > 1 and p.group_out > 1 and p.group_in * p.w_strides[0] != p.group_out * p.w_strides[1]


def _forward_strides(problem: Problem, turned: bool) -> tuple[int, ...]:
    """Strides along (K, C/g, *kernel) of weights that are (C, K/g, *kernel), or of their copy."""
    p = problem
    if turned and _apart(p):
        return dense_strides((p.out_channels, p.group_in, *p.kernel), "NCHW")
    output = p.w_strides[1] if p.group_out > 1 else p.group_in * p.w_strides[0]
    return (output, *p.w_strides[:1], *p.w_strides[2:])


def stride_phases(problem: Problem) -> tuple[StridePhase, ...]:
    """The convolutions that make up a transposed one, those without taps left out."""
    return _phases(problem)[0]


def by_stride_phases(
    problem: Problem, host: Host, lower: Callable[[Problem], Lowering], *, least: bool = False
) -> Lowering:
    """A transposed convolution as one program; `lower` gives that of each phase.

    Workspace is the most that any phase needs, packed weights are those of all phases. With `least` memory they lie
    side by side without gaps, and the bias is kept once where the algorithm can read it so.
    """
    p, item = problem, problem.itemsize
    parts, lows, turns = _lowered(p, lower, least)
    alignment = item if least else ALIGNMENT
    packed = p.w_bytes if turns else 0
    packs: list[Phase] = [_turn(p, host)] if turns else []
    fills = _fills(p, host)
    phases = list(fills)
    tables: list[Buffer] = []
    table_phases: list[Phase] = []
    steps = [f"fill the outputs without taps ({len(_phases(p)[1])} of the phases of the stride)"] if fills else []
    own: list[tuple[Problem, Lowering]] = []
    for number, (part, low) in enumerate(zip(parts, lows, strict=True)):
        offsets = {name: elements * item for name, elements in part.offsets.items() if elements}
        turned = {"weights": "w"} if turns else {}
        if low.packing is not None:
            packed = -(-packed // alignment) * alignment
            at = {"weights": offsets.pop("weights", 0), "w": packed}
            packs += [phase.shifted(at).renamed(turned) for phase in low.packing.phases]
            offsets["w"] = packed
            turned = {}
            packed += low.packing.nbytes
        names = {buffer.name: f"{buffer.name} {number}" for buffer in (low.tables.buffers if low.tables else ())}
        if low.tables is not None:
            tables += [replace(buffer, name=names[buffer.name]) for buffer in low.tables.buffers]
            table_phases += [phase.renamed(names) for phase in low.tables.phases]
        moved = tuple(phase.shifted(offsets).renamed({**turned, **names}) for phase in low.phases)
        phases += moved
        own.append((part.problem, replace(low, phases=moved)))
        kernel = "x".join(map(str, part.problem.kernel))
        steps += [f"phase {number + 1} of {len(parts)} ({kernel} taps): {step}" for step in low.steps]
    apart = bool(fills) or any(low.packing is None or low.packing.bias_apart for low in lows)
    packing = WeightPacking(packed, packs[0], p.has_bias and apart, tuple(packs[1:])) if packs else None
    return Lowering(
        phases=tuple(phases),
        workspace=_shared(lows),
        packing=packing,
        steps=tuple(steps),
        parameters=(lows[0].parameters if lows else {}),
        addresses={name: address for low in lows for name, address in low.addresses.items()},
        tables=Tables(tuple(tables), table_phases[0], tuple(table_phases[1:])) if table_phases else None,
        parts=tuple(own),
    )


def _lowered(
    problem: Problem, lower: Callable[[Problem], Lowering], least: bool
) -> tuple[tuple[StridePhase, ...], list[Lowering], bool]:
    """The phases, how each runs, and whether their weights must be copied to another order first."""
    p = problem

    def of(part: StridePhase) -> Lowering:
        return lower(replace(part.problem, bias_apart=True) if least and p.has_bias else part.problem)

    if _apart(p):
        parts = _phases(p, turned=False)[0]
        lows = [of(part) for part in parts]
        packings = [low.packing for low in lows if low.packing is not None and low.packing.grouped]
        if len(packings) == len(lows):
            step = p.group_in * p.w_strides[0] * p.itemsize
            pairs = zip(lows, packings, strict=True)
            return parts, [replace(low, packing=packing.with_group_step(step)) for low, packing in pairs], False
    parts = stride_phases(p)
    lows = [of(part) for part in parts]
    return parts, lows, _apart(p) or len({low.packing is None for low in lows}) > 1


def _shared(lows: list[Lowering]) -> tuple[Buffer, ...]:
    """Buffers that serve all phases in turn: of each name the largest."""
    largest: dict[tuple[str, bool], Buffer] = {}
    for low in lows:
        for buffer in low.workspace:
            key = (buffer.name, buffer.per_thread)
            if key not in largest or largest[key].nbytes < buffer.nbytes:
                largest[key] = buffer
    return tuple(largest.values())


def _turn(problem: Problem, host: Host) -> Phase:
    """The copy of weights (C, K/g, *kernel) to (K, C/g, *kernel), at the start of the packed weights."""
    p, item = problem, problem.itemsize
    target = dense_strides((p.out_channels, p.group_in, *p.kernel), "NCHW")
    fields = {"c_div": 1, "c_count": p.group_out, "n_div": p.group_out, "n_count": p.groups, "size0": p.group_in}
    fields |= {"s_n": p.group_in * p.w_strides[0] * item, "s_c": p.w_strides[1] * item, "s_0": p.w_strides[0] * item}
    fields |= {"t_n": p.group_out * target[0] * item, "t_c": target[0] * item, "t_0": target[1] * item}
    for d, (size, source, to) in enumerate(zip(p.kernel, p.w_strides[2:], target[2:], strict=True), 1):
        fields |= {f"size{d}": size, f"s_{d}": source * item, f"t_{d}": to * item}
    spec = CopySpec(host.target, p.dtype, p.ndim + 1)
    return Phase("turn weights", spec, fields, p.groups * p.group_out, {"source": "weights", "target": "w"})


def _fills(problem: Problem, host: Host) -> list[Phase]:
    """Phases that fill the outputs without taps.

    Without a residual the whole output is filled, and the phases with taps write over it: whole lines are written
    faster than every other element. A residual may be the output itself, so that each output is written once.
    """
    p = problem
    empty = _phases(p)[1]
    if not empty:
        return []
    if p.residual is None:
        return [_fill(replace(p, direction="forward"), p.out_size, host, {})]
    return [_fill(part.problem, part.problem.out_size, host, part.offsets) for part in empty]


def _fill(problem: Problem, size: tuple[int, ...], host: Host, offsets: Mapping[str, int]) -> Phase:
    p, item = problem, problem.itemsize
    channels = all(s[1] == 1 for s in (p.out_strides, p.residual_strides) if s is not None)
    extents = (p.out_channels, *size)
    order = [*range(1, p.ndim + 1), 0] if channels else list(range(p.ndim + 1))
    adjacent = all(s[1:][order[-1]] == 1 for s in (p.out_strides, p.residual_strides) if s is not None)
    spec = FillSpec(
        host.target, p.dtype, p.ndim + 1, order.index(0), adjacent, p.has_bias, Epilogue(p.activation, p.residual)
    )
    fields = {"a_div": 1, "a_count": extents[order[0]], "n_div": extents[order[0]], "n_count": p.batch}
    for d, axis in enumerate(order):
        fields[f"size{d}"] = extents[axis]
        fields[f"o_{d}"] = p.out_strides[1 + axis] * item
        if p.residual_strides is not None:
            fields[f"r_{d}"] = p.residual_strides[1 + axis] * item
    fields["o_n"] = p.out_strides[0] * item
    if p.residual_strides is not None:
        fields["r_n"] = p.residual_strides[0] * item
    moved = {name: elements * item for name, elements in offsets.items() if elements}
    return Phase("fill", spec, fields, p.batch * extents[order[0]]).shifted(moved)
