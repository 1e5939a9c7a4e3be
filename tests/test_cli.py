"""The command line: what it prints, what it refuses, and its exit codes."""

import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

import leanconv
from fake_engine import FakeEngine
from leanconv import cli, doctor
from leanconv.bench import run

SOURCES = str(Path(leanconv.__file__).parents[1])
SMALL = "mb1ic4ih6oc6kh3ph1nsmall"


@pytest.fixture
def engine(monkeypatch):
    """Measure an engine made of NumPy instead of leanconv."""
    fake = FakeEngine()
    monkeypatch.setattr(run, "default_engine", lambda: fake)
    return fake


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


def outcome(capsys, *arguments):
    """Return exit code, standard output and standard error."""
    try:
        code = cli.main(arguments)
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


# -- help and version ---------------------------------------------------------------------------------------


def test_help_imports_nothing_heavy():
    # The package's own __init__ is left out: what it imports is not the command line's business.
    program = """if True:
        import sys, types
        package = types.ModuleType("leanconv")
        package.__path__ = [sys.argv[1] + "/leanconv"]
        package.__version__ = "0"
        sys.modules["leanconv"] = package
        from leanconv import cli
        for words in (["--help"], ["bench", "--help"], ["--version"], ["bench", "--rounds", "x"]):
            try:
                cli.main(words)
            except SystemExit:
                pass
        print("HEAVY", sorted({"numpy", "llvmlite", "rich", "matplotlib"} & set(sys.modules)))
    """
    done = subprocess.run([sys.executable, "-c", program, SOURCES], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_help_explains_layers_and_exit_codes(capsys):
    code, out, _ = outcome(capsys, "bench", "--help")
    assert code == 0 and "a oneDNN string" in out and "exit codes:" in out
    assert max(map(len, out.splitlines())) <= 100


def test_version(capsys):
    assert outcome(capsys, "--version") == (0, f"leanconv {doctor.package_version()}\n", "")


def test_as_a_module():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([SOURCES, os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "leanconv", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.startswith("leanconv ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND"),
        (["cook"], "invalid choice: 'cook'"),
        (["cache"], "ACTION"),
        (["bench", "x", "--layout", "NHWC,HWCN"], "'HWCN' is no layout; there are NHWC, NCHW, CHWN and CHWN8"),
        (["bench", "x", "--threads", "1,0"], "'0' must be a whole number of at least 1"),
        (["bench", "x", "--batch", "1,two"], "'two' must be a whole number of at least 1"),
        (["bench", "x", "--time", "-1"], "'-1' must be a number of seconds above 0"),
        (["bench", "x", "--time", "nan"], "'nan' must be a number of seconds above 0"),
        (["bench", "x", "--algorithms", "direct,"], "'direct,' must be names joined by commas"),
        (["bench", "x", "--dtype", "int8"], "invalid choice: 'int8'"),
    ],
)
def test_usage_errors(capsys, arguments, message):
    code, out, err = outcome(capsys, *arguments)
    assert code == 2 and out == "" and message in err


# -- bench --------------------------------------------------------------------------------------------------


def test_bench_prints_a_table(capsys, engine):
    code, out, err = outcome(capsys, "bench", SMALL, "--time", "0.01", "--rounds", "3")
    assert code == 0 and err == ""
    assert re.search(r"^small +direct \* +1\.\d+ ms", out, re.MULTILINE)
    assert "im2col" in out and "reference" not in out


def test_bench_options_reach_the_measurement(capsys, engine, tmp_path):
    path = tmp_path / "results.json"
    options = "--algorithms direct --layout NCHW,NHWC --threads 1,2 --batch 3 --dtype float64"
    options += " --time 0.01 --rounds 2 --passes 2"
    code, _, _ = outcome(capsys, "bench", SMALL, *options.split(), "--json", str(path))
    content = json.loads(path.read_text())
    assert code == 0
    assert content["settings"] == {
        "algorithms": ["direct"],
        "layouts": ["NCHW", "NHWC"],
        "threads": [1, 2],
        "dtype": "float64",
        "time": 0.01,
        "rounds": 2,
        "passes": 2,
        "every": 0.0,
        "longest": 0.02,
        "precision": 0.08,
        "peers": [],
        "peer_timeout": 120.0,
        "bandwidth": True,
        "seed": 0,
    }
    assert content["command"][:3] == ["leanconv", "bench", SMALL]
    assert content["layers"][0]["batch"] == 3
    assert len(content["rows"]) == 4


def test_bench_json_on_standard_output(capsys, engine):
    code, out, err = outcome(capsys, "bench", SMALL, "--time", "0.01", "--rounds", "2", "--json", "-")
    assert code == 0 and json.loads(out)["rows"] and "direct *" in err


def test_bench_progress_is_shown_on_a_terminal_only(capsys, engine, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    code, _, err = outcome(capsys, "bench", SMALL, "--time", "0.01", "--rounds", "2")
    assert code == 0 and "small, pass 1" in err and "0/5" in err and "small, pass 5" in err


def test_bench_plot(capsys, engine, tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    code, _, _ = outcome(
        capsys, "bench", SMALL, "--time", "0.01", "--rounds", "2", "--passes", "1", "--plot", str(path)
    )
    assert code == 0 and path.stat().st_size > 1000


def test_bench_filter_and_networks(capsys, engine):
    arguments = ["--net", "mec", "--filter", "cv1[12]$", "--time", "0.002", "--rounds", "1", "--passes", "1"]
    code, out, _ = outcome(capsys, "bench", *arguments)
    assert code == 0 and re.search("^cv11 ", out, re.MULTILINE) and re.search("^cv12 ", out, re.MULTILINE)
    assert "cv10" not in out


def test_bench_reports_failures_by_its_exit_code(capsys, engine):
    engine.seconds = {"direct": 0, "wrong": 0}
    code, out, _ = outcome(capsys, "bench", SMALL, "--time", "0.01", "--rounds", "2")
    assert code == 1 and "wrong result: largest error" in out


def test_bench_interrupted(capsys, engine):
    def interrupt(**_):
        raise KeyboardInterrupt

    engine.fma_peak = interrupt
    code, out, _ = outcome(capsys, "bench", SMALL)
    assert code == 130 and "Interrupted" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "leanconv bench --list shows what is built in"),
        (["resnet52"], "'resnet52' is no file, no network"),
        (["--net", "mec/cv1"], "no network is called 'mec/cv1'"),
        (["none.csv"], "none.csv: cannot be read"),
        (["mb1ic3ih8oc4"], "'kh' is missing"),
        (["mec", "--filter", "("], "'(' is no regular expression"),
        (["mec", "--filter", "zzz"], "none of the 12 layers has a name that matches 'zzz'"),
        (["mec", "--algorithms", "direkt"], "no algorithm is called 'direkt'; did you mean direct"),
        (["mec", "--json", "no/such/folder.json"], "there is no folder no/such"),
        (["mec", "--plot", "plot.txt"], "must end in .png"),
    ],
)
def test_bench_refuses_before_it_measures(capsys, engine, arguments, message):
    code, out, err = outcome(capsys, "bench", *arguments)
    assert code == 2 and out == "" and message in err and err.startswith("leanconv bench: ")
    assert engine.calls == []


