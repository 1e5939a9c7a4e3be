"""The pictures in the docstrings of algorithms that stage a tensor: letter for letter what a call writes."""

from __future__ import annotations

import inspect
import re
import string

import numpy as np
import pytest

from leanconv.algorithms import REGISTRY
from strategies import Case, Geometry
from test_windows import staged

BY_NAME = {algorithm.name: algorithm for algorithm in REGISTRY}
DRAWN = {"im2row": "NHWC", "im2col": "NCHW", "mec": "NHWC", "mec_rows": "NHWC", "im2win": "NHWC"}
WINDOWS = Geometry((2, 2), (1, 1), (1, 1), ((0, 0), (0, 0)))


def drawn(name: str) -> list[str]:
    """The letters between the bars of a picture, in order."""
    module = inspect.getmodule(type(BY_NAME[name]))
    assert module is not None and module.__doc__
    return [letter for row in re.findall(r"\| ([a-l ]+) \|", module.__doc__) for letter in row.split()]


@pytest.mark.parametrize("name", DRAWN)
def test_pictures_are_what_is_staged(name: str) -> None:
    case = Case((1, 1, 3, 4), (3, 1, 2, 2), WINDOWS, layout=DRAWN[name])
    case.values["x"] = np.arange(12, dtype=np.float32).reshape(case.user_x_shape)
    (tensor,) = staged(case, name)
    assert drawn(name) == [string.ascii_lowercase[int(number)] for number in tensor]
