"""Models as they were read, kept on disk: a file that was checked once is not parsed and checked again.

ONNX's own package takes 0.1 s and 17 MB to load, which is more than all of a small network's weights.  What is kept
is found by a digest of the whole file but its weights, and of the code that read it; weights stay in the file.  The
folder is trusted as that of the kernels is, from which code is executed: see `leanconv.cache`.
"""

from __future__ import annotations

import functools
import hashlib
import pickle
from pathlib import Path

from leanconv.cache import ObjectCache, make_key
from leanconv.facts import digest_of_sources
from leanconv.network.constants import Constant, Constants, Held
from leanconv.onnx.constants import Stamp, Stored
from leanconv.onnx.model import Model
from leanconv.onnx.wire import Slim

_EXTERNAL = b"location"  # the key under which a tensor names the file that it lies in

MOST_BYTES = 8 << 20
"""Of a model without its weights; larger ones are read again each time."""


@functools.cache
def _cache() -> ObjectCache:
    return ObjectCache(max_bytes=8 * MOST_BYTES, folder="models")


@functools.cache
def _code() -> str:
    """A digest of the code that reads models."""
    return digest_of_sources("onnx", "network", "network/operators")


def _key(found: Slim) -> str:
    spans = repr([(number, length) for number, (_, length) in found.lifted.items()])
    return make_key({"code": _code(), "model": hashlib.sha256(found.data).hexdigest(), "weights": spans})


def recall(found: Slim, path: Path, stamp: Stamp) -> Model | None:
    """The model of a file, if the same was read before.

    Args:
        found: the file without weights.
        path: where it is, absolute.
        stamp: of the file.
    """
    if len(found.data) > MOST_BYTES:
        return None
    payload = _cache().get(_key(found))
    if payload is None:
        return None
    try:
        name, version, nodes, inputs, outputs, held, stored = pickle.loads(payload)
    except Exception:  # Python or NumPy is another than then
        return None
    constants: dict[str, Constant] = {key: Held(array) for key, array in held.items()}
    for array in held.values():
        array.flags.writeable = False
    for key, (number, shape, dtype) in stored.items():
        constants[key] = Stored(path, found.lifted[number][0], shape, dtype, stamp)
    return Model(name, version, nodes, inputs, outputs, Constants(constants))


def keep(model: Model, found: Slim) -> None:
    """Keep a model that was read, unless some of it came from other files."""
    if _EXTERNAL in found.data:
        return
    numbers = {offset: number for number, (offset, _) in found.lifted.items()}
    held, stored = {}, {}
    for name, constant in model.constants.handles():
        if isinstance(constant, Stored):
            stored[name] = (numbers[constant.offset], constant.shape, constant.stored)
        else:
            held[name] = constant.array()
    if len(found.data) + sum(array.nbytes for array in held.values()) > MOST_BYTES:
        return
    parts = (model.name, model.version, model.nodes, model.inputs, model.outputs, held, stored)
    try:
        payload = pickle.dumps(parts, protocol=5)
    except (pickle.PicklingError, TypeError, AttributeError, RecursionError):
        return
    _cache().put(_key(found), payload, {"model": model.name})
