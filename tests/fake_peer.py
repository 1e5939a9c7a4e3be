"""A peer that computes with NumPy, and can go wrong in every way; the name of the layer says how."""

import os
import signal
import time

import numpy as np

from leanconv import oracle
from leanconv.bench.peers.base import Loaded, Peer

if os.environ.get("FAKE_PEER") == "absent":
    raise ImportError("libfake.so is missing")


class Worker(Peer):
    def refusal(self, layer):
        return "the fake takes no such layer" if layer.name == "refused" else None

    def model(self, layer, arrays, folder):
        (folder / "model").write_bytes(b"weights")
        return folder / "model"

    def load(self, layer, arrays, model):
        assert model.read_bytes() == b"weights"
        if layer.name == "raises":
            raise ZeroDivisionError("nobody thought of this, " * 40)
        if layer.name == "hungry":
            self.kept = np.ones(40 << 20, np.uint8)
        result = oracle.reference(layer.problem("NHWC", bias=True), arrays.x, arrays.w, arrays.bias)
        result = np.moveaxis(result, -1, 1).astype(np.float32)
        calls = []

        def call():
            calls.append(1)
            time.sleep(0.002)
            if layer.name == "spoils":
                return result * len(calls)
            if len(calls) > 2:
                if layer.name == "crashes":
                    print("last words", flush=True)
                    os.kill(os.getpid(), signal.SIGSEGV)
                if layer.name == "leaves":
                    os._exit(3)
                if layer.name == "hangs":
                    time.sleep(3600)
            return result

        if layer.name == "shape":
            return Loaded(call, lambda y: y[..., 1:])
        parameters = {
            "threads": os.environ["OMP_NUM_THREADS"],
            "pid": os.getpid(),
            "folder": str(model.parent),
            "given": self.threads,
        }
        return Loaded(call, lambda y: y, parameters)
