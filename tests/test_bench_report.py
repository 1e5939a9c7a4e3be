"""`leanconv report`: what results come to, the page as text, Markdown, pictures, and the command."""

import base64
import hashlib
import io
import json
import math
import re
import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import results
from leanconv import cli
from leanconv.bench import markdown
from leanconv.bench.digest import EVERY, UNNAMED, digest, pareto
from leanconv.bench.page import SCRIPTS, embed, render
from leanconv.bench.report import Report, Row, Sample, undecided_words
from leanconv.bench.table import show

REPORT = results.results(("mec", "resnet18"), layouts=("NHWC", "NCHW"))
FOUND = digest(REPORT)


def score(found, label, threads=1, name=EVERY):
    (index,) = (i for i, contestant in enumerate(found.contestants) if contestant.label == label)
    return next(s for s in found.scores if (s.contestant, s.threads, s.set) == (index, threads, name))


# -- digest -------------------------------------------------------------------------------------------------


def test_contestants():
    labels = [contestant.label for contestant in FOUND.contestants]
    assert labels[0] == "direct NHWC" and "direct NCHW" in labels and "litert" in labels
    assert [contestant.peer for contestant in FOUND.contestants] == sorted(c.peer for c in FOUND.contestants)
    hues = {contestant.algorithm: contestant.hue for contestant in FOUND.contestants}
    assert sorted(hues.values()) == list(range(len(hues)))


def test_scores_follow_from_the_rows():
    found = score(FOUND, "mec NHWC", threads=2)
    rows = [row for row in REPORT.rows if (row.algorithm, row.layout, row.threads) == ("mec", "NHWC", 2)]
    best = {}
    for row in REPORT.rows:
        if row.threads == 2 and row.seconds:
            best[row.layer] = min(best.get(row.layer, math.inf), row.seconds)
    rough = statistics.geometric_mean([row.seconds / best[row.layer] for row in rows])
    assert found.relative == pytest.approx(rough, rel=0.02)  # the score pairs rounds, this does not
    repeats = {layer["name"]: layer["repeats"] for layer in REPORT.layers}
    assert found.total == pytest.approx(sum(row.seconds * repeats[row.layer] for row in rows))
    assert found.memory == max(row.workspace_bytes + row.packed_weight_bytes for row in rows)
    assert (found.layers, found.of) == (len(repeats), len(repeats))
    wins = [s.wins for s in FOUND.scores if s.threads == 2 and s.set == EVERY]
    assert sum(wins) == len(repeats)
    order = [(s.layers < s.of, s.relative) for s in FOUND.scores if s.threads == 1 and s.set == EVERY]
    assert order == sorted(order)


def test_a_contestant_that_misses_layers_has_no_total():
    found = score(FOUND, "kn2row_as NHWC")
    assert found.layers < found.of and found.total is None and found.relative > 1


def test_memory_of_other_libraries_is_what_was_measured():
    row = next(row for row in REPORT.rows if row.algorithm == "litert")
    index = [contestant.label for contestant in FOUND.contestants].index("litert")
    assert next(r for r in FOUND.results if r.contestant == index).memory == row.extra_peak_bytes
    for other in (other for other in REPORT.rows if other.kind == "peer"):
        assert other.workspace_bytes == 0  # what would be shown if it were taken for ours


def test_layers():
    layer = FOUND.layers[0]
    assert (layer.set, layer.short) == ("mec", "cv1")
    moved = 4 * (3 * 227 * 227 + 96 * 3 * 11 * 11 + 96 * 55 * 55)
    assert layer.bytes == moved and layer.intensity == pytest.approx(layer.flops / moved)
    assert FOUND.peaks[1] == pytest.approx(results.PEAK, rel=0.01)
    assert FOUND.bandwidths == {1: 20.0, 2: 24.0}


def test_pareto():
    assert pareto([(3, 1), (1, 3), (2, 2), (2, 1.5), (3, 2), (1, 4)]) == [(1, 3), (2, 1.5), (3, 1)]
    assert pareto([]) == []


# -- page ---------------------------------------------------------------------------------------------------


def embedded(page):
    return json.loads(re.search(r'<script type="application/json" id="results">(.*?)</script>', page, re.DOTALL)[1])


def test_the_page_needs_nothing_else():
    page = render(REPORT)
    assert re.findall(r"https?://[^\"']+", page) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"<(link|img|iframe|object|embed)\b|\bsrc=|@import|url\(|\bfetch\(|XMLHttpRequest", page)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    for name, element in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        content = re.search(element, page, re.DOTALL)[1]
        digest_of = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest_of}'" in policy
    assert policy.startswith("default-src 'none'")


