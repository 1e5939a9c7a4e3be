"""The package `onnx`, which reads the files; imported when it is needed, and only then."""

from __future__ import annotations

from typing import Any

from leanconv.errors import MissingPackageError


def onnx_package() -> Any:
    """Return the package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import onnx
        import onnx.checker
        import onnx.defs
        import onnx.inliner
    except ImportError as error:
        raise MissingPackageError("onnx", "ONNX models are read with it", "pip install leanconv[onnx]") from error
    return onnx