def test_bench_plot_without_matplotlib(capsys, engine, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = outcome(capsys, "bench", "mec", "--plot", "plot.png")
    assert code == 2 and "pip install leanconv[plot]" in err and engine.calls == []


def test_bench_lists_networks_and_layers(capsys):
    code, out, _ = outcome(capsys, "bench", "--list")
    assert code == 0 and re.search(r"resnet50 +53 +23 +8\.17 ", out)
    code, out, _ = outcome(capsys, "bench", "resnet18", "--filter", "layer4", "--list")
    assert code == 0 and len(out.splitlines()) == 3
    assert re.search(r"resnet18/layer4_3x3 +1x512x7x7 > 512 k3x3 s1 p1 +231\.2 MFLOP  3 times", out)


# -- doctor -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def diagnosis():
    """One real examination, which takes some seconds, for all tests of how it is shown."""
    return doctor.examine(bandwidth=True)


def test_doctor_examines_what_auto_may_take(diagnosis):
    assert diagnosis.peak_gflops[1] > 0 and diagnosis.machine["target"]
    done, of = map(int, re.search(r"Self-test: (\d+) of (\d+) results agree", diagnosis.notes[-1]).groups())
    assert done == of > 20
    assert not [problem for problem in diagnosis.problems if "Self-test" in problem or "failed" in problem]


def test_doctor(capsys, monkeypatch, diagnosis):
    asked = {}
    monkeypatch.setattr(doctor, "examine", lambda **options: asked.update(options) or diagnosis)
    code, out, _ = outcome(capsys, "doctor", "--every")
    assert asked == {"bandwidth": False, "every": True}
    for word in ("cpu", "target", "caches", "threads", "peak", "cache", "versions"):
        assert re.search(rf"^{word} ", out, re.MULTILINE), word
    assert code == (1 if "\nproblem " in out else 0)


def test_doctor_json(capsys, monkeypatch, diagnosis):
    monkeypatch.setattr(doctor, "examine", lambda **_: diagnosis)
    _, out, _ = outcome(capsys, "doctor", "--json", "--bandwidth")
    content = json.loads(out)
    assert content["peak_gflops"]["1"] > 0 and content["copy_gb_per_s"] > 0
    assert content["versions"]["python"] and isinstance(content["problems"], list)


def test_doctor_survives_what_is_broken(capsys, monkeypatch):
    def broken():
        raise OSError("no /proc here")

    monkeypatch.setattr(doctor, "machine_facts", broken)
    monkeypatch.setattr(doctor, "_peak", lambda found: None)
    monkeypatch.setattr(doctor, "_self_test", lambda found, every: None)
    code, out, _ = outcome(capsys, "doctor")
    assert code == 1 and "Looking at the machine failed: OSError: no /proc here" in out


def test_doctor_finds_too_many_threads(monkeypatch):
    monkeypatch.setenv("LEANCONV_NUM_THREADS", "4096")
    found = doctor.Diagnosis()
    doctor._threads(found)
    assert "LEANCONV_NUM_THREADS=4096" in found.problems[0]
    assert found.threads["environment"]["LEANCONV_NUM_THREADS"] == "4096"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="needs POSIX permissions")
