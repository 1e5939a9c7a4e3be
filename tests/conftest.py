"""What all tests share: compiled kernels go to a folder of this run, never to the user's."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace

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


def pytest_configure(config: pytest.Config) -> None:
    wanted = config.getoption("--tiles")
    if wanted:
        from leanconv.codegen import jit
        from leanconv.codegen.targets import TARGETS

        host = jit.host_target()
        as_if = replace(
            TARGETS[wanted], name=f"{wanted}-tiles", triple=host.triple, cpu=host.cpu, features=host.features
        )
        jit.host_target = functools.cache(lambda: as_if)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    if "LEANCONV_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="leanconv-tests-") as folder:
        os.environ["LEANCONV_CACHE_DIR"] = folder
        yield
        del os.environ["LEANCONV_CACHE_DIR"]
