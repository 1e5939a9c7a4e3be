"""ONNX models: `session = leanconv.onnx.load("model.onnx")`, then `session.run({"x": array})`.

`Backend` is the interface that ONNX's own tests use.  Files are read with the package `onnx`
(`pip install leanconv[onnx]`), which is imported when a model is loaded.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leanconv.network.profile import Profile
    from leanconv.onnx.backend import Backend
    from leanconv.onnx.explain import ModelExplanation, explain_model
    from leanconv.onnx.model import Port
    from leanconv.onnx.session import Session, load

_PLACES = {
    "Backend": "leanconv.onnx.backend",
    "ModelExplanation": "leanconv.onnx.explain",
    "Port": "leanconv.onnx.model",
    "Profile": "leanconv.network.profile",
    "Session": "leanconv.onnx.session",
    "explain_model": "leanconv.onnx.explain",
    "load": "leanconv.onnx.session",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for: the command line names this package before it needs any of it."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = ["Backend", "ModelExplanation", "Port", "Profile", "Session", "explain_model", "load"]
