"""Few channels a group, pixels adjacent in the output: how such a problem is cut for the kernel of `kernels.planes`."""

from __future__ import annotations

from leanconv.algorithms.base import Lowering, WeightPacking
from leanconv.algorithms.blocking import wanted_chunks
from leanconv.algorithms.dense import image_input
from leanconv.classes import dataclass
from leanconv.host import Host
from leanconv.kernels.columns import RowPackSpec
from leanconv.kernels.epilogue import Epilogue
from leanconv.kernels.planes import PlaneSpec
from leanconv.kernels.rowstage import RowStage
from leanconv.kernels.taporder import TapOrder
from leanconv.kernels.window import Window
from leanconv.memory import Buffer
from leanconv.problem import Problem
from leanconv.program import Phase

RESIDENT_WEIGHTS = 9  # of an output channel: with sums for three rows they nearly fill AVX2's registers
MOST_SUMS = 10  # in registers: more are not needed to hide the latency of a multiply-add, and make LLVM spill
MOST_HIGH = 6  # rows of a tile with resident weights: beyond it nothing is gained by loading fewer pixels twice


def even_parts(count: int, most: int) -> tuple[int, int, int]:
    """`count` things in parts of at most `most`: the size of the larger parts, all parts, those one smaller."""
    parts = -(-count // most)
    size = -(-count // parts)
    return size, parts, size * parts - count


@dataclass(frozen=True, slots=True)
class PlaneTiles:
    """Tiles of `height` rows by `vectors` registers.

    A plane is `rows` of them high, `low` of which are a row lower; a row is `wide` of them, `narrow` of which are a
    register narrower.
    """

    resident: bool
    height: int
    rows: int
    low: int
    vectors: int
    wide: int
    narrow: int

    @staticmethod
    def of(problem: Problem, host: Host) -> PlaneTiles:
        """The tiles of a problem's output planes."""
        p, target = problem, host.target
        height, width = p.out_size[-2] if p.ndim > 1 else 1, p.out_size[-1]
        registers = -(-width // target.lanes(p.dtype))
        weights = p.taps * p.group_in
        resident = p.ndim == 2 and p.kernel[0] > 1 and weights <= RESIDENT_WEIGHTS
        if resident:
            high = even_parts(height, max(1, min(MOST_HIGH, target.accumulators - weights)))
            return PlaneTiles(True, *high, 1, registers, 0)
        sums = max(1, min(MOST_SUMS, target.accumulators + 3 - TapOrder(p.kernel, p.group_in).chunks[0]))
        wide = even_parts(registers, sums)
        return PlaneTiles(False, *even_parts(height, max(1, sums // wide[0])), *wide)


@dataclass(frozen=True, slots=True)
class StagedRows:
    """Bytes of a staged row: of each of its phases, and of all, and how many rows a band of output rows reads."""

    phase: int
    row: int
    problem: Problem

    @staticmethod
    def of(problem: Problem, lanes: int) -> StagedRows:
        """Rows long enough for whole registers of outputs under every tap."""
        p = problem
        stride = p.stride[-1]
        reach = (p.kernel[-1] - 1) * p.dilation[-1] // stride
        pixels = max(-(-p.out_size[-1] // lanes) * lanes + reach, (p.in_size[-1] - 1 + p.pad_low[-1]) // stride + 1)
        phase = -(-pixels // lanes) * lanes * p.itemsize
        return StagedRows(phase, stride * phase, p)

    def rows(self, outputs: int) -> int:
        """Input rows under so many output rows."""
        p = self.problem
        if p.ndim == 1:
            return 1
        return (outputs - 1) * p.stride[-2] + (p.kernel[-2] - 1) * p.dilation[-2] + 1

    def nbytes(self, outputs: int) -> int:
        """Bytes for all channels of a group under so many output rows."""
        slices = self.problem.kernel[0] if self.problem.ndim == 3 else 1
        return self.problem.group_in * slices * self.rows(outputs) * self.row


def pack_planes(problem: Problem, host: Host) -> WeightPacking:
    """Weights channel by channel, taps outermost; exactly as large as weights and bias."""
    p, item = problem, problem.itemsize
    strides = [s * item for s in p.w_strides]
    nbytes = (p.taps * p.group_in + p.has_bias) * item
    fields = {
        "g_div": p.out_channels,
        "g_count": 1,
        "p_div": 1,
        "p_count": p.out_channels,
        "panel_long": p.out_channels,
        "channels": p.group_in,
        "w_k": strides[0],
        "w_c": strides[1],
        "w_g": p.group_out * strides[0],
        "p_g": p.out_channels * nbytes,
        "p_row": nbytes,
        "bias_g": p.group_out * item,
        "group_out": p.group_out,
        **{f"w_{d}": stride for d, stride in enumerate(strides[2:])},
    }
    spec = RowPackSpec(host.target, p.dtype, p.kernel, 1, False, p.has_bias)
    return WeightPacking(p.out_channels * nbytes, Phase("pack weights", spec, fields, p.out_channels))


def row_stage(problem: Problem, host: Host) -> RowStage:
    """How the rows of a problem are staged."""
    p = problem
    lanes, size, stride = host.target.lanes(p.dtype), p.in_size[-1], p.stride[-1]
    piece = min(lanes, 1 << (size // stride).bit_length() >> 1) if stride in (1, 2, 4, 8) else 0
    unit = p.x_strides[-1] == 1
    padded = p.pad_low[-1] > 0 or p.pad_high[-1] > 0
    return RowStage(p.dtype, p.ndim - 1, stride, p.pad_low[-1], padded, p.pad_mode, unit, piece if piece > 1 else 0)


def plane_band(problem: Problem, host: Host, tiles: PlaneTiles, staged: StagedRows, most: int | None) -> int:
    """Rows of tiles a band: those whose rows stay in half the first-level cache, or in the second for tall windows."""
    budget = host.l1 // 2
    if 2 * staged.nbytes(tiles.height) > budget:
        budget = host.l2 // 4
    if most is not None:
        budget = min(budget, most)
    band = 1
    while band < tiles.rows and staged.nbytes((band + 1) * tiles.height) <= budget:
        band += 1
    return -(-tiles.rows // -(-tiles.rows // band))


def pixel_vectors(problem: Problem, host: Host, threads: int, workspace: int | None, window: Window) -> Lowering:
    """The lowering for pixels that are adjacent in the output; x may lie in any way."""
    p, item = problem, problem.itemsize
    lanes = host.target.lanes(p.dtype)
    tiles, staged = PlaneTiles.of(p, host), StagedRows.of(p, lanes)
    most = None if workspace is None else workspace // threads // 64 * 64
    band = plane_band(p, host, tiles, staged, most)
    outer = p.out_size[0] if p.ndim == 3 else 1
    wanted = wanted_chunks(p, threads)
    bands = -(-tiles.rows // band)
    count = min(p.groups, -(-wanted // max(1, p.batch * outer * bands)))
    units = -(-p.groups // count)
    count = -(-p.groups // units)
    while p.batch * outer * bands * count < wanted and band > 1:
        band = -(-band // 2)
        bands = -(-tiles.rows // band)
    # The first band has the highest tiles.
    height = p.out_size[-2] if p.ndim > 1 else 1
    outputs = min(band * tiles.height, height)
    nbytes = staged.nbytes(outputs)
    spec = PlaneSpec(
        target=host.target,
        dtype=p.dtype,
        window=window,
        channels=p.group_in,
        stage=row_stage(p, host),
        height=tiles.height,
        low=tiles.low > 0,
        vectors=tiles.vectors,
        narrow=tiles.narrow > 0,
        valid=p.out_size[-1] % lanes or lanes,
        resident=tiles.resident,
        bias=p.has_bias,
        epilogue=Epilogue(p.activation, p.residual),
    )
    rows_bytes = staged.rows(outputs) * staged.row
    fields = {
        "b_div": 1,
        "b_count": bands,
        "u_div": bands,
        "u_count": count,
        "d_div": bands * count,
        "d_count": outer,
        "n_div": bands * count * outer,
        "n_count": p.batch,
        "units": units,
        "unit_count": p.groups,
        "band": band,
        "tile_count": tiles.rows,
        "tile_high": tiles.rows - tiles.low,
        "wide_count": tiles.wide,
        "wide_long": tiles.wide - tiles.narrow,
        "outputs": p.group_out,
        "w_k": (p.taps * p.group_in + p.has_bias) * item,
        "s_phase": staged.phase,
        "s_row": staged.row,
        "s_slice": rows_bytes,
        "s_channel": rows_bytes * (p.kernel[0] if p.ndim == 3 else 1),
        "s_bytes": nbytes,
        "reach": (p.out_size[-1] - 1) * p.stride[-1] + (p.kernel[-1] - 1) * p.dilation[-1] + 1,
        **image_input(p).fields,
    }
    for letter, strides in (("o", p.out_strides), ("r", p.residual_strides)):
        if strides is not None:
            fields |= {f"{letter}_n": strides[0] * item, f"{letter}_k": strides[1] * item}
    chunks = p.batch * outer * bands * count
    parameters: dict[str, int | str] = {
        "tile": f"{tiles.height}x{tiles.vectors * lanes}",
        "band": band * tiles.height,
        "groups": units,
        "chunks": chunks,
    }
    return Lowering(
        phases=(Phase("core", spec, fields, chunks),),
        workspace=(Buffer("scratch", nbytes, per_thread=True),),
        packing=pack_planes(p, host),
        steps=(
            f"each thread copies the rows under {outputs} output rows of a group's channels, padded",
            f"tiles of {parameters['tile']} (rows x pixels) read them",
        ),
        parameters=parameters,
    )
