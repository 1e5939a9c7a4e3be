"""The demo's text detector: its page, what it calls a difference, and, where its packages are, all of it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
EXAMPLES = str(Path(__file__).resolve().parent.parent / "examples")
sys.path.insert(0, EXAMPLES)
import text_detector  # noqa: E402
import text_page  # noqa: E402

sys.path.remove(EXAMPLES)
from rich.console import Console  # noqa: E402

import leanconv  # noqa: E402

BOX = np.array([[[1, 2], [9, 2], [9, 5], [1, 5]]], np.float32)


def results(change: float = 0.0, boxes: np.ndarray = BOX) -> dict[str, text_detector.Result]:
    output = np.full((1, 1, 4, 6), 0.5, np.float32)
    return {"one": text_detector.Result(output, BOX), "two": text_detector.Result(output + np.float32(change), boxes)}


def rows(print_to: Callable[..., object], *given: object) -> list[list[str]]:
    """The cells of the rows that are printed."""
    written = io.StringIO()
    print_to(*given, Console(file=written, width=80))
    lines = [line for line in written.getvalue().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_the_page_is_the_same_every_time_and_has_ink() -> None:
    page = text_page.text_page()
    assert page.shape == (text_page.HEIGHT, text_page.WIDTH, 3) and page.dtype == np.uint8
    np.testing.assert_array_equal(page, text_page.text_page())
    title = page[46:100, 60:420].min(axis=2)
    assert 0.05 < (title < 100).mean() < 0.5
    assert (page[:40].min(axis=2) > 180).all()  # the margin


@pytest.mark.parametrize(
    "found, said",
    [
        (results(), {}),
        (results(5e-5), {}),
        (results(1e-3), {"two": "outputs differ from one's by 1.0e-03"}),
        (results(np.nan), {"two": "outputs differ from one's by nan"}),
        (results(boxes=BOX + 1), {"two": "boxes differ from one's"}),
        (results(boxes=BOX[:0]), {"two": "boxes differ from one's"}),
    ],
)
def test_differences_are_said(found: dict[str, text_detector.Result], said: dict[str, str]) -> None:
    assert text_detector.differences(found) == said


def test_another_shape_is_a_difference() -> None:
    found = results()
    found["two"].output = found["two"].output[..., :3]
    assert text_detector.differences(found) == {"two": "outputs (1, 1, 4, 3), one (1, 1, 4, 6)"}


def test_the_table_shows_what_was_measured() -> None:
    found = results(5e-5)
    found["one"].seconds, found["two"].seconds = [0.010, 0.012, 0.011], [0.020, 0.020, 0.020]
    found["one"].known, found["one"].run_rise = 2**20, 3 << 19
    assert rows(text_detector.show, found) == [
        ["time, median of 3 calls in turns", "11.0 ms", "20.0 ms"],
        ["its spread (interquartile range)", "9.1%", "0.0%"],
        ["memory of a run, known before it", "1.0 MiB", "-"],
        ["measured: rise in the first run", "1.5 MiB", "-"],
        ["measured: rise in loading and the first run", "-", "-"],
        ["boxes", "1", "1"],
        ["largest difference of outputs", "", "5.0e-05"],
    ]


def test_boxes_are_drawn(tmp_path: Path) -> None:
    page, likely = np.full((40, 60, 3), 255, np.uint8), np.zeros((40, 60), np.float32)
    pictures = {}
    for name, boxes in (("with", BOX), ("without", BOX[:0])):
        text_page.draw_boxes(page, likely, {"one": boxes, "two": boxes}, tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as picture:
            pictures[name] = np.asarray(picture.convert("RGB")).astype(int)
    blue = {name: ((p[..., 2] > 150) & (p[..., 0] < 50)).sum() for name, p in pictures.items()}
    assert blue["with"] > 100 > blue["without"] == 0


def test_what_cannot_be_imported_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_detector, "PACKAGES", ("numpy", "no_such_package_1", "no_such_package_2"))
    sentence = text_detector.missing()
    assert sentence is not None and "no_such_package_1" in sentence and "no_such_package_2" in sentence


@pytest.mark.filterwarnings("default")  # those of other packages
def test_the_engines_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the packages of the demo: ./scripts/demo installs them")
    pytest.importorskip("rapidocr_onnxruntime", reason="needs the packages of the demo: ./scripts/demo installs them")
    monkeypatch.setattr(text_detector, "ROUNDS", 1)
    found = {}
    shown = rows(lambda console: found.update(result=text_detector.detect(tmp_path, 2, "40MiB", console)))
    picture, wrong = found["result"]
    assert wrong == [] and picture.exists()
    boxes = next(cells[1:] for cells in shown if cells[0] == "boxes")
    assert boxes[0] == boxes[1] and int(boxes[0]) >= 12  # lines of the page
    with pytest.raises(leanconv.MemoryLimitError):
        text_detector.detect(tmp_path, 2, "8MiB", Console(file=io.StringIO()))
