"""`leanconv limits`: what layers take under memory limits, declared and as the system counts it, a process for each.

Each case runs in a process of its own: it plans, binds the weights and calls once, so that kernels are loaded and
threads started; gives all of that back; and then does it again while the system counts (VmHWM, see
`bench/process_memory.py`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from leanconv.bench.layers import Layer
from leanconv.errors import LeanconvError
from leanconv.planning.text import table_text
from leanconv.sizes import format_bytes

SLACK = 256 << 10
"""Bytes that the system may count beyond what is declared: it counts pages, and Python's own objects too."""
TIMEOUT = 600  # seconds of one case; kernels may have to be compiled


@dataclass(frozen=True, slots=True)
class Taken:
    """A layer under a limit.

    Attributes:
        layer: its name.
        limit: in bytes, or None.
        algorithm: what runs.
        threads: how many it uses at most.
        counted: bytes that count against the limit.
        declared: bytes of workspace and of the weights that a bound plan keeps, all it needs beyond its arrays: packed
            ones, or a copy of the plain ones if it packs none.
        measured: bytes by which the process grew at most; None where the system does not tell.
    """

    layer: str
    limit: int | None
    algorithm: str
    threads: int
    counted: int
    declared: int
    measured: int | None

    @property
    def kept(self) -> bool:
        """Whether the limit held, and nothing was taken that is not declared."""
        within = self.limit is None or self.counted <= self.limit
        return within and (self.measured is None or self.measured <= self.declared + SLACK)


def taken(layers: Iterable[Layer], limits: Sequence[int | None], layout: str, threads: int) -> Iterator[Taken]:
    """Run each layer under each limit.

    Raises:
        LeanconvError: a case could not run; the message is that of its process.
    """
    for layer in layers:
        for limit in limits:
            case = {
                "layer": layer.name,
                "limit": limit,
                "shapes": layer.shapes(layout),
                "options": {**layer.options(layout), "threads": threads},
            }
            done = subprocess.run(
                [sys.executable, "-m", "leanconv.planning.limits_measured"],
                input=json.dumps(case),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            if done.returncode:
                why = done.stderr.strip().splitlines()
                raise LeanconvError(f"{layer.name} under a limit of {limit} failed: {why[-1] if why else 'no message'}")
            yield Taken(**json.loads(done.stdout))


def taken_text(found: Sequence[Taken]) -> str:
    """A table, and how many cases kept to their bytes."""
    rows = [
        (
            entry.layer,
            "-" if entry.limit is None else f"{entry.limit:,}",
            entry.algorithm,
            str(entry.threads),
            f"{entry.counted:,}",
            f"{entry.declared:,}",
            "-" if entry.measured is None else f"{entry.measured:,}",
            "" if entry.kept else "MORE THAN DECLARED",
        )
        for entry in found
    ]
    titles = ("layer", "limit", "algorithm", "threads", "counted", "declared", "measured", "verdict")
    kept = sum(entry.kept for entry in found)
    known = [entry.measured - entry.declared for entry in found if entry.measured is not None]
    most = f"; measured is at most {format_bytes(max(0, *known))} above declared" if len(known) > 1 else ""
    return f"{table_text(titles, rows)}\n{kept} of {len(found)} keep to their limit and to what they declare{most}"


def _case(case: dict[str, Any]) -> Taken:
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
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape, dtype=np.float32) for shape in (x_shape, w_shape))
    bias = rng.standard_normal(w_shape[0], dtype=np.float32)
    limit = "unlimited" if case["limit"] is None else case["limit"]

    def ready() -> tuple[leanconv.Plan, Any]:
        plan = leanconv.plan(tuple(x_shape), tuple(w_shape), **options, bias=True, memory_limit=limit)
        return plan, plan.bind(w, bias)

    plan, bound = ready()
    out = empty(plan.problem.out_shape, "float32")
    out.fill(0)
    bound(x, out=out)
    del plan, bound
    trim_arenas()
    memory = PeakMemory()
    plan, bound = ready()
    bound(x, out=out)
    measured = memory.extra_bytes()
    kept = plan.packed_weight_bytes if plan.packing is not None else plan.problem.w_bytes
    declared = plan.workspace_bytes + kept
    return Taken(case["layer"], case["limit"], plan.algorithm, plan.threads, plan.extra_bytes, declared, measured)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


if __name__ == "__main__":
    json.dump(asdict(_case(json.load(sys.stdin))), sys.stdout)
