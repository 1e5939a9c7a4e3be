"""Results that `leanconv bench --json` wrote, read back and checked.

The fields and their types are those of `Report`, `Row` and `Sample`: what these classes gain is read without a
change here. Fields with a default may be missing, as they are in files of earlier versions, and fields that
are not known are left out, as later versions may have them.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from leanconv.bench.layers import Layer
from leanconv.bench.report import FAILED, NOT_APPLICABLE, OK, SCHEMA, WRONG, Report, Row
from leanconv.errors import LeanconvError

T = TypeVar("T")

_STATUSES = (OK, NOT_APPLICABLE, WRONG, FAILED)
_SHOWN = 60
_LONGEST_NUMBER = 64  # digits; no field needs more, and Python refuses thousands of them


class ResultsError(LeanconvError, ValueError):
    """A file of results cannot be read or breaks a rule.

    Attributes:
        source: the file.
        where: the field, such as `rows[3].seconds`; empty if it is the file as a whole.
        rule: what is required, or what went wrong.
    """

    def __init__(self, source: str, where: str, rule: str) -> None:
        """Keep the three parts; the message is `source: where: rule`."""
        super().__init__(source, where, rule)
        self.source, self.where, self.rule = source, where, rule

    def __str__(self) -> str:
        """Return the message on one line."""
        return ": ".join(part for part in (self.source, self.where, self.rule) if part)


def load(path: Path) -> Report:
    """Return the report that a file holds.

    Args:
        path: a file that `leanconv bench --json` wrote.

    Raises:
        ResultsError: the file cannot be read, is no such file, or is cut off; the message names the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ResultsError(str(path), "", f"cannot be read: {error}") from error
    return parse(text, str(path))


def parse(text: str, source: str) -> Report:
    """Return the report that a JSON text holds; `source` is what errors call it.

    Raises:
        ResultsError: the text is no report.
    """
    reader = _Reader(source)
    content = reader.json(text)
    if content["schema"] != SCHEMA:
        rule = f"is {_show(content['schema'])}, and this version reads {SCHEMA}"
        raise ResultsError(source, "schema", rule)
    report = reader.build(Report, content, "")
    reader.check(report)
    return report


