"""How far choices are from the best that was measured, by `leanconv bench` or by `choice_measured.py`."""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.classes import dataclass
from leanconv.errors import CacheError, LeanconvError
from leanconv.planning.candidates import Terms, candidates
from leanconv.problem import Problem

LARGE = 1_000_000  # operations of a layer above which no choice should be far off


@dataclass(frozen=True, slots=True)
class Missed:
    """One layer of a report: what is taken there, what was fastest, and the ratio of their times.

    Attributes:
        layer: name of the layer.
        layout: of its arrays.
        threads: most threads.
        limit: memory limit in bytes, or None.
        flops: operations of the definition.
        taken: algorithm, and its threads if they are not all: "mec on 1".
        fastest: likewise.
        ratio: of the measured times of the two, at least 1.
        predicted: predicted over measured time of what is taken; None if it was not predicted.
    """

    layer: str
    layout: str
    threads: int
    limit: int | None
    flops: int
    taken: str
    fastest: str
    ratio: float
    predicted: float | None


_Group = tuple[str, str, int, int | None]  # layer, layout, threads, limit
_Way = tuple[str, int]  # algorithm, threads that it uses


def compared(report: Mapping[str, Any], *, measured: bool = False) -> list[Missed]:
    """Compare choices with a report, the worst first; only algorithms that the report holds take part.

    Args:
        report: what `merged` returns.
        measured: whether to judge the choices by measurement that the report notes (which may be none), instead of
            those that the model makes now.

    Raises:
        CacheError: it is no report.
    """
    found: list[Missed] = []
    try:
        layers = {entry["name"]: _layer(entry) for entry in report["layers"]}
        noted = {_group(row): (row["algorithm"], row["used"]) for row in report["measured"]} if measured else {}
        groups: dict[_Group, dict[_Way, float]] = {}
        for row in report["rows"]:
            if row["seconds"] and row.get("kind", "leanconv") == "leanconv" and row["algorithm"] == row["ran"]:
                way = (row["algorithm"], row.get("used", row["threads"]))
                groups.setdefault(_group(row), {})[way] = row["seconds"]
        both = any("used" in row for row in report["rows"])
        for group, times in groups.items():
            name, layout, threads, limit = group
            if measured and group not in noted:
                continue
            problem = layers[name].problem(layout, report["settings"].get("dtype", "float32"), bias=True)
            if measured:
                taken, predicted = noted[group], None
            else:
                taken, predicted = _by_model(problem, list(times), threads, limit, both=both)
            if taken not in times:
                continue  # another version may use other numbers of threads
            best = min(times, key=times.__getitem__)
            found.append(
                Missed(
                    layer=name,
                    layout=layout,
                    threads=threads,
                    limit=limit,
                    flops=problem.flops,
                    taken=_text(taken, threads),
                    fastest=_text(best, threads),
                    ratio=times[taken] / times[best],
                    predicted=None if predicted is None else predicted / times[taken],
                )
            )
    except LeanconvError as error:
        raise CacheError(f"the report holds what this version does not know: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CacheError(f"this is no report of leanconv bench: {error!r}") from error
    return sorted(found, key=lambda entry: -entry.ratio)


def error_text(found: Sequence[Missed], most: int = 10) -> str:
    """Geometric means by layout, threads and limit, and the worst choices."""
    lines = []
    groups: dict[tuple[str, int, int], list[Missed]] = {}
    for entry in found:
        groups.setdefault((entry.layout, entry.threads, -1 if entry.limit is None else entry.limit), []).append(entry)
    for (layout, threads, limit), entries in sorted(groups.items()):
        ratios = [entry.ratio for entry in entries]
        large = [entry.ratio for entry in entries if entry.flops > LARGE]
        beyond = sum(ratio > 1.25 for ratio in large)
        text = (
            f"{layout}, {threads} threads{'' if limit < 0 else f', limit {limit:,} bytes'}: the choice takes "
            f"{statistics.geometric_mean(ratios):.3f} times the best of {len(ratios)} layers (geometric mean), "
            f"{max(ratios):.2f} at worst"
        )
        if large:
            text += f"; above 1 MFLOP {max(large):.2f} at worst, {beyond} of {len(large)} beyond 1.25"
        errors = sorted(abs(math.log(entry.predicted)) for entry in entries if entry.predicted)
        if errors:
            text += f"; times predicted within {math.exp(errors[len(errors) // 2]) - 1:.0%} on half of them"
        lines.append(text)
    worst = [entry for entry in sorted(found, key=lambda entry: -entry.ratio)[:most] if entry.ratio > 1]
    lines += [
        f"  {e.ratio:.2f}  {e.layer} {e.layout} {e.threads}{'' if e.limit is None else f' {e.limit:,} B'}: "
        f"{e.taken}, best {e.fastest}"
        for e in worst
    ]
    return "\n".join(lines)


def merged(reports: Iterable[Mapping[str, Any] | str | os.PathLike[str]]) -> dict[str, Any]:
    """Several reports as one, what a later one holds of the same layer, layout, threads and limit instead.

    Raises:
        CacheError: a file cannot be read or is no report, or element types differ.
    """
    whole: dict[str, Any] = {"settings": {}, "layers": [], "rows": [], "measured": []}
    for report in reports:
        where = "the report" if isinstance(report, Mapping) else os.fspath(report)
        try:
            data = report if isinstance(report, Mapping) else _read(report)
            settings = {"dtype": data["settings"]["dtype"]} if data["rows"] else whole["settings"]
            fresh = {_group(row) for row in data["rows"]}
            names = {entry["name"] for entry in data["layers"]}
            parts = {"layers": list(data["layers"]), "rows": list(data["rows"])}
            parts["measured"] = list(data.get("measured", ()))
        except OSError as error:
            raise CacheError(f"{where} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CacheError(f"{where} is no report of leanconv bench: {error!r}") from error
        if whole["settings"] not in ({}, settings):
            raise CacheError(f"{where} is about {settings['dtype']}, those before it about others")
        whole["settings"] = settings
        whole["layers"] = [entry for entry in whole["layers"] if entry["name"] not in names] + parts["layers"]
        for kind in ("rows", "measured"):
            whole[kind] = [row for row in whole[kind] if _group(row) not in fresh] + parts[kind]
    return whole


def _by_model(
    problem: Problem, ways: Sequence[_Way], threads: int, limit: int | None, *, both: bool
) -> tuple[_Way, float]:
    """What the model takes of some ways, and the seconds it predicts; on all threads unless `both` were measured."""
    names = list(dict.fromkeys(name for name, _ in ways))
    found = candidates(problem, names, Terms(threads, limit, keep_threads=not both))
    first = found[0]  # the fastest of those that keep to the limit, or what comes nearest
    return (first.name, first.threads), first.predicted_seconds


def _group(row: Mapping[str, Any]) -> _Group:
    return row["layer"], row["layout"], row["threads"], row.get("limit")


def _text(way: _Way, threads: int) -> str:
    return way[0] if way[1] == threads else f"{way[0]} on {way[1]}"


def _read(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    with open(path, encoding="utf-8") as file:
        found: Mapping[str, Any] = json.load(file)
    return found


def _layer(entry: Mapping[str, Any]) -> Layer:
    known = {name: entry[name] for name in Layer.__dataclass_fields__}
    return Layer(**{name: _tuples(value) for name, value in known.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
