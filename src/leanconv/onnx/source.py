"""Where a model comes from: a file that was read before, or something to be parsed.

What parses and checks is imported when there is something to parse: it takes more memory than a small model.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from leanconv.errors import ModelError
from leanconv.onnx.constants import stamp_of
from leanconv.onnx.model import Model, check_memory
from leanconv.onnx.readings import keep, recall
from leanconv.onnx.wire import slim


def read(source: Any, folder: str | os.PathLike[str] | None = None) -> Model:
    """Read a model.

    Args:
        source: path of a file, its bytes, or an `onnx.ModelProto`.
        folder: where external data lies; the file's own folder if None.

    Raises:
        ArgumentTypeError: `source` is none of these.
        ModelError: the model is malformed.
        UnsupportedModelError: it holds what is not supported; says all of it.
        MissingPackageError: the package `onnx` is not installed.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source), folder)
    from leanconv.onnx.reader import parsed

    return parsed(source, None if folder is None else Path(folder))


def _read_file(path: Path, folder: str | os.PathLike[str] | None) -> Model:
    """The model in a file; its large tensors stay there."""
    try:
        with path.open("rb") as file:
            stamp = stamp_of(file)
            found = slim(file, stamp[0])
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    path = path.absolute()  # read again later, from whatever folder the process is in by then
    model = recall(found, path, stamp)
    if model is None:
        from leanconv.onnx.reader import parsed_file

        model = parsed_file(found, path, stamp, path.parent if folder is None else Path(folder))
        keep(model, found)
    check_memory(model.constants)
    return model
