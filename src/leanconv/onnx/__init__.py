"""ONNX models: `session = leanconv.onnx.load("model.onnx")`, then `session.run({"x": array})`.

`Backend` is the interface that ONNX's own tests use.  Files are read with the package `onnx`
(`pip install leanconv[onnx]`), which is imported when a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leanconv.network.interpreter import Timing
from leanconv.onnx.model import Port
from leanconv.onnx.session import Profile, Session, load

if TYPE_CHECKING:
    from leanconv.onnx.backend import Backend


def __getattr__(name: str) -> Any:
    """The backend derives from a class of the package onnx, and so is made when it is asked for."""
    if name == "Backend":
        from leanconv.onnx.backend import Backend

        return Backend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Backend", "Port", "Profile", "Session", "Timing", "load"]
