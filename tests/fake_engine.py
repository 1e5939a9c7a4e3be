"""An engine that computes with NumPy, for tests of the benchmark's own logic."""

import time
from dataclasses import dataclass

import numpy as np

from leanconv import oracle
from leanconv.errors import NotApplicableError
from leanconv.options import make_problem


@dataclass
class Info:
    name: str
    applies: bool = True
    reason: str | None = None


class FakePlan:
    parameters = {"tile": (4, 3)}  # noqa: RUF012

    def __init__(self, engine, problem, algorithm, threads):
        self.engine, self.problem, self.algorithm, self.threads = engine, problem, algorithm, threads
        self.workspace_bytes = {"direct": 0, "im2col": 7 << 20}.get(algorithm, 64)
        self.packed_weight_bytes = problem.w_bytes

    def bind(self, w, bias=None):
        if self.algorithm == "crash":
            raise ZeroDivisionError("nobody thought of this")

        # As `out` is reused, what is computed once is copied afterwards: tests stay quick.
        result = []

        def call(x, out=None):
            if not result:
                result.append(oracle.reference(self.problem, x, w, bias))
            self.engine.calls.append((self.algorithm, self.threads))
            time.sleep(self.engine.seconds.get(self.algorithm, 0.0))
            out[...] = result[0]
            if self.algorithm == "lazy":
                out[..., -1] = np.nan
            if self.algorithm == "wrong":
                out[..., 0] += 0.5
            return out

        return call


class FakeEngine:
    """`seconds`: algorithm -> time of a call; `refusals`: algorithm -> why it does not apply."""

    def __init__(self, seconds=None, refusals=None, peak=100.0):
        self.seconds = seconds or {"direct": 0.001, "im2col": 0.003}
        self.refusals = refusals or {}
        self.peak, self.calls = peak, []

    def plan(self, x_shape, w_shape, *, algorithm, threads, **options):
        problem = make_problem(len(x_shape) - 2, x_shape, w_shape, **options)
        if algorithm in self.refusals:
            raise NotApplicableError(algorithm, self.refusals[algorithm])
        return FakePlan(self, problem, "direct" if algorithm == "auto" else algorithm, threads)

    def algorithms(self, x_shape, w_shape, **options):
        make_problem(len(x_shape) - 2, x_shape, w_shape, **options)
        names = dict.fromkeys(["reference", *self.seconds, *self.refusals])
        return [Info(name, name not in self.refusals, self.refusals.get(name)) for name in names]

    def fma_peak(self, threads=1, dtype="float32", seconds=0.0):
        self.calls.append(("peak", threads))
        return self.peak * threads

    def memory_bandwidth(self, threads=1):
        return 20.0 * threads
