"""What MEC and im2win share: a window tensor, and the core on windows that overlap in it.

Both keep the positions of one dimension and lay the taps of the others out beside each (`kernels/windows.py`).  For a
kernel of R x S taps on C channels, and an image of H x W pixels, padding included, with P x Q pixels of output:

    dimension that slides    tensor          elements         windows, each of R * S * C elements
    the first (MEC)          [Q][H][S][C]    Q * H * S * C    one stride times S * C apart in a column of the output
    the last (im2win)        [P][W][R][C]    P * W * R * C    one stride times R * C apart in a row of the output

The core reads a window as one run of all its terms, so weights are packed in that order: taps of the dimension that
slides outermost.  Dilation along that dimension makes a run for each of its taps.  In three dimensions the taps and the
output positions of both others take the place of those of the one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.algorithms.base import Lowering
from leanconv.algorithms.batchjoin import with_images
from leanconv.algorithms.blocking import Blocking, blocking, panels_of, tile_heights
from leanconv.algorithms.dense import CoreInput, dense_phase, image_input, pack_weights
from leanconv.algorithms.lowered import fitting_strips
from leanconv.algorithms.windowlines import line_phase
from leanconv.algorithms.windowtensor import TENSOR, Tensor, runs_of
from leanconv.classes import replace
from leanconv.host import Host
from leanconv.kernels.cost import LINE
from leanconv.kernels.image import Image
from leanconv.kernels.window_phases import WindowBand, WindowSpec
from leanconv.kernels.windows import Windows
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

FEW = 8  # vectors of channels up to which a copy is made for their number
MOST_ROWS = 16  # of the image that are interleaved at one time
PAST = 4  # a tensor of more than this part of the last-level cache is stored past the caches
LARGEST_BAND = 255 << 10  # bytes a thread, if nothing else is asked for


def copied(problem: Problem, host: Host, tensor: Tensor) -> tuple[Windows, dict[str, int]]:
    """How the tensor is written, and the fields of the copy."""
    p, lanes, slide = problem, host.target.lanes(problem.dtype), tensor.slide

    def still(values: tuple[int, ...]) -> tuple[int, ...]:
        """Along the dimension that slides every position is copied once."""
        return tuple(1 if d == slide else value for d, value in enumerate(values))

    kernel, stride = still(p.kernel), still(p.stride)
    pixel, channel = p.x_strides[-1], p.x_strides[1]
    adjacent = "none"
    if p.group_in == 1 and pixel == 1 and slide == p.ndim - 1 and math.prod(kernel) <= MOST_ROWS:
        adjacent = "row"
    elif channel == 1 or p.group_in == 1:
        adjacent = "channels"
    elif pixel == 1 and stride[-1] <= lanes // 2:
        adjacent = "pixels"
    together = adjacent == "channels" and pixel == p.group_in and p.dilation[-1] == 1
    windows = Windows(
        target=host.target,
        dtype=p.dtype,
        kernel=kernel,
        stride=stride,
        dilation=still(p.dilation),
        pad_low=p.pad_low,
        padded=any(p.pad_low) or any(p.pad_high),
        pad_mode=p.pad_mode,
        adjacent=adjacent,
        channels=p.group_in if p.group_in <= FEW * lanes else None,
        tail=p.group_in % lanes,
        joint=kernel[-1] if together else 1,
    )
    fields = {"s_c": channel * p.itemsize, "channels": p.group_in}
    for d in range(p.ndim):
        fields |= {
            f"e{d}": tensor.extents[d],
            f"m{d}": tensor.steps[d],
            f"k{d}": tensor.taps[d],
            f"in{d}": p.in_size[d],
            f"at{d}": p.x_strides[2 + d] * p.itemsize,
        }
    return windows, fields


def core_input(problem: Problem, tensor: Tensor, fields: Mapping[str, int], buffer: str) -> CoreInput:
    """The core's view of the tensor: an image without edges whose pixels are entries."""
    p, slide, item = problem, tensor.slide, problem.itemsize
    ones, zeros = (1,) * p.ndim, (0,) * p.ndim
    steps = {f"step{d}": step * (p.stride[d] if d == slide else 1) for d, step in enumerate(tensor.steps)}
    fields = {
        **{f"out{d}": size for d, size in enumerate(p.out_size)},
        **steps,
        "tap0": p.dilation[slide] * tensor.steps[slide],
        "x_c": item,
        **fields,
    }
    runs, depth = runs_of(p, tensor)
    return CoreInput(
        source=Image(ones, ones, zeros, False, "zeros", None),
        kernel=(runs,),
        channels=depth,
        unit_channel=True,
        merged=False,
        fields=fields,
        buffer=buffer,
    )


def term_order(problem: Problem, slide: int) -> tuple[int, ...]:
    """The order of a sum: taps of the dimension that slides outermost, channels innermost."""
    return (slide, *(d for d in range(problem.ndim) if d != slide), problem.ndim)


