"""How far the model's choices are from the best that was measured: from a report of `leanconv bench`."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.errors import CacheError, LeanconvError
from leanconv.planning.candidates import candidates


@dataclass(frozen=True, slots=True)
class Missed:
    """One layer of a report: what the model takes there, what was fastest, and the ratio of their times."""

    layer: str
    layout: str
    threads: int
    taken: str
    fastest: str
    ratio: float


def model_error(path: str | os.PathLike[str]) -> list[Missed]:
    """Compare the model with a report, the worst choice first; only algorithms that the report holds take part.

    Raises:
        CacheError: the file cannot be read or is no report.
    """
    try:
        with open(path, encoding="utf-8") as file:
            report = json.load(file)
        layers = {entry["name"]: _layer(entry) for entry in report["layers"]}
        groups: dict[tuple[str, str, int], dict[str, float]] = {}
        for row in report["rows"]:
            if row["seconds"] and row.get("kind", "leanconv") == "leanconv" and row["algorithm"] == row["ran"]:
                key = (row["layer"], row["layout"], row["threads"])
                groups.setdefault(key, {})[row["algorithm"]] = row["seconds"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CacheError(f"{os.fspath(path)} is no report of leanconv bench: {error!r}") from error
    found = []
    for (name, layout, threads), times in groups.items():
        problem = layers[name].problem(layout, report["settings"]["dtype"], bias=True)
        try:
            taken = candidates(problem, list(times), threads, None, bound=True, keep_threads=True)[0].name
        except LeanconvError as error:
            raise CacheError(f"{os.fspath(path)} holds what this version does not know: {error}") from error
        best = min(times, key=times.__getitem__)
        found.append(Missed(name, layout, threads, taken, best, times[taken] / times[best]))
    return sorted(found, key=lambda entry: -entry.ratio)


def error_text(found: list[Missed], most: int = 10) -> str:
    """Geometric means by layout and threads, and the worst choices."""
    lines = []
    for layout, threads in sorted({(entry.layout, entry.threads) for entry in found}):
        ratios = [entry.ratio for entry in found if (entry.layout, entry.threads) == (layout, threads)]
        mean = statistics.geometric_mean(ratios)
        lines.append(
            f"{layout}, {threads} threads: the choice takes {mean:.3f} times the best of {len(ratios)} layers "
            f"(geometric mean), {max(ratios):.2f} at worst"
        )
    worst = [entry for entry in found[:most] if entry.ratio > 1]
    lines += [f"  {e.ratio:.2f}  {e.layer} {e.layout} {e.threads}: {e.taken}, best {e.fastest}" for e in worst]
    return "\n".join(lines)


def _layer(entry: Mapping[str, Any]) -> Layer:
    known = {name: entry[name] for name in Layer.__dataclass_fields__}
    return Layer(**{name: _tuples(value) for name, value in known.items()})


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
