"""Results read back: what was written comes back, and anything else is refused by the field that is wrong."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import results
from leanconv.bench.load import ResultsError, load, parse
from leanconv.errors import LeanconvError

REPORT = results.results(("mec",), most=2, rounds=3)
CONTENT = json.loads(REPORT.json())


def changed(change):
    content = copy.deepcopy(CONTENT)
    change(content)
    return json.dumps(content)


def test_what_was_written_comes_back(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(REPORT.json(), encoding="utf-8")
    found = load(path)
    assert found.rows == REPORT.rows
    assert found.settings == REPORT.settings and found.bandwidth == REPORT.bandwidth
    assert found.json() == REPORT.json()


def test_infinite_errors_come_back():
    text = changed(lambda content: content["rows"][0].update(error="inf", status="wrong result"))
    assert parse(text, "r").rows[0].error == float("inf")


def test_files_of_earlier_and_later_versions():
    def strip(content):
        del content["bandwidth"]
        for row in content["rows"]:
            for name in ("kind", "version", "cold_seconds", "extra_peak_bytes", "undecided"):
                del row[name]
            row["of_a_later_version"] = {"x": 1}
        content["new"] = []

    found = parse(changed(strip), "r")
    assert found.bandwidth == [] and {row.kind for row in found.rows} == {"leanconv"}
    assert found.rows[0].seconds == REPORT.rows[0].seconds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r: is empty"),
        (REPORT.json()[:-400], "r: ends in the middle: it is cut off"),
        (REPORT.json()[: REPORT.json().index("Example") + 3], "r: ends in the middle: it is cut off"),
        ("name,N,C\n", "r: is no JSON (line 1"),
        ("[]", "r: holds no results of leanconv bench"),
        ('{"a": 1}', "r: holds no results of leanconv bench"),
        ('{"schema": NaN}', "r: is no JSON: NaN is no number"),
        ('{"schema": 2}', "r: schema: is 2, and this version reads 1"),
        ('{"schema": 1}', "r: command: is missing"),
        ("[" * 100_000, "r: is nested too deeply"),
        ('{"schema": ' + "1" * 5000 + "}", "r: holds a number of 5000 digits"),
    ],
)
def test_other_texts_are_refused(text, message):
    with pytest.raises(ResultsError) as caught:
        parse(text, "r")
    assert str(caught.value).startswith(message)
    assert isinstance(caught.value, LeanconvError)


def put(*path, value):
    def change(content):
        *front, last = path
        for key in front:
            content = content[key]
        if value is KeyError:
            del content[last]
        else:
            content[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("rows", 3, "layer", value=KeyError), "rows[3].layer: is missing"),
        (put("rows", 3, "layer", value="mec/cv99"), 'rows[3].layer: is "mec/cv99", and layers has none'),
        (put("rows", 3, "threads", value="1"), 'rows[3].threads: is "1", a whole number is expected'),
        (put("rows", 3, "threads", value=True), "rows[3].threads: is true, a whole number"),
        (put("rows", 3, "threads", value=0), "rows[3].threads: is 0, a number above 0"),
        (put("rows", 3, "status", value="fine"), 'rows[3].status: is "fine"; there are ok, '),
        (put("rows", 3, "seconds", value=None), "rows[3].seconds: is null, a number above 0"),
        (put("rows", 3, "seconds", value=-1.0), "rows[3].seconds: is -1.0, a number above 0"),
        (put("rows", 3, "workspace_bytes", value=-1), "rows[3].workspace_bytes: is -1, at least 0"),
        (put("rows", 3, "samples", 1, "seconds", value="inf"), "rows[3].samples[1].seconds: is Infinity"),
        (put("rows", 3, "samples", 1, "round", value=KeyError), "rows[3].samples[1].round: is missing"),
        (put("rows", 3, "samples", value={}), "rows[3].samples: is {}, a list"),
        (put("rows", 3, "samples", 0, value=7), "rows[3].samples[0]: is 7, an object"),
        (
            put("rows", 3, "algorithm", value="direct"),
            "rows[3]: has the layer, algorithm, layout and threads of rows[0]",
        ),
        (put("layers", 1, "name", value="mec/cv1"), 'layers[1].name: "mec/cv1" appears twice'),
        (put("layers", 1, "kernel", value=KeyError), "layers[1].kernel: is missing"),
        (put("layers", 1, "padding", value=[[0], [0]]), "layers[1].padding[0]: is [0], 2 numbers"),
        (put("layers", 1, "kernel", value=[400, 400]), "layers[1]: layer 'mec/cv2': "),
        (put("bandwidth", 0, "gb_per_s", value=0), "bandwidth[0].gb_per_s: is 0"),
        (put("settings", value={}), "settings.dtype: a text is expected"),
        (put("versions", "numpy", value=2), "versions.numpy: is 2, a text"),
        (put("command", value="x"), 'command: is "x", a list'),
    ],
)
def test_the_message_names_the_field(change, message):
    with pytest.raises(ResultsError) as caught:
        parse(changed(change), "r")
    assert str(caught.value).startswith(f"r: {message}")
    assert caught.value.where and caught.value.source == "r"


def nodes(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from nodes(item, (*path, key))


SMALL = copy.deepcopy(CONTENT)
SMALL["rows"] = SMALL["rows"][:2]
PATHS = [path for path in nodes(SMALL) if path]
VALUES = st.sampled_from([KeyError, None, True, -1, 0, 10**30, 1.5, "", "x", "nan", [], [[]], {}, {"a": []}, [1, 2, 3]])


@settings(max_examples=400)
@given(st.sampled_from(PATHS), VALUES)
def test_a_file_that_is_wrong_somewhere_is_read_or_refused(path, value):
    content = copy.deepcopy(SMALL)
    put(*path, value=value)(content)
    try:
        parse(json.dumps(content), "r")
    except ResultsError as error:
        assert str(error).startswith("r: ")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read"):
        load(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="cannot be read"):
        load(tmp_path / "binary.json")
