"""What the tables of messages share."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable
from types import ModuleType

import pytest

from leanconv.errors import ArgumentError

Row = tuple[Callable[[], object], type[ArgumentError], str]


@pytest.fixture
def check_row() -> Callable[[Row], None]:
    """Check that a call raises exactly this error with exactly this message."""

    def check(row: Row) -> None:
        call, kind, message = row
        with pytest.raises(ArgumentError) as caught:
            call()
        assert str(caught.value) == message
        assert type(caught.value) is kind
        assert message.startswith(f"{caught.value.argument}=")
        assert message.endswith(f": {caught.value.rule}")

    return check


@pytest.fixture
def checks_without_a_row() -> Callable[[ModuleType, Iterable[Row]], list[int]]:
    """Return the lines of a module that raise an error which no row of a table provokes."""

    def find(module: ModuleType, rows: Iterable[Row]) -> list[int]:
        raises = {
            node.lineno: node.end_lineno or node.lineno
            for node in ast.walk(ast.parse(inspect.getsource(module)))
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        }
        for call, kind, _ in rows:
            with pytest.raises(kind) as caught:
                call()
            entry = caught.traceback[-1]
            if str(entry.path) == module.__file__:
                line = entry.lineno + 1
                raises = {first: last for first, last in raises.items() if not first <= line <= last}
        return sorted(raises)

    return find
