"""Read a model file without its weights: large tensors stay where they are, only their places are noted.

ONNX's files are protobuf messages, which the package `onnx` can parse only whole, in memory, and up to 2 GB.  Here the
outermost fields are walked through, and a copy of the file is made that lacks the `raw_data` of large initialisers:
field 9 of a TensorProto, in field 5 of a GraphProto, in field 7 of a ModelProto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from leanconv.classes import dataclass
from leanconv.errors import ModelError

_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5
LEAST_LIFTED = 4096
"""Bytes of a tensor below which it is left in the message."""

LARGEST_MESSAGE = 1 << 31
"""Bytes that protobuf can parse."""

MOST_FIELDS = 1 << 18
"""Of one message: nodes and weights of a graph, above all.  A file of tiny fields must not take time and memory."""


@dataclass(frozen=True, slots=True)
class Span:
    """A field: its number, where its header and its content begin, and where it ends."""

    number: int
    kind: int
    start: int
    content: int
    end: int


@dataclass(frozen=True, slots=True)
class Slim:
    """A model without large tensors.

    Attributes:
        data: the message.
        lifted: by the number of the initialiser, offset and length of its raw data in the file.
    """

    data: bytes
    lifted: dict[int, tuple[int, int]]


def slim(file: BinaryIO, size: int) -> Slim:
    """Read a model file without large tensors.

    Raises:
        ModelError: it is no protobuf message, or too large even without tensors.
    """
    # What is of a size that protobuf parses anyway may be built in any way; fields of one message may be repeated.
    top = list(_fields(file, 0, size))
    graphs = [span for span in top if span.number == _GRAPH and span.kind == _LENGTH]
    if len(graphs) != 1:
        return Slim(_copy(file, 0, size), {})
    (graph,) = graphs
    pieces: list[bytes] = []
    lifted: dict[int, tuple[int, int]] = {}
    count = 0
    for span in _fields(file, graph.content, graph.end):
        if span.number != _INITIALIZER or span.kind != _LENGTH:
            pieces.append(_copy(file, span.start, span.end))
            continue
        raw = [f for f in _fields(file, span.content, span.end) if f.number == _RAW_DATA and f.kind == _LENGTH]
        if len(raw) == 1 and raw[0].end - raw[0].content >= LEAST_LIFTED:
            (data,) = raw
            lifted[count] = data.content, data.end - data.content
            rest = _copy(file, span.content, data.start) + _copy(file, data.end, span.end)
            pieces.append(_field(_INITIALIZER, rest))
        else:
            pieces.append(_copy(file, span.start, span.end))
        count += 1
    before = b"".join(_copy(file, span.start, span.end) for span in top if span.start < graph.start)
    after = b"".join(_copy(file, span.start, span.end) for span in top if span.start > graph.start)
    return Slim(before + _field(_GRAPH, b"".join(pieces)) + after, lifted)


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[Span]:
    """The fields of the message that lies between two offsets."""
    at, count = start, 0
    while at < end:
        count += 1
        if count > MOST_FIELDS:
            raise ModelError(f"the file is no ONNX model: a message in it has more than {MOST_FIELDS} fields")
        file.seek(at)
        key = _varint(file, end)
        content = file.tell()
        kind = key & 7
        if kind == _LENGTH:
            length = _varint(file, end)
            content = file.tell()
            stop = content + length
        elif kind == _VARINT:
            _varint(file, end)
            stop = file.tell()
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = content + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise ModelError(f"the file is no ONNX model, or is damaged: a field of kind {kind} at byte {at}")
        if stop > end or not key >> 3:
            raise ModelError(
                f"the file is no ONNX model, or is damaged: a field at byte {at} reaches beyond its message"
            )
        yield Span(key >> 3, kind, at, content, stop)
        at = stop


def _varint(file: BinaryIO, end: int) -> int:
    value = shift = 0
    while file.tell() < end and shift < 70:
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    raise ModelError(f"the file is no ONNX model, or is damaged: it breaks off at byte {file.tell()}")


def _copy(file: BinaryIO, start: int, end: int) -> bytes:
    if end - start >= LARGEST_MESSAGE:
        raise ModelError(
            f"{end - start} bytes are more than one message may have; weights must lie in files of their own"
        )
    file.seek(start)
    return file.read(end - start)


def _field(number: int, content: bytes) -> bytes:
    length, header = len(content), bytearray([number << 3 | _LENGTH])
    while length >= 128:
        header.append(length & 127 | 128)
        length >>= 7
    return bytes([*header, length]) + content