def test_doctor_finds_an_unsafe_or_unusable_cache(monkeypatch, tmp_path):
    from leanconv import cache

    def problems(folder, mode="rw"):
        info = types.SimpleNamespace(directory=folder, mode=mode, entries=0, bytes=0, max_bytes=1)
        monkeypatch.setattr(cache, "ObjectCache", lambda: types.SimpleNamespace(info=lambda: info))
        found = doctor.Diagnosis()
        doctor._cache(found)
        return found

    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert "others may write to it" in problems(shared).problems[0]
    shared.chmod(0o700)
    assert problems(shared).problems == []
    file = tmp_path / "file"
    file.write_text("")
    assert "is not a folder" in problems(file / "cache").problems[0]
    assert "The cache is off" in problems(file / "cache", "off").notes[0]


# -- cache --------------------------------------------------------------------------------------------------


def test_cache(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("LEANCONV_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.delenv("LEANCONV_CACHE", raising=False)
    from leanconv.cache import ObjectCache, make_key

    ObjectCache().put(make_key({"a": "b"}), b"x" * 2000, {})
    code, out, _ = outcome(capsys, "cache", "path")
    assert code == 0 and out.strip().startswith(str(tmp_path / "kernels"))
    code, out, _ = outcome(capsys, "cache", "info")
    assert code == 0 and re.search(r"^kernels +1$", out, re.MULTILINE) and "mode       rw" in out
    code, out, _ = outcome(capsys, "cache", "info", "--json")
    assert code == 0 and json.loads(out)["entries"] == 1
    code, out, _ = outcome(capsys, "cache", "clear")
    assert code == 0 and out.startswith("deleted 1 kernels from ")
    assert ObjectCache().info().entries == 0
    monkeypatch.setenv("LEANCONV_CACHE", "ro")
    code, _, err = outcome(capsys, "cache", "clear")
    assert code == 1 and "is read only" in err
    monkeypatch.setenv("LEANCONV_CACHE", "maybe")
    code, _, err = outcome(capsys, "cache", "info")
    assert code == 1 and "must be off, ro or rw" in err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no device that is always full")
def test_output_that_no_disk_takes():
    command = [sys.executable, "-m", "leanconv", "cache", "path"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCES}
        )
    assert (done.returncode, done.stderr) == (1, "leanconv: the output cannot be written: No space left on device\n")
