"""Beside PyTorch's threads, in DataLoader's workers, in several processes, and with numbers below the normal range."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import leanconv

torch = pytest.importorskip("torch")
nn = torch.nn
lt = pytest.importorskip("leanconv.torch")

from leanconv import team  # noqa: E402
from leanconv.torch.threads import num_threads  # noqa: E402 - needs PyTorch

threads = sys.modules["leanconv.threads"]  # the module; `leanconv.threads` is a function


class Images(torch.utils.data.Dataset):  # type: ignore[misc]
    """Each image is convolved where it is loaded."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = lt.Conv2d(3, 4, 3).eval().requires_grad_(False)
        self.images = torch.randn(6, 3, 12, 12)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.layer(self.images[index])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method: str) -> None:
    """Threads of the parent are running when it forks."""
    data = Images()
    with leanconv.threads(2):
        wanted = torch.stack([data[i] for i in range(len(data))])
        lt.conv2d(torch.randn(1, 16, 64, 64), torch.randn(16, 16, 3, 3))
    loader = torch.utils.data.DataLoader(data, batch_size=2, num_workers=1, multiprocessing_context=method)
    torch.testing.assert_close(torch.cat(list(loader)), wanted)


def test_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What leanconv was told wins; else PyTorch's number counts, and never more than leanconv's own default."""
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.setattr(threads, "default_num_threads", lambda: 2)
    monkeypatch.setattr("leanconv.torch.threads.default_num_threads", lambda: 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert num_threads() == 1
        torch.set_num_threads(3)
        assert num_threads() == 2
        leanconv.set_num_threads(4)
        assert num_threads() == 4
        with leanconv.threads(5):
            assert num_threads() == 5
    finally:
        torch.set_num_threads(before)


def test_shared_threads() -> None:
    """On PyTorch's own threads: the same bits, for several callers at once, and back again."""
    try:
        team.loaded_runtime(Path(torch.__file__).parent)
    except team.NoOpenMPError as error:
        pytest.skip(str(error))
    x, w = torch.randn(2, 16, 40, 40), torch.randn(24, 16, 3, 3)
    with leanconv.threads(3):
        wanted = lt.conv2d(x, w, padding=1)
    wrong: list[Any] = []

    def call() -> None:
        with leanconv.threads(3):
            for _ in range(20):
                result = lt.conv2d(x, w, padding=1)
                if not torch.equal(result, wanted):
                    wrong.append(result)

    lt.share_threads()
    try:
        assert isinstance(threads.pool(), team.TeamPool)
        call()
        callers = [threading.Thread(target=call) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(timeout=60)
            assert not caller.is_alive()
    finally:
        lt.share_threads(False)
    assert not isinstance(threads.pool(), team.TeamPool)
    call()
    assert not wrong
    with pytest.raises(leanconv.ArgumentTypeError, match="share=1"):
        lt.share_threads(1)


def test_denormals() -> None:
    """Gradual underflow by default; flushed to zero where asked for, in every thread, and the caller's mode is kept."""
    x = np.full((1, 4, 32, 32), 1e-39, np.float32)
    w = np.ones((4, 4, 1, 1), np.float32)
    exact = np.float32(1e-39).astype(np.float64) * 4
    try:
        for flush, wanted in ((False, exact), (True, 0.0), (False, exact)):
            leanconv.set_flush_denormals(flush)
            for count in (1, 2):
                result = leanconv.conv2d(x, w, algorithm="direct", threads=count).astype(np.float64)
                assert (np.abs(result - wanted) <= 2.0**-149).all()
                assert np.float32(1e-39) * np.float32(1) != 0  # this thread is as it was
            tensor = lt.conv2d(torch.from_numpy(x), torch.from_numpy(w), algorithm="direct", threads=2)
            assert np.array_equal(tensor.numpy(), result.astype(np.float32))
    finally:
        leanconv.set_flush_denormals(False)
    with pytest.raises(leanconv.ArgumentTypeError, match="flush="):
        leanconv.set_flush_denormals("yes")


def _train(rank: int, folder: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = nn.Sequential(lt.Conv2d(3, 4, 3, 2), nn.ReLU(), lt.Conv2d(4, 2, 3))
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    images = torch.randn(4, 3, 12, 12)[2 * rank : 2 * rank + 2]
    for _ in range(3):
        optimizer.zero_grad()
        parallel(images).square().mean().backward()
        optimizer.step()
    torch.save(model.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed(tmp_path: Path) -> None:
    """Two processes over gloo end with the same weights, which are those of one process with all images."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo")
    torch.multiprocessing.start_processes(_train, (str(tmp_path),), nprocs=2, start_method="spawn")
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    images = torch.randn(4, 3, 12, 12)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], value, rtol=1e-4, atol=1e-5)
