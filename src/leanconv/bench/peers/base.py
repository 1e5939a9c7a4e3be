"""What a peer's module provides."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leanconv.bench.layers import Layer

_LEAST_TURNS, _TURNS = 2, 10
_SHORTEST = 2e-3  # seconds of each turn
_LONGEST = 0.3  # seconds of all, but for the least turns


@dataclass(frozen=True)
class Arrays:
    """The arrays of a layer, dense.

    Attributes:
        x: the image in the peer's axis order, (N, C, *spatial) or (N, *spatial, C).
        w: the weights, (K, C/g, *kernel).
        bias: K numbers.
    """

    x: NDArray[np.float32]
    w: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclass(frozen=True)
class Loaded:
    """A layer that is ready to run.

    Attributes:
        call: computes the layer once and returns when the result is complete.
        result: turns what `call` returned into an array (N, K, *spatial).
        parameters: settings that were chosen for the layer, for people.
        input_bytes: of the library's own copy of the image. A program would write its image there in the first place,
            so this is no extra memory.
    """

    call: Callable[[], Any]
    result: Callable[[Any], NDArray[Any]]
    parameters: dict[str, Any] = field(default_factory=dict)
    input_bytes: int = 0


class Peer(ABC):
    """A library at its best setting: constant weights, packed beforehand, its preferred layout, float32."""

    def __init__(self, threads: int) -> None:
        """Import the library and give it so many threads; the environment says the same already."""
        self.threads = threads

    def refusal(self, layer: Layer) -> str | None:
        """Return why a layer cannot be computed, in a sentence, or None."""
        return None

    def model(self, layer: Layer, arrays: Arrays, folder: Path) -> Any:
        """Make what a user has on disk before the program starts; neither time nor memory of this is counted.

        Args:
            layer: the shape.
            arrays: its arrays.
            folder: an empty folder for files; deleted when the layer is done.
        """
        return None

    @abstractmethod
    def load(self, layer: Layer, arrays: Arrays, model: Any) -> Loaded:
        """Make a layer ready; `model` is what the method `model` returned. Time and memory are counted."""


def channels_first(array: NDArray[Any]) -> NDArray[Any]:
    """Return (N, *spatial, C) as (N, C, *spatial)."""
    return np.moveaxis(array, -1, 1)


def symmetric(layer: Layer) -> bool:
    """Tell whether both ends of every axis are padded alike."""
    return all(low == high for low, high in layer.padding)


def fastest(calls: Mapping[str, Callable[[], Any]]) -> str:
    """Return the name of the fastest call, found by taking turns; for settings that a user would try out once."""
    times = dict.fromkeys(calls, math.inf)
    for call in calls.values():
        call()
    start = time.perf_counter()
    for turn in range(_TURNS):
        if turn >= _LEAST_TURNS and time.perf_counter() - start > _LONGEST:
            break
        for name, call in calls.items():
            times[name] = min(times[name], _time(call))
    return min(times, key=times.__getitem__)


def _time(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    calls = 0
    while calls == 0 or time.perf_counter() - start < _SHORTEST:
        call()
        calls += 1
    return (time.perf_counter() - start) / calls


def as_image(layer: Layer) -> tuple[tuple[int, int], ...]:
    """Return the size, kernel, stride, pad before, pad after and dilation of a signal or image as two axes."""
    missing = 2 - layer.ndim
    low, high = ([pad[end] for pad in layer.padding] for end in (0, 1))

    def two(values: Any, default: int) -> tuple[int, int]:
        first, second = (default,) * missing + tuple(values)
        return first, second

    return (
        two(layer.in_size, 1),
        two(layer.kernel, 1),
        two(layer.stride, 1),
        two(low, 0),
        two(high, 0),
        two(layer.dilation, 1),
    )