class _Reader:
    """Builds dataclasses from JSON values; `source` is named in errors."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, where: str, rule: str) -> typing.NoReturn:
        raise ResultsError(self.source, where, rule)

    def json(self, text: str) -> dict[str, Any]:
        """Return the object of the text, which has a "schema"."""
        if not text.strip():
            self.fail("", "is empty")
        try:
            content = json.loads(text, parse_constant=self._refuse_constant, parse_int=self._whole_number)
        except json.JSONDecodeError as error:
            # Cut in a text, or so near the end that what is wrong is the rest of a word, such as "nul".
            near = error.pos >= len(text.rstrip()) - len("-Infinity")
            cut = text.lstrip().startswith("{") and (near or error.msg.startswith("Unterminated string"))
            problem = "ends in the middle: it is cut off" if cut else "is no JSON"
            self.fail("", f"{problem} (line {error.lineno}, column {error.colno}: {error.msg})")
        except RecursionError:
            self.fail("", "is nested too deeply for a file of results")
        if not isinstance(content, dict) or "schema" not in content:
            self.fail("", "holds no results of leanconv bench: an object with a schema is expected")
        return content

    def _refuse_constant(self, name: str) -> typing.NoReturn:
        self.fail("", f"is no JSON: {name} is no number of JSON")

    def _whole_number(self, digits: str) -> int:
        if len(digits) > _LONGEST_NUMBER:
            self.fail("", f"holds a number of {len(digits)} digits")
        return int(digits)

    def build(self, kind: type[T], value: Any, where: str) -> T:
        """Return an instance of a dataclass, built from an object."""
        if not isinstance(value, dict):
            self.fail(where, f"is {_show(value)}, an object is expected")
        prefix = f"{where}." if where else ""
        arguments = {}
        for name, hint, needed in _fields(typing.cast(Hashable, kind)):
            if name in value:
                arguments[name] = self.convert(hint, value[name], f"{prefix}{name}")
            elif needed:
                self.fail(f"{prefix}{name}", "is missing")
        return kind(**arguments)

    def convert(self, hint: Any, value: Any, where: str) -> Any:
        """Return a value of the type that a field is annotated with."""
        origin, parts = typing.get_origin(hint), typing.get_args(hint)
        if hint is Any:
            return value
        if origin is types.UnionType:
            if value is None and type(None) in parts:
                return None
            return self.convert(next(part for part in parts if part is not type(None)), value, where)
        if origin is list:
            if not isinstance(value, list):
                self.fail(where, f"is {_show(value)}, a list is expected")
            return [self.convert(parts[0], item, f"{where}[{index}]") for index, item in enumerate(value)]
        if origin is tuple:  # of one type: (int, ...), or (int, int) for the two ends of a pad
            items = self.convert(list[parts[0]], value, where)  # type: ignore[valid-type]
            if parts[-1] is not Ellipsis and len(items) != len(parts):
                self.fail(where, f"is {_show(value)}, {len(parts)} numbers are expected")
            return tuple(items)
        if origin is dict:
            if not isinstance(value, dict):
                self.fail(where, f"is {_show(value)}, an object is expected")
            return {key: self.convert(parts[1], item, f"{where}.{key}") for key, item in value.items()}
        if dataclasses.is_dataclass(hint):
            return self.build(typing.cast(type[Any], hint), value, where)
        if hint is float:
            return self._float(value, where)
        names = {bool: "true or false", int: "a whole number", str: "a text"}
        if type(value) is not hint:  # bool is an int to isinstance
            self.fail(where, f"is {_show(value)}, {names[hint]} is expected")
        return value

    def _float(self, value: Any, where: str) -> float:
        if value in ("inf", "-inf", "nan"):  # as `Report.json` writes what JSON has no numbers for
            return float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self.fail(where, f"is {_show(value)}, a number is expected")
        return float(value)

    def check(self, report: Report) -> None:
        """Check what types do not say."""
        names: set[str] = set()
        for index, layer in enumerate(report.layers):
            where = f"layers[{index}]"
            shape = self.build(Layer, layer, where)
            if shape.name in names:
                self.fail(f"{where}.name", f"{_show(shape.name)} appears twice: its rows cannot be told apart")
            names.add(shape.name)
            self._positive(shape.repeats, f"{where}.repeats")
            try:
                shape.problem()
            except LeanconvError as error:
                self.fail(where, str(error))
        for index, entry in enumerate(report.bandwidth):
            for key in ("threads", "gb_per_s"):
                self._positive(entry.get(key), f"bandwidth[{index}].{key}")
        if not isinstance(report.settings.get("dtype"), str):
            self.fail("settings.dtype", "a text is expected")
        seen: dict[tuple[str, str, str, int], int] = {}
        for index, row in enumerate(report.rows):
            where = f"rows[{index}]"
            if row.layer not in names:
                self.fail(f"{where}.layer", f"is {_show(row.layer)}, and layers has none of this name")
            earlier = seen.setdefault((row.layer, row.algorithm, row.layout, row.threads), index)
            if earlier != index:
                self.fail(where, f"has the layer, algorithm, layout and threads of rows[{earlier}]")
            self._check_row(row, where)

    def _check_row(self, row: Row, where: str) -> None:
        if row.status not in _STATUSES:
            self.fail(f"{where}.status", f"is {_show(row.status)}; there are {', '.join(_STATUSES)}")
        self._positive(row.threads, f"{where}.threads")
        for name in ("workspace_bytes", "packed_weight_bytes", "extra_peak_bytes", "flops", "calls"):
            number = getattr(row, name)
            if number is not None and number < 0:
                self.fail(f"{where}.{name}", f"is {number}, at least 0 is expected")
        for index, sample in enumerate(row.samples):
            self._positive(sample.seconds, f"{where}.samples[{index}].seconds")
            self._positive(sample.peak_gflops, f"{where}.samples[{index}].peak_gflops")
        if row.status == OK:
            for name in ("seconds", "gflops", "peak_gflops", "percent_of_peak"):
                self._positive(getattr(row, name), f"{where}.{name}")

    def _positive(self, value: Any, where: str) -> None:
        number = not isinstance(value, bool) and isinstance(value, (int, float))
        if not (number and 0 < value < math.inf):
            self.fail(where, f"is {_show(value)}, a number above 0 is expected")


@functools.cache
def _fields(kind: Hashable) -> list[tuple[str, Any, bool]]:
    """Return name, type and whether it must be given, of each field."""
    return list(_described(typing.cast(type[Any], kind)))


def _described(kind: type[Any]) -> Iterator[tuple[str, Any, bool]]:
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        absent = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        yield field.name, hints[field.name], absent


def _show(value: Any) -> str:
    """Return a short JSON text of a value."""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
