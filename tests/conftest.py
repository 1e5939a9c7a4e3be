"""What all tests share: compiled kernels go to a folder of this run, never to the user's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "engine",
    derandomize=True,  # the same cases at every run: a failure is never luck
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    if "LEANCONV_CACHE_DIR" in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="leanconv-tests-") as folder:
        os.environ["LEANCONV_CACHE_DIR"] = folder
        yield
        del os.environ["LEANCONV_CACHE_DIR"]
