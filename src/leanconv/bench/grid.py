"""A table whose last cell of a row may take the place of all columns to its right.

That is how a row says in a sentence why it has no numbers. Lines are never cut: on a narrow terminal they
wrap, in a file they are whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.text import Text

_GAP = "  "
# A sentence is wrapped to at least this width, however narrow the columns are.
_NARROWEST = 40


def print_grid(
    console: Console, headings: Sequence[str], groups: Iterable[Sequence[Sequence[Text]]], *, left: int
) -> None:
    """Print groups of rows under headings, an empty line between groups of several rows.

    Args:
        console: where to.
        headings: of the columns.
        groups: of rows of cells; a row with fewer cells than headings has a sentence as its last cell.
        left: how many columns are aligned to the left; the others are numbers and aligned to the right.
    """
    groups = [list(group) for group in groups]
    widths = [len(heading) for heading in headings]
    for row in (row for group in groups for row in group):
        columns = row if len(row) == len(headings) else row[:-1]
        for column, cell in enumerate(columns):
            widths[column] = max(widths[column], cell.cell_len)
    _line(console, [Text(heading, style="bold") for heading in headings], widths, left)
    console.print("─" * (sum(widths) + len(_GAP) * (len(widths) - 1)), style="dim", soft_wrap=True)
    for number, group in enumerate(groups):
        if number and (len(group) > 1 or len(groups[number - 1]) > 1):
            console.print()
        for row in group:
            _row(console, row, widths, left)


def _row(console: Console, row: Sequence[Text], widths: Sequence[int], left: int) -> None:
    if len(row) == len(widths):
        _line(console, row, widths, left)
        return
    # The sentence, wrapped, with its further lines below its first.
    *cells, sentence = row
    room = sum(widths[len(cells) :]) + len(_GAP) * (len(widths) - len(cells) - 1)
    for line in sentence.wrap(console, max(room, _NARROWEST)):
        line.rstrip()
        _line(console, [*cells, line], widths, left)
        cells = [Text()] * len(cells)


def _line(console: Console, cells: Sequence[Text], widths: Sequence[int], left: int) -> None:
    line = Text(no_wrap=True)
    for column, cell in enumerate(cells):
        room = " " * max(widths[column] - cell.cell_len, 0)
        sentence = len(cells) < len(widths) and column == len(cells) - 1
        before, after = ("", room) if column < left or sentence else (room, "")
        line.append(before).append_text(cell).append(after + _GAP)
    line.rstrip()
    console.print(line, soft_wrap=True)
