"""The process of one peer: `python -m leanconv.bench.peers.worker MODULE THREADS FD FOLDER`.

It takes requests from a socket, one at a time, and answers each; between them it blocks and uses no CPU. The end
of the socket ends the process.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from leanconv.allocation import trim_heap
from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays, Peer
from leanconv.bench.peers.protocol import FAILED, OK, REFUSED, UNLOAD, Load, Ready, Time
from leanconv.bench.process_memory import PeakMemory
from leanconv.bench.sampling import sample, settle
from leanconv.errors import NotApplicableError

_PR_SET_PDEATHSIG = 1


class _Server:
    """Holds the layer that is loaded."""

    def __init__(self, peer: Peer, folder: Path) -> None:
        self._peer = peer
        self._call: Callable[[], Any] | None = None
        self._folder = folder  # the parent's, which deletes it if this process cannot

    def answer(self, request: object) -> tuple[str, Any]:
        """Return the answer to a request; exceptions become answers."""
        try:
            if isinstance(request, Load):
                return OK, self._load(request.layer, request.arrays)
            if isinstance(request, Time) and self._call is not None:
                return OK, sample(self._call, request.calls)
            if request == UNLOAD:
                self.unload()
                return OK, None
            return FAILED, f"a {type(request).__name__} is not understood now"
        except NotApplicableError as error:
            return REFUSED, error.reason
        except Exception as error:
            # Whatever a library raises is a row of the report.
            return FAILED, f"{type(error).__name__}: {error}"

    def unload(self) -> None:
        """Drop the layer and all its memory."""
        self._call = None
        shutil.rmtree(self._folder, ignore_errors=True)
        trim_heap()

    def _load(self, layer: Layer, arrays: Arrays) -> Ready:
        self.unload()
        reason = self._peer.refusal(layer)
        if reason:
            raise NotApplicableError("peer", reason)
        self._folder.mkdir()
        model = self._peer.model(layer, arrays, self._folder)
        settle()
        memory = PeakMemory()
        start = time.perf_counter()
        loaded = self._peer.load(layer, arrays, model)
        prepared = time.perf_counter()
        loaded.call()
        called = time.perf_counter()
        value = loaded.call()
        extra = memory.extra_bytes()
        result = np.array(loaded.result(value), dtype=np.float32)
        self._call = loaded.call
        settle()
        if extra is not None:
            extra = max(extra - result.nbytes - loaded.input_bytes, 0)
        return Ready(prepared - start, called - start, extra, loaded.parameters, result)


def _first_layer() -> Load:
    layer = Layer("first", 1, 16, (8, 8), 16, (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    x, w, bias = (np.ones(shape, np.float32) for shape in (layer.shapes("NCHW")[0], layer.shapes("NCHW")[1], (16,)))
    return Load(layer, Arrays(x, w, bias))


def _end_with_parent() -> None:
    """Have the system end this process when its parent has gone, also while it computes (Linux)."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(arguments: list[str]) -> None:
    """Serve until the parent closes the socket."""
    module, threads, descriptor, folder = arguments
    _end_with_parent()
    # An interrupt from the keyboard is the parent's to handle.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What libraries print must not mix with the parent's table.
    os.dup2(2, 1)
    connection = Connection(int(descriptor))
    try:
        peer: Peer = importlib.import_module(module).Worker(int(threads))
    except Exception as error:
        connection.send((FAILED, f"{type(error).__name__}: {error}"))
        return
    server = _Server(peer, Path(folder))
    # What a library sets up once, at its first layer, is not counted for whichever layer is first.
    server.answer(_first_layer())
    server.unload()
    # What is there now stays: collections at each layer need not look at all that a library has imported.
    gc.collect()
    gc.freeze()
    try:
        connection.send((OK, None))
        while True:
            connection.send(server.answer(connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        server.unload()


if __name__ == "__main__":
    main(sys.argv[1:])
