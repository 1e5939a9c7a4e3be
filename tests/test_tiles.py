"""Kernels generated for the registers of other CPUs, run on this one: LLVM cuts their vectors to what there is.

It shows that tiles, tails and masks of those targets compute what they should; tests/test_assembly.py reads their real
instructions. `pytest --tiles avx512` runs any test so.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TESTS = "test_random_convolutions"
# Rows, register transposes, tables of addresses, unrolled transforms.
ALGORITHMS = ("depthwise", "direct_band", "direct_blocks", "winograd_f2_on_the_fly")


@pytest.mark.parametrize("target", ["avx512", "neon"])
def test_algorithms_with_the_tiles_of_another_target(target: str) -> None:
    here = os.path.dirname(__file__)
    wanted = [f"test_algorithms.py::{TESTS}[{name}]" for name in ALGORITHMS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tiles", target, *wanted]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert f"{len(ALGORITHMS)} passed" in done.stdout
