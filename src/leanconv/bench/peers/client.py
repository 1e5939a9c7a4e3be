"""The parent's side of a peer's process: start it, ask it, and survive whatever it does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from leanconv.bench.check import Trial
from leanconv.bench.layers import Layer
from leanconv.bench.peers import PeerError, PeerInfo
from leanconv.bench.peers.base import Arrays
from leanconv.bench.peers.protocol import OK, REFUSED, UNLOAD, Load, Ready, Time
from leanconv.blas import unnarrowed
from leanconv.errors import NotApplicableError

_LONGEST = 300  # characters of what a peer printed or said that its row shows
_GRACE = 2.0  # seconds until a process that was asked to end is killed


class Client:
    """One process of one peer, with its own number of threads."""

    def __init__(self, info: PeerInfo, threads: int, timeout: float) -> None:
        """Start the process and wait until it has imported its library.

        Args:
            info: which peer.
            threads: what it may use; set in its environment before it starts.
            timeout: seconds until a process that does not answer is ended.

        Raises:
            PeerError: it did not come up.
        """
        self.info, self._timeout = info, timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed by `close`)
        self._folder = tempfile.TemporaryDirectory(prefix="leanconv-peer-")
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "leanconv.bench.peers.worker", info.module, str(threads)]
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno()), f"{self._folder.name}/layer"],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=self._errors,
                stderr=self._errors,
                env=environment(threads, os.environ),
                start_new_session=True,  # an interrupt from the keyboard reaches the parent only
            )
        self._connection = Connection(ours.detach())
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def load(self, layer: Layer, trial: Trial) -> Ready:
        """Make a layer ready in the process.

        Raises:
            NotApplicableError: the peer cannot compute it.
            PeerError: the peer failed, or its process did.
        """
        arrays = Arrays(trial.image(self.info.layout), trial.w, trial.bias)
        answer: Ready = self._ask(Load(layer, arrays))
        return answer

    def sample(self, calls: int) -> float:
        """Return the seconds of one of several calls; raises `PeerError`."""
        seconds: float = self._ask(Time(calls))
        return seconds

    def unload(self) -> None:
        """Drop the layer in the process; raises `PeerError`."""
        self._ask(UNLOAD)

    @property
    def alive(self) -> bool:
        """Whether it can be asked."""
        return not self._connection.closed and self._process.poll() is None

    def close(self) -> None:
        """End the process, by force if it does not listen. Doing so twice does no harm."""
        self.hang_up()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
        self._folder.cleanup()

    def hang_up(self) -> None:
        """Have the process end by itself, without waiting for it."""
        self._connection.close()

    def __enter__(self) -> Client:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _ask(self, request: object) -> Any:
        if not self.alive:
            raise PeerError(self._last_words())
        try:
            self._connection.send(request)
        except OSError:
            raise PeerError(self._last_words()) from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            if not self._connection.poll(self._timeout):
                self._process.kill()
                self._process.wait()
                raise PeerError(f"no answer within {self._timeout:g} s; the process was ended")
            status, value = self._connection.recv()
        except (EOFError, OSError):
            raise PeerError(self._last_words()) from None
        if status == OK:
            return value
        if status == REFUSED:
            raise NotApplicableError(self.info.name, value)
        raise PeerError(_one_line(value))

    def _last_words(self) -> str:
        """Return how the process ended, and the end of what it printed."""
        try:
            code = self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0)
        printed = " ".join(self._errors.read().decode(errors="replace").split())
        return f"the process ended {how}" + (f": {printed[-_LONGEST:]}" if printed else "")


class Clients:
    """The processes of a run, one a peer and number of threads, started when first needed and again if one died."""

    def __init__(self, timeout: float) -> None:
        """Start nothing yet; `timeout` is that of `Client`."""
        self._timeout = timeout
        self._clients: dict[tuple[str, int], Client] = {}
        self._broken: dict[tuple[str, int], str] = {}

    def client(self, info: PeerInfo, threads: int) -> Client:
        """Return a process that can be asked.

        Raises:
            NotApplicableError: the peer is not installed.
            PeerError: the process does not come up; it is not tried again.
        """
        if info.missing:
            raise NotApplicableError(info.name, f"not installed: pip install {' '.join(info.missing)}")
        key = info.name, threads
        if key in self._broken:
            raise PeerError(self._broken[key])
        found = self._clients.get(key)
        if found is not None and found.alive:
            return found
        if found is not None:
            found.close()
        try:
            self._clients[key] = Client(info, threads, self._timeout)
        except PeerError as error:
            self._broken[key] = str(error)
            raise
        return self._clients[key]

    def unload(self) -> None:
        """Drop the layer in every process that lives."""
        for client in self._clients.values():
            if client.alive:
                try:
                    client.unload()
                except PeerError:
                    client.close()  # it starts anew at the next layer

    def close(self) -> None:
        """End all processes."""
        for client in self._clients.values():
            client.hang_up()
        for client in self._clients.values():
            client.close()


def environment(threads: int, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a peer's process.

    The number of threads is named in every way that the libraries read before or while they are imported. The heap
    keeps what is freed: a library that returns a fresh array at each call gets the pages of the last one again,
    as every contestant writes to memory that is mapped already. Nothing keeps a library from instructions of the CPU.
    """
    names = ("OMP", "MKL", "OPENBLAS", "BLIS", "VECLIB_MAXIMUM", "NUMEXPR")
    return {
        **unnarrowed(inherited),
        **{f"{name}_NUM_THREADS": str(threads) for name in names},
        # XLA's pool has no other setting.
        "NPROC": str(threads),
        "PJRT_NPROC": str(threads),
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
        # What this process can import its children can, too.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else line[: _LONGEST - 3] + "..."
