"""What a peer's process and its parent say to each other: pickled requests, and answers (status, value)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from leanconv.bench.layers import Layer
from leanconv.bench.peers.base import Arrays

# How an answer begins; its second part is the value, or a sentence that says why there is none.
OK, REFUSED, FAILED = "ok", "refused", "failed"

# A request without contents: drop the layer and its memory.
UNLOAD = "unload"


@dataclass(frozen=True)
class Load:
    """Make a layer ready; answered with `Ready`."""

    layer: Layer
    arrays: Arrays


@dataclass(frozen=True)
class Time:
    """Take a sample of so many calls; answered with the seconds of one."""

    calls: int


@dataclass(frozen=True)
class Ready:
    """A layer is ready.

    Attributes:
        prepare_seconds: to load the model and pack the weights.
        cold_seconds: the same and the first call.
        extra_peak_bytes: the most memory held meanwhile beyond one image, the weights and one output; None if unknown.
        parameters: settings that were chosen.
        result: of the second call, (N, K, *spatial): a peer that spoils its input is found out.
    """

    prepare_seconds: float
    cold_seconds: float
    extra_peak_bytes: int | None
    parameters: dict[str, Any]
    result: NDArray[Any]
