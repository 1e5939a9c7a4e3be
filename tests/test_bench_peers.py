"""Peers: their processes, and what happens when one is missing, wrong, slow, crashes or never answers."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fake_engine import FakeEngine
from leanconv.bench import peers, run
from leanconv.bench.benchdnn import parse
from leanconv.bench.check import make_trial
from leanconv.bench.peers import PEERS, PeerError, PeerInfo, install, named
from leanconv.bench.peers.client import Client, Clients, environment
from leanconv.bench.settings import Settings
from leanconv.blas import NARROWING
from leanconv.errors import NotApplicableError

FAKE = PeerInfo("fake", "a fake", "numpy", ("numpy",), "NHWC", "fake_peer")
ABSENT = PeerInfo("absent", "not there", "leanconv-no-such-package", ("leanconv-no-such-package",), "NCHW", "none")
GOOD = parse("mb1ic4ih6oc6kh3ph1nsmall")
OTHER = replace(GOOD, name="other", in_size=(7, 5))


def layer(name):
    return replace(GOOD, name=name)


@pytest.fixture
def clients():
    """Processes with little patience, ended after the test."""
    made = Clients(timeout=20.0)
    yield made
    made.close()


@pytest.fixture
def fake_peers(monkeypatch):
    """Let a run know the fake and the absent peer only."""
    monkeypatch.setattr(run, "named", lambda words: named(words, (FAKE, ABSENT)))


def load(client, wanted=GOOD):
    return client.load(wanted, make_trial(wanted, "float32", 0))


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_nothing_keeps_libraries_from_instructions(monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    theirs = environment(2, os.environ)
    assert theirs["OPENBLAS_NUM_THREADS"] == "2" and theirs["PATH"] == os.environ["PATH"]
    assert not set(theirs) & set(NARROWING)
    run.run([], Settings(algorithms=("direct",)), engine=FakeEngine())
    assert not set(os.environ) & set(NARROWING)


# -- names --------------------------------------------------------------------------------------------------


def test_names():
    assert [info.name for info in named(["all"])] == [info.name for info in PEERS]
    assert [info.name for info in named(["ncnn", "torch", "ncnn"])] == ["ncnn", "torch"]
    assert named([]) == []
    with pytest.raises(PeerError, match="no peer is called 'pytorch'; did you mean torch"):
        named(["pytorch"])


def test_names_are_those_that_reports_are_read_by():
    assert {info.name for info in PEERS} == {
        *("torch", "torch_channels_last", "onednn", "torch_im2col", "onnxruntime", "openvino", "litert", "ncnn"),
        *("mnn", "jax", "scipy"),
    }


def test_requirements_are_those_of_the_extra():
    import tomllib

    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert {need for info in PEERS for need in info.requirements} == set(project["optional-dependencies"]["peers"])


# -- one process --------------------------------------------------------------------------------------------


def test_a_process_loads_layers_and_takes_samples(clients):
    client = clients.client(FAKE, 3)
    ready = load(client)
    assert ready.parameters["threads"] == "3" and ready.parameters["given"] == 3
    assert ready.parameters["pid"] != os.getpid()
    assert 0 <= ready.prepare_seconds < ready.cold_seconds
    assert make_trial(GOOD, "float32", 0).expected.error(ready.result) < 1e-6
    assert 0.002 <= client.sample(3) < 1.0
    again = load(clients.client(FAKE, 3), OTHER)
    assert again.parameters["pid"] == ready.parameters["pid"]
    assert Path(again.parameters["folder"]).is_dir()
    client.unload()
    assert not Path(again.parameters["folder"]).exists()
    with pytest.raises(PeerError, match="a Time is not understood now"):
        client.sample(1)


def test_closing_ends_the_process():
    with Client(FAKE, 1, 20.0) as client:
        pid = load(client).parameters["pid"]
        assert client.alive and is_running(pid)
    assert not client.alive and not is_running(pid)
    client.close()


def test_a_process_ends_when_its_parent_is_killed(tmp_path):
    program = """if True:
        import sys, time
        from test_bench_peers import FAKE, Client, load
        client = Client(FAKE, 1, 20.0)
        print(load(client).parameters["pid"], flush=True)
        time.sleep(60)
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    end = time.monotonic() + 20
    while is_running(pid) and time.monotonic() < end:
        time.sleep(0.02)
    assert not is_running(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is read from /proc")
def test_extra_memory_is_what_preparing_takes(clients):
    client = clients.client(FAKE, 1)
    small = load(client).extra_peak_bytes
    assert small is not None
    assert 36 << 20 < load(client, layer("hungry")).extra_peak_bytes - small < 44 << 20


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crashes", r"the process ended by signal SIGSEGV: last words"),
        ("leaves", r"the process ended with exit code 3"),
    ],
)
def test_a_process_that_dies_is_replaced(clients, name, message):
    client = clients.client(FAKE, 1)
    folder = Path(load(client, layer(name)).parameters["folder"])
    with pytest.raises(PeerError, match=message):
        client.sample(1)
    assert not client.alive
    with pytest.raises(PeerError, match=message):
        client.sample(1)
    assert folder.is_dir()
    assert load(clients.client(FAKE, 1)).result.shape == (1, 6, 6, 6)
    assert not folder.exists()