def stage_phase(problem: Problem, host: Host, threads: int, tensor: Tensor, image: int, *, past: bool = False) -> Phase:
    """The phase that copies one image into the buffer `TENSOR`, `past` the caches if it is in whole lines."""
    p = problem
    windows, fields = copied(p, host, tensor)
    lines = windows.adjacent == "channels" and not windows.tail and host.target.vector_bytes == LINE
    windows = replace(windows, past=past and lines)
    strides = image_input(p).fields
    rows = math.prod(tensor.extents[:-1])
    block = -(-rows // (8 * threads))
    fields |= {
        "x_n": strides["x_n"],
        "x_g": strides["x_g"],
        "t_g": tensor.nbytes,
        "n_first": image,
        "b_div": 1,
        "b_count": -(-rows // block),
        "g_div": -(-rows // block),
        "g_count": p.groups,
        "block": block,
        "rows": rows,
    }
    return Phase("stage", WindowSpec(windows), fields, p.groups * fields["b_count"], {"windows": TENSOR})


def whole(problem: Problem, host: Host, threads: int, slide: int, name: str, *, together: bool = False) -> Lowering:
    """The whole tensor of one image after the other, or of all images together."""
    packing = pack_weights(problem, host, term_order(problem, slide))
    p = problem
    if together and p.batch > 1:
        p, slide = with_images(p), slide + 1
    tensor = Tensor.of(p, slide)
    source = core_input(p, tensor, {"x_n": 0, "x_g": tensor.nbytes}, TENSOR)
    heights = tile_heights(math.prod(p.out_size), host, panels_of(p, host))
    cut = blocking(p, host, threads, heights, tensor.nbytes / math.prod(p.out_size))
    phases: list[Phase] = []
    parameters: dict[str, int | str] = {}
    for image in range(p.batch):
        lines = None if together else line_phase(p, host, threads, tensor, image)
        core, parameters = lines or dense_phase(p, host, source, heights, cut, image, threads=threads)
        # Lines ask for what comes next, so the tensor need not wait in a cache.
        past = lines is not None and tensor.nbytes > host.l3 // PAST
        phases.append(stage_phase(p, host, threads, tensor, image, past=past))
        phases.append(core)
    return Lowering(
        tuple(phases),
        (Buffer(TENSOR, p.groups * tensor.nbytes),),
        packing,
        (
            f"{name}: copy {'all images' if together else 'an image'} into a window tensor of"
            f" {' x '.join(map(str, tensor.extents))} entries of {p.groups * tensor.entry}",
            f"core {parameters.get('tile', '')} reads windows where they overlap",
        ),
        parameters,
    )


def bands(problem: Problem, host: Host, threads: int, workspace: int | None, chosen: int | None) -> Lowering:
    """Bands of output pixels, each staged and read by one thread; windows slide along the last dimension.

    `chosen` output rows a band, else as many pixels as fit half the second-level cache, LARGEST_BAND and the workspace.
    """
    p = problem
    pixels, width, slide = math.prod(p.out_size), p.out_size[-1], p.ndim - 1
    tensor = Tensor.of(p, slide)
    if chosen is not None:
        size, unit = min(chosen * width, pixels), width
    else:
        budget = min(host.l2 // 2, LARGEST_BAND)
        if workspace is not None:
            budget = min(budget, workspace // threads // 64 * 64)
        size, unit = largest_band(p, tensor, budget), 1
        if threads > 1:  # enough bands for every thread to have several
            size = min(size, max(1, pixels * p.batch * p.groups // (4 * threads)))
    heights, cut = fitting_strips(p, host, size, unit, longer=True)
    windows, fields = copied(p, host, tensor)
    strides = image_input(p).fields
    fields |= {
        "x_n": strides["x_n"],
        "x_g": strides["x_g"],
        "hop": p.stride[slide],
        "reach": (p.kernel[slide] - 1) * p.dilation[slide] + 1,
    }
    source = replace(core_input(p, tensor, fields, "x"), stage=WindowBand(windows))
    core, parameters = dense_phase(p, host, source, heights, cut, threads=threads)
    return Lowering(
        (core,),
        (Buffer("scratch", band_bytes(p, tensor, cut), per_thread=True),),
        pack_weights(p, host, term_order(p, slide)),
        (
            f"im2win: each thread copies what the windows of {cut.block} output pixels hold",
            f"core {parameters['tile']} reads the windows while they are in the cache",
        ),
        {**parameters, "band": cut.block},
    )


def band_bytes(problem: Problem, tensor: Tensor, cut: Blocking) -> int:
    """Bytes of the tensor that the largest block of pixels reads."""
    last = math.prod(problem.out_size) - (cut.blocks - 1) * cut.block
    whole_rows = cut.block % problem.out_size[-1] == 0
    most = max(entries(problem, tensor, size, whole_rows=whole_rows) for size in (cut.block, last))
    return most * tensor.entry * tensor.itemsize


def entries(problem: Problem, tensor: Tensor, pixels: int, *, whole_rows: bool) -> int:
    """Entries from the first to the last that a block of so many pixels reads, at the most.

    `whole_rows`: blocks start where rows of the output do.
    """
    p, last = problem, problem.ndim - 1
    width, stride = p.out_size[last], p.stride[last]
    reach = (p.kernel[last] - 1) * p.dilation[last] + 1
    # From the last window of a row to the first one of the next are so many entries more than along the row.
    gap = tensor.extents[last] - width * stride
    least = (pixels - 1) // width
    most = least if whole_rows else min(-(-(pixels - 1) // width), math.prod(p.out_size[:-1]) - 1)
    return (pixels - 1) * stride + reach + max(least * gap, most * gap)


def largest_band(problem: Problem, tensor: Tensor, budget: int) -> int:
    """The most pixels whose entries fit the budget, and at least one."""
    low, high = 1, math.prod(problem.out_size)
    while low < high:
        middle = (low + high + 1) // 2
        if entries(problem, tensor, middle, whole_rows=False) * tensor.entry * tensor.itemsize <= budget:
            low = middle
        else:
            high = middle - 1
    return low
