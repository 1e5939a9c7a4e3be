"""From ONNX's tensors to arrays, with every size checked before memory is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from leanconv.arrays import Array
from leanconv.classes import dataclass
from leanconv.errors import ModelError
from leanconv.network.operators.creation import ELEMENT_TYPES
from leanconv.onnx.constants import Stamp, Stored, stamp_of

# Fields of TensorProto that hold elements of these types when raw_data does not.
_FIELDS = {
    "float32": "float_data",
    "float64": "double_data",
    "int64": "int64_data",
    "uint32": "uint64_data",
    "uint64": "uint64_data",
}
_MOST_AXES = 32
_EXTERNAL = 1  # TensorProto.DataLocation


def tensor_shape(tensor: Any) -> tuple[int, ...]:
    """Shape of a TensorProto.

    Raises:
        ModelError: negative extents, or too many axes.
    """
    shape = tuple(int(extent) for extent in tensor.dims)
    if len(shape) > _MOST_AXES or any(extent < 0 for extent in shape):
        raise ModelError(f"tensor {tensor.name!r} has the shape {shape[:_MOST_AXES]}")
    return shape


def element_type(tensor: Any) -> str | None:
    """NumPy's name of the element type of a TensorProto; None if it is not supported."""
    return ELEMENT_TYPES.get(tensor.data_type)


@dataclass(frozen=True, slots=True)
class Place:
    """Where the raw data of a tensor lies: in the model's file, at an offset, so many bytes."""

    path: Path
    offset: int
    length: int
    stamp: Stamp


def constant_of(tensor: Any, folder: Path | None, place: Place | None = None) -> Array | Stored:
    """A TensorProto: its elements, or where they are if they lie in a file.

    Args:
        tensor: of an element type that is supported.
        folder: where the files of external data lie; None if there is none.
        place: of its raw data, if that was left in the model's file.

    Raises:
        ModelError: sizes do not match, or the file of external data is not there or not allowed.
    """
    shape, name = tensor_shape(tensor), element_type(tensor)
    if name is None:
        raise ModelError(f"tensor {tensor.name!r} has the element type {tensor.data_type}, which is not supported")
    dtype = np.dtype(name).newbyteorder("<")
    count = 1
    for extent in shape:
        count *= extent
    if tensor.data_location == _EXTERNAL:
        return _external(tensor, dtype, shape, count, folder)
    length = place.length if place is not None else len(tensor.raw_data)
    if place is not None or tensor.HasField("raw_data"):
        if length != count * dtype.itemsize:
            rule = f"has {length} bytes where its shape {shape} needs {count * dtype.itemsize}"
            raise ModelError(f"tensor {tensor.name!r} {rule}")
        if place is not None:
            return Stored(place.path, place.offset, shape, dtype, place.stamp)
        found = np.frombuffer(tensor.raw_data, dtype)
    else:
        found = _typed(tensor, dtype, count)
    result: Array = found.reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    result.flags.writeable = False
    return result


def array_of(tensor: Any, folder: Path | None) -> Array:
    """As `constant_of`, read into memory."""
    found = constant_of(tensor, folder)
    return found.array() if isinstance(found, Stored) else found


def _typed(tensor: Any, dtype: np.dtype[Any], count: int) -> Array:
    """Elements from the field for their type; small integers and halves lie in 32 bits each."""
    values = getattr(tensor, _FIELDS.get(dtype.name, "int32_data"))
    if len(values) != count:
        raise ModelError(f"tensor {tensor.name!r} has {len(values)} elements where its shape needs {count}")
    if dtype.name == "float16":
        return np.array(values, np.int64).astype(np.uint16).view(np.float16)
    return np.array(values, np.int64 if dtype.kind in "ib" else None).astype(dtype)


def _external(tensor: Any, dtype: np.dtype[Any], shape: tuple[int, ...], count: int, folder: Path | None) -> Stored:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = external_path(tensor.name, entries.get("location", ""), folder)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(count * dtype.itemsize)))
    except ValueError:
        raise ModelError(f"tensor {tensor.name!r}: offset and length must be whole numbers") from None
    with path.open("rb") as file:
        stamp = stamp_of(file)
    if length != count * dtype.itemsize or offset < 0 or offset + length > stamp[0]:
        place = f"bytes {offset} to {offset + length} of {path.name}, which has {stamp[0]}"
        raise ModelError(f"tensor {tensor.name!r} needs {count * dtype.itemsize} bytes and is said to be {place}")
    return Stored(path, offset, shape, dtype, stamp)


def external_path(name: str, location: str, folder: Path | None) -> Path:
    """The file of external data that a tensor names, inside the model's folder.

    Raises:
        ModelError: no folder, a place outside of it, or no regular file.
    """
    if folder is None:
        raise ModelError(f"tensor {name!r} lies in the file {location!r}; give the folder it is in")
    if not location or "\0" in location:
        raise ModelError(f"tensor {name!r} has external data, but no location")
    root = folder.resolve()
    path = (root / location).resolve()
    # A model must not make us read other files of its user: neither by "..", nor by a link out of the folder.
    if not path.is_relative_to(root):
        raise ModelError(f"tensor {name!r} lies in {location!r}, which is outside of the model's folder")
    if not path.is_file():
        raise ModelError(f"tensor {name!r} lies in {location!r}, which is no file of the model's folder")
    return path
