"""The process that runs the cases of `leanconv limits`: all is imported once, and each case has a child of its own.

It reads a case a line from its input, in JSON, and answers each with a line: what it takes, or {"error": text}. The
child inherits what is loaded and nothing else: kernels, threads, workspace and packed weights are its own, and it does
all once before, so that only what a plan and a call take is counted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

TIMEOUT = 600  # seconds of one case; kernels may have to be compiled


def serve() -> None:
    """Answer cases until the input ends; where there are no children, the one that comes first."""
    _import_all()
    for line in sys.stdin:
        forks = hasattr(os, "fork")
        print(_in_child(line) if forks else _answer(line), flush=True)
        if not forks:
            return


def _import_all() -> None:
    """What any case may need, but for LLVM: most kernels are found compiled."""
    import leanconv.bench.process_memory
    import leanconv.outputs
    import leanconv.planning.model  # noqa: F401
    from leanconv.algorithms import REGISTRY

    for _ in REGISTRY:  # an algorithm is imported when it is first asked for
        pass


def _in_child(line: str) -> str:
    """The answer of a child to one case."""
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(TIMEOUT)
            os.close(source)
            with os.fdopen(sink, "w", encoding="utf-8") as file:
                file.write(_answer(line))
        finally:
            os._exit(0)  # nothing of the parent's is flushed or closed twice
    os.close(sink)
    with os.fdopen(source, encoding="utf-8") as file:
        answer = file.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if answer:
        return answer
    why = f"it took more than {TIMEOUT} seconds" if status == -signal.SIGALRM else f"its process ended with {status}"
    return json.dumps({"error": why})


def _answer(line: str) -> str:
    try:
        return json.dumps(_case(json.loads(line)))
    except BaseException as error:  # whatever it is, the one who asked says it
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


def _case(case: dict[str, Any]) -> dict[str, Any]:
    """What one case takes, in this process."""
    import numpy as np

    import leanconv
    from leanconv.bench.process_memory import PeakMemory
    from leanconv.memory import trim_arenas
    from leanconv.outputs import empty

    x_shape, w_shape = case["shapes"]
    options: dict[str, Any] = {
        name: tuple(map(_tuple, value)) if isinstance(value, list) else value for name, value in case["options"].items()
    }
    x, w, bias = (np.ones(shape, np.float32) for shape in (x_shape, w_shape, w_shape[0]))
    limit = "unlimited" if case["limit"] is None else case["limit"]

    def ready() -> tuple[leanconv.Plan, Any]:
        plan = leanconv.plan(tuple(x_shape), tuple(w_shape), **options, bias=True, memory_limit=limit)
        return plan, plan.bind(w, bias)

    plan, bound = ready()
    out = empty(plan.problem.out_shape, "float32")
    out.fill(0)
    bound(x, out=out)
    found: list[int | None] = []
    # Twice, and the less: what a process takes once, to keep, is no part of a plan. On a few short layers planning,
    # before anything was packed or run, took 270 KiB so; what a plan itself takes is there both times.
    for _ in range(2):
        del plan, bound
        trim_arenas()
        memory = PeakMemory()
        plan, bound = ready()
        bound(x, out=out)
        found.append(memory.extra_bytes())
    known = [each for each in found if each is not None]
    kept = plan.packed_weight_bytes if plan.packing is not None else plan.problem.w_bytes
    return {
        "algorithm": plan.algorithm,
        "threads": plan.threads,
        "counted": plan.extra_bytes,
        "declared": plan.workspace_bytes + kept,
        "measured": min(known) if known else None,
    }


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    serve()
