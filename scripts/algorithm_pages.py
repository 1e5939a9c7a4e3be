"""Write docs/algorithms: a page for each algorithm from its docstring, its facts and measured figures, and a table.

python scripts/algorithm_pages.py                    write the pages again
python scripts/algorithm_pages.py results.json       take new figures first, from `leanconv bench --json`
"""

from __future__ import annotations

import inspect
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

from leanconv.algorithms import REGISTRY
from leanconv.algorithms.base import Algorithm
from leanconv.sizes import format_bytes

FOLDER = Path(__file__).parent.parent / "docs" / "algorithms"
FIGURES = "figures.json"
PARTS = ("Idea", "Workspace", "Weights", "Good for", "Bad for")


def sections(docstring: str) -> tuple[str, dict[str, str], str]:
    """Split an algorithm's docstring: its first sentence, the table below it, and the rest."""
    title, _, body = inspect.cleandoc(docstring).partition("\n\n")
    table: dict[str, str] = {}
    block, _, rest = body.partition("\n\n")
    part = ""
    for line in block.splitlines():
        found = next((name for name in PARTS if line.startswith(name + " ")), None)
        if found:
            part, line = found, line[len(found) :]
        elif not part or not line.startswith("  "):
            return " ".join(title.split()), {}, body
        table[part] = f"{table.get(part, '')} {line.strip()}".strip()
    return " ".join(title.split()), table, rest


def page(algorithm: Algorithm, figures: dict[str, Any]) -> str:
    """The page of one algorithm."""
    module = inspect.getmodule(type(algorithm))
    assert module is not None
    title, table, rest = sections(module.__doc__ or "")
    lines = [f"# {algorithm.name}", "", f"{algorithm.title[0].upper()}{algorithm.title[1:]}.", "", title, ""]
    if table:
        lines += ["| | |", "|---|---|", *(f"| **{part}** | {_cell(text)} |" for part, text in table.items()), ""]
    lines += [_markdown(rest), ""] if rest else []
    lines += [f"**Paper**: {algorithm.paper}.", ""]
    bound = f"{algorithm.error_class}; largest error stated per problem by `error_bound`"
    lines += [f"**Rounding**: {bound}.", ""]
    if algorithm.tunables:
        lines += ["**Settings** (`parameters=`):", ""]
        lines += [f"- `{name}`: {meaning}" for name, meaning in algorithm.tunables.items()] + [""]
    lines += [f"**Code**: `{'/'.join(module.__name__.split('.'))}.py`.", ""]
    rows = [row for row in figures.get("rows", []) if row["algorithm"] == algorithm.name]
    if rows:
        lines += ["## Measured", "", _how(figures), ""]
        lines += [
            "| layer | layout | time | of the FMA peak | workspace | packed weights |",
            "|---|---|--:|--:|--:|--:|",
        ]
        for row in rows:
            lines.append(
                f"| {row['layer']} | {row['layout']} | {1e3 * row['seconds']:.3g} ms | {row['percent']:.0f} % "
                f"| {format_bytes(row['workspace'])} | {format_bytes(row['packed'])} |"
            )
        lines.append("")
    return "\n".join(lines)


def index(figures: dict[str, Any]) -> str:
    """The table of all algorithms."""
    lines = [
        "# The algorithms",
        "",
        "Written by `scripts/algorithm_pages.py` from the docstrings in",
        "`src/leanconv/algorithms/`. ",
    ]
    lines[-1] += "Which of them apply to a layer, and why not: `leanconv.algorithms(x_shape, w_shape)`."
    lines += ["", "| algorithm | what it does | workspace | of the FMA peak, geometric mean |", "|---|---|---|--:|"]
    for algorithm in REGISTRY:
        module = inspect.getmodule(type(algorithm))
        assert module is not None
        _, table, _ = sections(module.__doc__ or "")
        parts = [row["percent"] for row in figures.get("rows", []) if row["algorithm"] == algorithm.name]
        mean = math.exp(sum(map(math.log, parts)) / len(parts)) if parts else None
        cells = [f"[{algorithm.name}]({algorithm.name}.md)", _cell(algorithm.title), _cell(table.get("Workspace", ""))]
        lines.append(f"| {' | '.join(cells)} | {f'{mean:.0f} % of {len(parts)} layers' if mean else ''} |")
    if figures.get("rows"):
        lines += ["", _how(figures)]
    return "\n".join(lines) + "\n"


def trimmed(report: dict[str, Any]) -> dict[str, Any]:
    """What the pages show of a benchmark's results."""
    rows = [
        {
            "layer": row["layer"],
            "algorithm": row["algorithm"],
            "layout": row["layout"],
            "seconds": float(f"{row['seconds']:.4g}"),
            "percent": round(row["percent_of_peak"], 1),
            "workspace": row["workspace_bytes"],
            "packed": row["packed_weight_bytes"],
        }
        for row in report["rows"]
        if row["status"] == "ok" and row.get("kind", "leanconv") == "leanconv"
    ]
    threads = report["settings"]["threads"]
    cpu = report["machine"].get("cpu", "")
    return {
        "command": "leanconv " + " ".join(_words(report["command"])),
        "cpu": str(cpu),
        "threads": threads,
        "rows": rows,
    }


def write(figures: dict[str, Any], folder: Path) -> None:
    """Write all pages."""
    for old in folder.glob("*.md"):
        old.unlink()
    for algorithm in REGISTRY:
        (folder / f"{algorithm.name}.md").write_text(page(algorithm, figures), encoding="utf-8")
    (folder / "README.md").write_text(index(figures), encoding="utf-8")


def _words(command: list[str]) -> list[str]:
    """The command's words, without where results went."""
    words, skip = [], False
    for word in command[1:] if command and command[0].endswith("leanconv") else command:
        if skip or word == "--json":
            skip = not skip
            continue
        words.append(word)
    return words


def _how(figures: dict[str, Any]) -> str:
    threads = ", ".join(map(str, figures["threads"]))
    return f"`{figures['command']}` on {figures['cpu'] or 'the machine of the day'}, threads: {threads}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _markdown(text: str) -> str:
    """Indented blocks are pictures: as code."""
    return re.sub(r"(?m)((?:^ {4}.*\n?)+)", lambda m: "```\n" + inspect.cleandoc("\n" + m[1]) + "\n```\n", text)


def main() -> None:
    """Take figures if there are new ones, and write."""
    store = FOLDER / FIGURES
    if len(sys.argv) > 1:
        figures = trimmed(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
        store.write_text(json.dumps(figures, indent=0) + "\n", encoding="utf-8")
    write(json.loads(store.read_text(encoding="utf-8")) if store.exists() else {}, FOLDER)


if __name__ == "__main__":
    main()
