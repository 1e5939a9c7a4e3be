"""Element-wise operators with attributes, as formulas."""

from __future__ import annotations

import numpy as np
import pytest

from networks import Builder
from test_network_steps import compare


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_functions_with_numbers(dtype: str) -> None:
    b = Builder(dtype=dtype)
    x = b.add("Mul", b.input(3, 5, 7, 3), b.constant(np.array(3, dtype)))
    ends = [
        b.add("Gelu", x, approximate="tanh", version=20),
        b.add("Swish", x, alpha=1.7, version=24),
        b.add("Celu", x, alpha=0.6),
        b.add("ThresholdedRelu", x, alpha=0.4),
        b.add("Shrink", x, lambd=1.25, bias=0.5),
    ]
    compare(b, *ends, tolerance=3e-6 if dtype == "float32" else 1e-13)
