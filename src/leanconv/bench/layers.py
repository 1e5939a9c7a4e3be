"""What is measured: layers, and the files they are read from.

A `Layer` is a convolution's shape with a name. Layers come from CSV files (this module), from oneDNN's
benchmark strings (`leanconv.bench.benchdnn`) and from the networks that are built in
(`leanconv.bench.catalogue`).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leanconv.errors import ArgumentError, LeanconvError

if TYPE_CHECKING:
    from leanconv.problem import Problem

# Column of the file -> what stands there if the column is missing or the cell empty; None: it must be given.
_COLUMNS: dict[str, str | None] = {
    "name": "",
    "N": "1",
    "C": None,
    "D": "",
    "H": "",
    "W": "",
    "K": None,
    "T": "",
    "R": "",
    "S": "",
    "stride": "1",
    "pad": "0",
    "dilation": "1",
    "groups": "1",
    "repeats": "1",
}


class LayerError(LeanconvError, ValueError):
    """A layer cannot be read or is no valid convolution; the message says which, and where it stands."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The shape of one convolution, without element type and layout.

    Attributes:
        name: how tables call it; layers of a built-in network are called "network/layer".
        batch: images, N.
        in_channels: C.
        in_size: extent of the image along each spatial axis.
        out_channels: K.
        kernel: taps along each spatial axis.
        stride: step along each spatial axis.
        padding: (low, high) along each spatial axis.
        dilation: distance between taps along each spatial axis.
        groups: parts of the channels that do not mix.
        repeats: how often the network holds this shape.
    """

    name: str
    batch: int
    in_channels: int
    in_size: tuple[int, ...]
    out_channels: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    repeats: int = 1

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.in_size)

    def shapes(self, layout: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of the image, in the axis order of `layout`, and of the weights.

        Raises:
            LayerError: the layout holds whole blocks of images, and the batch is none.
        """
        from leanconv.batch_last import BLOCK
        from leanconv.layouts import shape_in

        if layout == "CHWN8" and self.batch % BLOCK:
            raise LayerError(
                f"layer {self.name!r}: batch {self.batch}: layout CHWN8 holds whole blocks of {BLOCK} images"
            )
        x = shape_in((self.batch, self.in_channels, *self.in_size), layout)
        return x, (self.out_channels, self.in_channels // self.groups, *self.kernel)

    def options(self, layout: str) -> dict[str, Any]:
        """Return the keyword arguments that `leanconv.plan` takes for this layer."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
            "layout": layout,
        }

    def problem(self, layout: str = "NHWC", dtype: str = "float32", *, bias: bool = False) -> Problem:
        """Return the layer as a `Problem`.

        Raises:
            LayerError: the numbers do not make a convolution.
        """
        from leanconv.options import make_problem

        if self.groups < 1 or self.in_channels % self.groups:
            raise LayerError(f"layer {self.name!r}: groups={self.groups}: must divide {self.in_channels} channels")
        x_shape, w_shape = self.shapes(layout)
        try:
            return make_problem(self.ndim, x_shape, w_shape, dtype=dtype, bias=bias, **self.options(layout))
        except ArgumentError as error:
            raise LayerError(f"layer {self.name!r}: {error}") from error

    def short(self) -> str:
        """Return the shape on one line, such as `1x64x56x56 > 64 k3x3 s1 p1`."""
        words = [
            _times((self.batch, self.in_channels, *self.in_size)) + f" > {self.out_channels}",
            "k" + _times(self.kernel),
            "s" + _same_or_times(self.stride),
            "p" + _same_or_times([f"{a}" if a == b else f"{a}:{b}" for a, b in self.padding]),
        ]
        if any(d != 1 for d in self.dilation):
            words.append("d" + _same_or_times(self.dilation))
        if self.groups != 1:
            words.append("dw" if self.groups == self.in_channels == self.out_channels else f"g{self.groups}")
        return " ".join(words)


def distinct(layers: Iterable[Layer]) -> list[Layer]:
    """Return the layers with equal shapes merged: the first one's name, and the sum of the repeats."""
    merged: dict[Layer, Layer] = {}
    for layer in layers:
        shape = replace(layer, name="", repeats=1)
        first = merged.get(shape)
        merged[shape] = replace(first, repeats=first.repeats + layer.repeats) if first else layer
    return list(merged.values())


def read_csv(path: Path) -> list[Layer]:
    """Read the layers of a CSV file.

    The first line names the columns, in any order: `name, N, C, H, W, K, R, S, stride, pad, dilation, groups,
    repeats`, with `D` and `T` for a third axis and without `H` and `R` for signals. Only C, K and one extent
    of image and kernel are needed: `W` is `H` and `S` is `R` if missing, and the other columns are 1 (pad:
    0). Stride, pad and dilation are one number, or one for each axis as in `2x1`; a pad may have two ends as
    in `0:1` or be `same`. Empty lines and lines that begin with # are skipped.

    Raises:
        LayerError: the file cannot be read, or a line is wrong; the message begins with file and line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(_parse_csv(file, str(path)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LayerError(f"{path}: cannot be read: {error}") from error


def _parse_csv(lines: Iterable[str], source: str) -> Iterator[Layer]:
    columns: list[str] | None = None
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in next(csv.reader([line]), [])]
        if not any(cells) or cells[0].startswith("#"):
            continue
        where = f"{source}:{number}"
        if columns is None:
            columns = _header(cells, where)
        elif len(cells) > len(columns):
            raise LayerError(f"{where}: {len(cells)} cells, but the header names {len(columns)} columns")
        else:
            yield _layer(dict(zip(columns, cells, strict=False)), where, f"line{number}")
    if columns is None:
        raise LayerError(f"{source}: holds no header line with the names of the columns")


def _header(cells: list[str], where: str) -> list[str]:
    """Return the columns as `_COLUMNS` spells them."""
    spelling = {column.lower(): column for column in _COLUMNS}
    columns = [spelling.get(cell.lower(), "") for cell in cells]
    for cell, column in zip(cells, columns, strict=True):
        if not column:
            raise LayerError(f"{where}: unknown column {cell!r}; the columns are {', '.join(_COLUMNS)}")
        if columns.count(column) > 1:
            raise LayerError(f"{where}: column {column!r} appears twice")
    missing = [column for column, default in _COLUMNS.items() if default is None and column not in columns]
    if missing:
        raise LayerError(f"{where}: the header lacks the column {' and '.join(missing)}")
    return columns


def _layer(cells: dict[str, str], where: str, default_name: str) -> Layer:
    """Return the layer of one line."""

    def text(column: str) -> str:
        return cells.get(column) or _COLUMNS[column] or ""

    def number(column: str, part: str) -> int:
        least = 0 if column == "pad" else 1
        if part.isascii() and part.isdigit() and int(part) >= least:
            return int(part)
        raise LayerError(f"{where}: {column}={text(column)!r}: must be a whole number of at least {least}")

    def value(column: str) -> int:
        return number(column, text(column))

    def extents(columns: tuple[str, str, str], what: str) -> tuple[int, ...]:
        given = [column for column in columns if cells.get(column)]
        sizes = [value(column) for column in given]
        # A square image needs one number; the last axis is the one that may be left out.
        if given and columns[2] not in given:
            sizes.append(sizes[-1])
        if not given or (columns[0] in given and columns[1] not in given):
            raise LayerError(f"{where}: needs the {what}'s extent: {', '.join(columns)} (the last two for images)")
        return tuple(sizes)

    in_size = extents(("D", "H", "W"), "image")
    kernel = extents(("T", "R", "S"), "kernel")
    ndim = len(in_size)
    if len(kernel) != ndim:
        raise LayerError(f"{where}: the image has {ndim} axes and the kernel {len(kernel)}")

    def per_axis(column: str) -> list[str]:
        parts = text(column).split("x")
        if len(parts) not in (1, ndim):
            rule = f"must be one number, or {ndim} joined by 'x'"
            raise LayerError(f"{where}: {column}={text(column)!r}: {rule}")
        return parts * (ndim if len(parts) == 1 else 1)

    stride, dilation = (tuple(number(column, part) for part in per_axis(column)) for column in ("stride", "dilation"))
    if text("pad").lower() == "same":
        spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple(_same(n, span, s) for n, span, s in zip(in_size, spans, stride, strict=True))
    else:
        padding = tuple(_ends([number("pad", end) for end in part.split(":", 1)]) for part in per_axis("pad"))
    layer = Layer(
        name=cells.get("name") or default_name,
        batch=value("N"),
        in_channels=value("C"),
        in_size=in_size,
        out_channels=value("K"),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=value("groups"),
        repeats=value("repeats"),
    )
    try:
        layer.problem()
    except LayerError as error:
        raise LayerError(f"{where}: {error}") from error
    return layer


def _same(extent: int, span: int, step: int) -> tuple[int, int]:
    """Return the padding for an output of ceil(extent / step), an odd element at the end."""
    total = max((-(-extent // step) - 1) * step + span - extent, 0)
    return total // 2, total - total // 2


def _ends(ends: list[int]) -> tuple[int, int]:
    return ends[0], ends[-1]


def _times(values: Iterable[object]) -> str:
    return "x".join(map(str, values))


def _same_or_times(values: Iterable[object]) -> str:
    words = [str(value) for value in values]
    return words[0] if len(set(words)) == 1 else "x".join(words)
