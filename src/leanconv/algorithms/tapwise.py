"""Lowering of the kn2row and kn2col family: a convolution as a sum of one 1x1 convolution a tap.

Images are taken as three-dimensional here, dimensions that are missing come first and have size 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from leanconv.algorithms.blocking import panels_of, wanted_chunks
from leanconv.algorithms.dense import output_fields, output_refusal, panel_fields, store_columns
from leanconv.classes import dataclass, replace
from leanconv.host import Host
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.lines import heights_of
from leanconv.kernels.reduction import Reduction, reduction_fields
from leanconv.kernels.steps import Pixels
from leanconv.kernels.taps import Step, TapsSpec
from leanconv.memory import ALIGNMENT, Buffer, arena_bytes
from leanconv.problem import Problem
from leanconv.program import Phase

PAPER = "A. Anderson, A. Vasudevan, C. Keane, D. Gregg: Low-memory GEMM-based convolution algorithms, 2017"
PAPER_KN2 = (
    "A. Vasudevan, A. Anderson, D. Gregg: Parallel Multi Channel Convolution using General Matrix Multiplication, "
    "ASAP 2017"
)
TILES = 4  # tiles of pixels at least in a block, so that bounds and addresses are worked out once for some work

Triple = tuple[int, int, int]


def refusal(problem: Problem, layout: str | None) -> str | None:
    """What none of the family takes; with a layout, what the published ones of that layout do not."""
    p = problem
    if p.pad_mode != "zeros":
        return f"the image is padded by {p.pad_mode!r}, and a tap that leaves the image adds nothing here"
    if layout is not None and p.layout != layout:
        kind = "planes of pixels, channels first" if layout == "NCHW" else "rows of channels, channels last"
        return f"the product of a tap is made of {kind}, and the layout is {p.layout}"
    if layout is not None and any(s != 1 for s in p.stride):
        return f"the stride is {'x'.join(map(str, p.stride))}, and shifted products add up at stride 1 only"
    return output_refusal(p)


def triple(values: tuple[int, ...], missing: int) -> Triple:
    """Three numbers, those of missing dimensions in front."""
    a, b, c = (missing,) * (3 - len(values)) + tuple(values)
    return a, b, c


@dataclass(frozen=True, slots=True)
class Walk:
    """The extents of a walk tap by tap over outputs: those of the problem or, for whole products, of its image."""

    kernel: Triple
    size: Triple
    out: Triple
    stride: Triple
    dilation: Triple
    pad: Triple

    @staticmethod
    def of(problem: Problem) -> Walk:
        """Over the problem's outputs."""
        p = problem
        return Walk(
            triple(p.kernel, 1),
            triple(p.in_size, 1),
            triple(p.out_size, 1),
            triple(p.stride, 1),
            triple(p.dilation, 1),
            triple(p.pad_low, 0),
        )

    def over_image(self) -> Walk:
        """Every tap at every pixel of the image."""
        return replace(self, out=self.size, stride=(1, 1, 1), dilation=(0, 0, 0), pad=(0, 0, 0))

    def reached(self, dim: int, first: int, end: int) -> set[int]:
        """How many of the outputs [first, end) of a dimension each tap reaches."""
        found = set()
        for tap in range(self.kernel[dim]):
            shift, stride = tap * self.dilation[dim] - self.pad[dim], self.stride[dim]
            low = max(first, -(min(shift, 0) // stride))
            found.add(min(end, -(-max(self.size[dim] - shift, 0) // stride)) - low)
        return {count for count in found if count > 0}


@dataclass(frozen=True, slots=True)
class Cut:
    """Output rows and columns of a block (whole rows, or a part of one), and panels of a chunk."""

    rows: int
    cols: int
    group: int


def cut(problem: Problem, host: Host, threads: int, walk: Walk, images: int, most: int | None = None) -> Cut:
    """Blocks of at most `most` pixels whose image stays in the second-level cache from tap to tap.

    As in `blocking`: weights that fit a quarter of that cache stay there too, larger ones are taken a panel at a
    time over blocks of half of it.  The outputs of a panel stay in half the first-level cache.  Several threads get
    smaller blocks, and enough of them.
    """
    p, panels = problem, panels_of(problem, host)
    height, width = walk.out[1:]
    lanes = host.target.lanes(p.dtype)
    weights = p.taps * p.group_in * panels.registers * lanes * p.itemsize
    fits = weights <= host.l2 // 4
    ratio = math.prod(walk.size) / math.prod(walk.out)
    least = TILES * host.target.tile_rows(panels.vectors)
    pixels = int((host.l2 // 4 if fits else host.l2 // 2) / (p.group_in * p.itemsize * max(1.0, ratio)))
    pixels = min(pixels, host.l1 // 2 // (panels.vectors * host.target.vector_bytes))
    pixels = max(1, min(max(pixels, least), most or height * width))
    rows = max(1, min(height, pixels // width))
    cols = width if pixels >= width or (most is None and width < 2 * pixels) else pixels
    group = panels.total if fits else 1
    wanted = wanted_chunks(p, threads)

    def chunks() -> int:
        return images * p.groups * walk.out[0] * -(-height // rows) * -(-width // cols) * -(-panels.total // group)

    while chunks() < wanted:
        if rows > 1 and rows * cols > least:
            rows = -(-rows // 2)
        elif group > 1:
            group = -(-group // 2)
        elif rows == 1 and cols > least:
            cols = -(-cols // 2)
        else:
            break
    return Cut(_even(height, rows), _even(width, cols), group)


def _even(size: int, part: int) -> int:
    """The size of equal parts, as many as there are parts of at most `part`."""
    return -(-size // -(-size // part))


def sums_apart(problem: Problem) -> bool:
    """Whether partial sums must not lie in the output: it may be the residual that comes after the activation."""
    return problem.residual == "after" and problem.activation is not None


def columns(problem: Problem) -> bool:
    """Whether what is added up has its pixels adjacent."""
    return store_columns(problem) and not sums_apart(problem)


def widest(problem: Problem, host: Host) -> int:
    """Output channels of the widest panel, filled up to whole registers."""
    panels = panels_of(problem, host)
    return max(panels.vectors if panels.count else 0, panels.last) * host.target.lanes(problem.dtype)


def sums(problem: Problem, host: Host, blocks: Cut) -> tuple[Buffer, ...]:
    """The partial sums of a panel of one block for each thread, if they need memory."""
    pixel = sum_bytes(problem, host)
    return (Buffer("sums", blocks.rows * blocks.cols * pixel, per_thread=True),) if pixel else ()


def affordable(workspace: int | None, threads: int, shared: Buffer | None, *pixel_bytes: int) -> int | None:
    """Pixels of a block for which each thread can have buffers of so many bytes a pixel, beside a shared one."""
    if workspace is None or not any(pixel_bytes):
        return None
    share = (workspace - arena_bytes((shared,) if shared else ())) // threads
    return max(1, (share - ALIGNMENT * len(pixel_bytes)) // sum(pixel_bytes))


def sum_bytes(problem: Problem, host: Host) -> int:
    """Bytes of partial sums for each pixel of a block; 0 if they lie in the output."""
    return widest(problem, host) * problem.itemsize if sums_apart(problem) else 0


def flat(problem: Problem) -> bool:
    """Whether rows of the image follow each other evenly in memory."""
    width = problem.in_size[-1]
    return problem.ndim == 1 or problem.in_size[-2] == 1 or problem.x_strides[-2] == width * problem.x_strides[-1]


def pixels_of(problem: Problem, host: Host) -> Pixels:
    """How the channels of one tap are summed."""
    p = problem
    unit = p.x_strides[1] == 1
    # Weights are asked for ahead although a tap's stay in the nearest cache: those of the next tap follow them.
    reduction = Reduction.of((1,), p.group_in, unit_channel=unit, merged=False, stream=True)
    adjacent = p.x_strides[-1] == 1 and not unit
    return Pixels(reduction, triple(p.stride, 1), p.itemsize if adjacent else None)


def phase(
    problem: Problem,
    host: Host,
    walk: Walk,
    step: Step,
    blocks: Cut,
    image: int | None = None,
    name: str = "core",
    maps: Mapping[str, int] | None = None,
) -> tuple[Phase, dict[str, int | str]]:
    """The phase that runs a step over all blocks, on all images or on one, and the settings chosen."""
    p, item, panels = problem, problem.itemsize, panels_of(problem, host)
    order = "after" if sums_apart(p) else "before"
    epilogue = Epilogue(p.activation, order if p.residual else None) if step.fills else Epilogue()
    lengths = _lengths(walk, blocks, step)
    heights = [heights_of(lengths, host.target.tile_rows(v)) for v in (panels.vectors, panels.last or panels.vectors)]
    spec = TapsSpec(
        host.target,
        p.dtype,
        step,
        panels.shape,
        (heights[0], heights[1]),
        p.has_bias,
        store_columns(p) if step.fills else columns(p),
        epilogue,
    )
    counts = {
        "k": -(-panels.total // blocks.group),
        "c": -(-walk.out[2] // blocks.cols),
        "y": -(-walk.out[1] // blocks.rows),
        "z": walk.out[0],
        "g": p.groups,
        "n": p.batch if image is None else 1,
    }
    channel = p.x_strides[1] * item
    values = {**panel_fields(p, host), **reduction_fields(p.group_in), **output_fields(p, host)}
    values |= {"x_n": p.x_strides[0] * item, "x_g": p.group_in * channel, "x_c": channel}
    chunks = 1
    for letter, count in counts.items():
        values |= {f"{letter}_div": chunks, f"{letter}_count": count}
        chunks *= count
    at = triple(tuple(s * item for s in p.x_strides[2:]), 0)
    for d in range(3):
        values |= {
            f"taps{d}": walk.kernel[d],
            f"in{d}": walk.size[d],
            f"out{d}": walk.out[d],
            f"dilation{d}": walk.dilation[d],
            f"pad{d}": walk.pad[d],
            f"at{d}": at[d],
        }
    values |= {
        "n_first": image or 0,
        "rows": blocks.rows,
        "cols": blocks.cols,
        "panels": blocks.group,
        "channels": p.group_in,
        "gap": at[1] - walk.size[2] * at[2] if walk.size[1] > 1 else 0,
        **(maps or {}),
    }
    tile = f"{(heights[0] if panels.count else heights[1])[0]}x{panels.vectors * host.target.lanes(p.dtype)}"
    block = blocks.rows * blocks.cols
    parameters: dict[str, int | str] = {"tile": tile, "block": block, "panels": blocks.group, "chunks": chunks}
    return Phase(name, spec, values, chunks), parameters


def _lengths(walk: Walk, blocks: Cut, step: Step) -> set[int]:
    """The lengths of all lines of a walk."""
    width = walk.size[2]
    result = set()
    spans = [
        [(first, min(first + part, size)) for first in range(0, size, part)]
        for size, part in zip(walk.out[1:], (blocks.rows, blocks.cols), strict=True)
    ]
    rows = {count for span in spans[0] for count in walk.reached(1, *span)}
    for first, end in spans[1]:
        columns = walk.reached(2, first, end)
        if step.apart:
            result |= columns
        if step.together:
            result |= {(count - 1) * width + last for count in rows for last in columns}
        if step.fills:
            result |= {(high - low - 1) * walk.out[2] + end - first for low, high in spans[0]}
    return result
