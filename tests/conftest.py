"""What all tests share: compiled kernels go to one folder of this run, never to the user's.

All processes of a run share it, so that a kernel that several tests need is compiled once.
"""

from __future__ import annotations

import functools
import os
import tempfile
from dataclasses import asdict, replace

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "engine",
    derandomize=True,  # the same cases at every run: a failure is never luck
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--tiles",
        choices=("avx2", "avx512", "neon"),
        help="generate kernels for the lanes and registers of this instruction set, in instructions of this CPU",
    )


def _remember_figures() -> None:
    """What the planner prefers depends on no measurement: of this machine, or of how busy it is."""
    from leanconv.planning.figures import _TIMES, reference
    from leanconv.planning.records import machine_key, records

    record = {"kind": "figures", "figures": asdict(reference()), "times": _TIMES, "at": 0.0}
    records().put(machine_key("figures"), record)


def pytest_configure(config: pytest.Config) -> None:
    first = "LEANCONV_CACHE_DIR" not in os.environ
    if first:  # it is in the workers', who get it from the process that starts them
        folder = tempfile.TemporaryDirectory(prefix="leanconv-tests-")
        os.environ["LEANCONV_CACHE_DIR"] = folder.name
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("LEANCONV_CACHE_DIR", None))
    wanted = config.getoption("--tiles")
    if wanted:
        from leanconv.codegen import jit
        from leanconv.codegen.targets import TARGETS

        host = jit.host_target()
        as_if = replace(
            TARGETS[wanted], name=f"{wanted}-tiles", triple=host.triple, cpu=host.cpu, features=host.features
        )
        jit.host_target = functools.cache(lambda: as_if)
    if first:
        _remember_figures()