def test_a_process_that_does_not_answer_is_ended():
    with Client(FAKE, 1, 20.0) as client:
        pid = load(client, layer("hangs")).parameters["pid"]
        client._timeout = 0.2
        with pytest.raises(PeerError, match=r"no answer within 0\.2 s; the process was ended"):
            client.sample(1)
        assert not is_running(pid)


def test_exceptions_and_refusals_are_answers(clients):
    client = clients.client(FAKE, 1)
    with pytest.raises(NotApplicableError, match="the fake takes no such layer"):
        load(client, layer("refused"))
    with pytest.raises(PeerError, match=r"^ZeroDivisionError: nobody") as caught:
        load(client, layer("raises"))
    assert len(str(caught.value)) == 300
    assert load(client).result.shape == (1, 6, 6, 6)


def test_a_library_that_cannot_be_imported_is_tried_once(clients, monkeypatch):
    monkeypatch.setenv("FAKE_PEER", "absent")
    with pytest.raises(PeerError, match=r"ImportError: libfake\.so is missing"):
        clients.client(FAKE, 1)
    monkeypatch.delenv("FAKE_PEER")
    with pytest.raises(PeerError, match=r"libfake\.so is missing"):
        clients.client(FAKE, 1)
    assert clients.client(FAKE, 2).alive


# -- in a run -----------------------------------------------------------------------------------------------

QUICK = run.Settings(time=0.02, rounds=4, peers=("all",), algorithms=("direct",))


def measure(*layers, settings=QUICK, **options):
    result = run.run(list(layers), settings, engine=FakeEngine(), **options)
    return result, {(row.layer, row.algorithm): row for row in result.rows}


def test_peers_are_rows_beside_ours(fake_peers):
    result, rows = measure(GOOD)
    own, peer, absent = (rows["small", name] for name in ("direct", "fake", "absent"))
    assert own.kind == "leanconv" and peer.kind == absent.kind == "peer"
    assert peer.status == "ok" and peer.version and peer.layout == "NHWC"
    assert [sample.round for sample in peer.samples] == [sample.round for sample in own.samples] == [0, 1, 2, 3]
    assert 0.002 <= peer.seconds < 1 and peer.percent_of_peak > 0 and peer.error < 1e-6
    assert peer.cold_seconds >= 0.002 and peer.workspace_bytes == 0
    assert own.cold_seconds >= own.prepare_seconds > 0
    assert absent.status == "not applicable" and absent.seconds is None
    assert absent.reason == "not installed: pip install leanconv-no-such-package"
    assert not result.failures


def test_each_number_of_threads_has_its_process(fake_peers):
    result, _ = measure(GOOD, settings=replace(QUICK, threads=(1, 2), peers=("fake",)))
    found = [row.parameters for row in result.rows if row.kind == "peer"]
    assert [parameters["threads"] for parameters in found] == ["1", "2"]
    assert len({parameters["pid"] for parameters in found}) == 2
    assert not any(is_running(parameters["pid"]) for parameters in found)


def test_peers_that_go_wrong_are_rows_and_no_failures_of_ours(fake_peers):
    names = ("crashes", "raises", "refused", "shape", "spoils", "small")
    result, rows = measure(*map(layer, names), settings=replace(QUICK, peers=("fake",)))
    found = {name: (rows[name, "fake"].status, rows[name, "fake"].reason) for name in names}
    assert found["crashes"] == ("failed", "the process ended by signal SIGSEGV: last words")
    assert found["raises"][0] == "failed" and found["raises"][1].startswith("ZeroDivisionError")
    assert found["refused"] == ("not applicable", "the fake takes no such layer")
    assert found["shape"] == ("wrong result", "the result's shape is (1, 6, 6, 5), (1, 6, 6, 6) is right")
    assert found["spoils"][0] == "wrong result" and "largest error is" in found["spoils"][1]
    assert found["small"] == ("ok", "")
    assert all(rows[name, "direct"].status == "ok" for name in names)
    assert not result.failures