def test_all_rows_are_in_the_page():
    content = embedded(render(REPORT))
    fields, rows = content["results"]["fields"], content["results"]["rows"]
    assert len(rows) == len(REPORT.rows)
    for row, values in zip(REPORT.rows, rows, strict=True):
        found = dict(zip(fields, values, strict=True))
        assert content["layers"][found["layer"]]["name"] == row.layer
        assert content["contestants"][found["contestant"]]["algorithm"] == row.algorithm
        assert found["status"] == row.status and found["reason"] == row.reason
        assert found["seconds"] == (pytest.approx(row.seconds, rel=1e-5) if row.seconds else None)


@given(st.text(st.characters(), max_size=20))
def test_any_text_can_be_embedded(text):
    found = embed([text, {text: None}])
    assert not re.search("[<>&\u2028\u2029]", found)
    found.encode()  # lone surrogates too
    assert json.loads(found)[0] == text


def test_names_cannot_leave_their_place():
    report = results.results(("mec",), most=1, threads=(1,))
    report.machine["cpu"] = "</title><script>alert(1)</script>"
    report.layers[0]["name"] = "</script><!--"
    for row in report.rows:
        row.layer = "</script><!--"
    page = render(report)
    assert page.count("<script>") == 1 and page.count("</script>") == 2 and "<!--" not in page
    assert "&lt;/title&gt;" in page
    assert embedded(page)["layers"][0]["name"] == "</script><!--"


def test_no_comment_or_tag_hides_in_the_scripts():
    # In a script element "<!--" would change how the rest is read, and "</script" would end it.
    script = re.search(r"<script>(.*?)</script>", render(REPORT), re.DOTALL)[1]
    assert "<!--" not in script and script.count('"use strict"') == 1
    assert len(SCRIPTS) == len(set(SCRIPTS))


# -- Markdown -----------------------------------------------------------------------------------------------


def test_markdown():
    text = markdown.tables(REPORT)
    lines = text.splitlines()
    assert lines[0].startswith(
        "23 layers, float32, Example CPU, measured FMA peak 100 GFLOP/s on 1 thread, 200 GFLOP/s"
    )
    assert lines[0].endswith("`leanconv bench mec resnet18 --peers all`.")
    tables = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(tables) == 4  # two numbers of threads, two tables each
    for table in tables:
        assert {line.count("|") for line in table} == {table[0].count("|")}
    best = score(FOUND, next(iter(FOUND.contestants)).label)
    assert any(line.startswith("| **") for line in tables[0]) and f"{best.relative:.2f}" in text
    assert "mec | resnet18" in tables[1][0]
    assert any("kn2row_as NHWC | " in line and "8 of 12" in line for line in tables[1])


def test_markdown_of_odd_names():
    report = results.results(("mec",), most=1, threads=(1,), peers=False)
    report.command = ["leanconv", "a`b", "``"]
    report.rows[0].algorithm = "a|b\n_c_ [d](e) <f>"
    text = markdown.tables(report)
    assert "a\\|b \\_c\\_ \\[d\\](e) \\<f\\>" in text
    assert "```leanconv 'a`b' '``'```" in text


def test_what_is_undecided_is_said():
    report = results.results(("mec",), most=2, threads=(1,), peers=False)
    timed = [row for row in report.rows if row.seconds]
    for row in timed:
        row.undecided = False
    assert "undecided" not in markdown.tables(report) and undecided_words(report) == ""
    timed[0].undecided = timed[3].undecided = True
    report.settings["precision"] = 0.08
    words = undecided_words(report)
    assert words.startswith(f"2 of {len(timed)} rows are undecided: the 95 % interval")
    assert "more than 8 % to a side" in words
    assert words in markdown.tables(report).splitlines()[0] and words in render(report)
    shown = io.StringIO()
    show(report, Console(file=shown, width=400))
    assert words in shown.getvalue() and shown.getvalue().count("? ") >= 2


def test_markdown_goes_between_the_marks(tmp_path):
    path = tmp_path / "README.md"
    assert markdown.insert("new\n", path) == "new\n"
    path.write_text(f"before\n{markdown.BEGIN}\nold\n{markdown.END}\nafter\n")
    once = markdown.insert("new\n", path)
    assert once == f"before\n{markdown.BEGIN}\n\nnew\n\n{markdown.END}\nafter\n"
    path.write_text(once)
    assert markdown.insert("new\n", path) == once
    for other in ("no marks", f"{markdown.END}{markdown.BEGIN}", f"{markdown.BEGIN}{markdown.END}{markdown.END}"):
        path.write_text(other)
        with pytest.raises(Exception, match="is not replaced"):
            markdown.insert("new\n", path)