def test_other_element_types_are_refused(fake_peers):
    _, rows = measure(GOOD, settings=replace(QUICK, dtype="float64", peers=("fake",)))
    assert rows["small", "fake"].reason == "peers are measured in float32"
    assert rows["small", "direct"].status == "ok"


def test_an_interrupt_ends_all_processes(fake_peers):
    pids = []

    def progress(name, done, total):
        if name == "other":
            raise KeyboardInterrupt

    result, rows = measure(GOOD, OTHER, settings=replace(QUICK, peers=("fake",)), progress=progress)
    pids = [row.parameters["pid"] for row in rows.values() if row.kind == "peer"]
    assert result.interrupted and len(pids) == 1 and not is_running(pids[0])


def test_unknown_peers_stop_a_run_before_it_begins():
    with pytest.raises(PeerError, match="no peer is called 'tensorrt'"):
        measure(GOOD, settings=replace(QUICK, peers=("tensorrt",)))


# -- installing ---------------------------------------------------------------------------------------------


def test_what_to_install_follows_from_the_options():
    def names(*arguments):
        return [info.name for info in install.wanted(arguments)]

    assert names("mec", "--threads", "1") == []
    assert names("--peers", "jax,ncnn", "mec") == ["jax", "ncnn"]
    assert names("mec", "--peers=all") == [info.name for info in PEERS]
    assert names("--peers") == names("--peers", "nonsense") == []


def test_a_package_that_cannot_be_installed_keeps_no_other_out(monkeypatch, capsys):
    ran = []

    def pip(command, **options):
        ran.append(command[-1])
        return subprocess.CompletedProcess(command, int(command[-1] == "broken"))

    monkeypatch.setattr(install.subprocess, "run", pip)
    absent = [
        replace(ABSENT, requirements=("broken", "numpy", "fine")),
        replace(ABSENT, requirements=("fine", "other")),
        FAKE,
    ]
    assert install.install(absent) == ["broken"]
    assert ran == ["broken", "fine", "other"]  # each once, and not what is there
    assert "broken cannot be installed here" in capsys.readouterr().err


# -- the real ones, where they are installed ----------------------------------------------------------------

LAYERS = {
    "plain": parse("mb2ic8ih9iw7oc16kh3kw3ph1pw1nplain"),
    "strided": parse("mb1ic3ih15oc8kh5sh2ph2nstrided"),
    "grouped": parse("mb1g4ic16ih8oc16kh3ph1ngrouped"),
    "depthwise": parse("mb1g16ic16ih8oc16kh3sh2ph1ndepthwise"),
    "dilated": parse("mb1ic8ih12oc8kh3ph2dh1ndilated"),
    "pointwise": parse("mb1ic32ih7oc16kh1npointwise"),
    "ends": replace(parse("mb1ic8ih10oc8kh3sh2nends"), padding=((0, 1), (0, 1))),
    "causal": replace(parse("mb2ic8iw40oc8kw2dw3ncausal"), padding=((4, 0),)),
    "volume": parse("mb1ic4id5ih6iw7oc8kd3kh3kw3pd1ph1pw1nvolume"),
}


@pytest.mark.slow
@pytest.mark.parametrize("info", PEERS, ids=lambda info: info.name)
def test_installed_peers_compute_what_is_right(info):
    if info.missing:
        pytest.skip(f"not installed: {', '.join(info.missing)}")
    computed = []
    with Client(info, 1, 120.0) as client:
        for name, wanted in LAYERS.items():
            trial = make_trial(wanted, "float32", 1)
            try:
                ready = client.load(wanted, trial)
            except NotApplicableError as refusal:
                assert refusal.reason
                continue
            assert trial.expected.error(ready.result) < 1e-3, name
            assert client.sample(2) > 0
            computed.append(name)
    assert "plain" in computed or info.name == "scipy"


def test_every_module_of_a_peer_exists():
    folder = Path(peers.__file__).parent
    for info in PEERS:
        assert (folder / f"{info.module.rpartition('.')[2]}.py").is_file(), info.name