# -- pictures -----------------------------------------------------------------------------------------------


def test_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from leanconv.bench.figures import draw

    report = results.results(("mec",), most=2, rounds=2)
    report.layers[0]["name"] = "../$x$/a"
    for row in report.rows:
        row.layer = row.layer.replace("mec/cv1", "../$x$/a")
    paths = draw(report, tmp_path / "new")
    assert sorted(path.name for path in paths) == sorted(path.name for path in (tmp_path / "new").iterdir())
    assert {path.name for path in paths} >= {
        "roofline-1-thread.png",
        "bars-2-threads.png",
        "time-memory-set-1-thread.png",
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_bars_of_some_layers_do_not_set_the_scale():
    pytest.importorskip("matplotlib")
    from leanconv.bench.digest import digest
    from leanconv.bench.figures import _bars

    def bars(**factors):
        found = digest(results.results(("mec",), rounds=2, threads=(1,), factors=factors))
        (axes,) = _bars(found, 1).axes
        widths = [bar.get_width() for bar in axes.patches]
        return widths, [text.get_text() for text in axes.texts].count("//")

    usual, _ = bars()
    strided, broken = bars(kn2row_as=1000.0)  # not of the layers with a stride
    assert broken == 1 and max(strided) == pytest.approx(max(usual), rel=0.1)
    whole, broken = bars(direct=1000.0)
    assert broken == 0 and max(whole) > 100 * max(usual)


# -- command ------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(results.results(("mec",), most=2, rounds=2, threads=(1,)).json(), encoding="utf-8")
    return path


def test_command_writes_beside_the_results(source, capsys):
    assert cli.main(["report", str(source)]) == 0
    page = source.with_suffix(".html")
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert capsys.readouterr().out == f"wrote {page}\n"


def test_command_writes_what_it_is_asked_for(source, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["-o", tmp_path / "a.html", "--png", tmp_path / "png", "--markdown", tmp_path / "a.md"]
    assert cli.main(["report", str(source), *map(str, words)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + len(list((tmp_path / "png").iterdir()))
    assert (tmp_path / "a.md").read_text().count("| direct |") + (tmp_path / "a.md").read_text().count(
        "**direct**"
    ) == 1
    assert not source.with_suffix(".html").exists()


def test_markdown_on_standard_output(source, capsys, tmp_path):
    assert cli.main(["report", str(source), "--markdown", "-", "-o", str(tmp_path / "a.html")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("2 layers, float32") and captured.err.startswith("wrote ")


def test_command_refuses(source, capsys, tmp_path, monkeypatch):
    (tmp_path / "text.md").write_text("no marks")
    (tmp_path / "none.json").write_text(results.results(("mec",), most=0).json())
    for words, message in (
        (["none.json"], "none.json: cannot be read"),
        ([str(tmp_path / "none.json")], "rows: none was timed"),
        ([str(source), "-o", str(source)], "holds the results and is not overwritten"),
        ([str(source), "-o", str(tmp_path)], "is a folder"),
        ([str(source), "-o", str(tmp_path / "a" / "b.html")], "there is no folder"),
        ([str(source), "--markdown", str(tmp_path / "text.md")], "is not replaced"),
    ):
        assert cli.main(["report", *words]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("leanconv report: ") and message in captured.err and captured.out == ""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert cli.main(["report", str(source), "--png", str(tmp_path / "png")]) == 2
    assert "pip install leanconv[plot]" in capsys.readouterr().err
    assert not (tmp_path / "png").exists() and source.read_text().startswith("{")


def test_a_file_that_cannot_be_written(source, capsys, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    assert cli.main(["report", str(source), "--png", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("leanconv report: ")


def test_layers_without_a_network_and_rows_without_a_contestant():
    report = results.results(("mb1ic4ih6oc6kh3ph1nsmall",), threads=(1,), peers=False)
    report.rows.append(Row("small", "all", "NCHW", 1, "not applicable", "no algorithm applies"))
    found = digest(report)
    assert found.sets == [UNNAMED] and "all" not in [c.algorithm for c in found.contestants]
    assert embedded(render(report))["sets"] == [UNNAMED]


def test_times_that_were_taken_once():
    report: Report = results.results(("mec",), most=1, threads=(1,), rounds=1)
    assert all(isinstance(sample, Sample) for row in report.rows for sample in row.samples)
    assert {result.spread for result in digest(report).results} == {None}
