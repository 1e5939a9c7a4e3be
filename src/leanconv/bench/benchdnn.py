r"""Layers as oneDNN's benchmark program spells them: `mb1ic64ih56oc64oh56kh3ph1n"res2a"`.

The descriptor is a row of letters and numbers: `g` groups, `mb` batch, `ic` and `oc` channels, then for each
axis (d, h, w) the image `i`, the output `o`, the kernel `k`, the stride `s`, the padding `p` and the dilation
`d`, where dilation 0 means dense. `_` between entries is ignored, `n` begins the name, and `*3` at the end of
the name (or of the string) says that a network holds the shape three times. What is left out is filled in as
there:

* `mb` is 2, strides are 1, dilations 0, groups 1;
* without `w` entries an image is square, without `h` and `w` entries a volume is a cube;
* without `o` the output's extent follows from the padding, which is 0 if it is missing too;
* without `p` the padding follows from the output's extent, an odd element at the end.

`p` is the padding before the image; the padding after it is what the output's extent needs.
"""

from __future__ import annotations

import re
from pathlib import Path

from leanconv.bench.layers import Layer, LayerError

_ENTRY = re.compile(r"(mb|g|ic|oc|[iokspd][dhw])(\d+)_*")
_LOOKS_LIKE = re.compile(r"(?=.*[io]c\d)(?=.*[ik][dhw]\d)_*(mb|g|ic|oc|[iokspd][dhw])\d", re.ASCII)
_REPEATS = re.compile(r"\*(\d+)$")


def looks_like(text: str) -> bool:
    """Tell whether a text is meant as a descriptor, right or wrong."""
    return _LOOKS_LIKE.match(text) is not None


def parse(text: str) -> Layer:
    """Return the layer of one descriptor.

    Raises:
        LayerError: the descriptor is not understood, or its numbers contradict each other.
    """
    numbers, name, repeats = _split(text)
    numbers = {"g": 1, "mb": 2} | numbers
    for entry in ("g", "mb", "ic", "oc"):
        _at_least_one(text, numbers, entry)
    axes = [axis for axis in "dhw" if _is_given(numbers, axis)]
    if not axes:
        raise _error(text, "needs the extents of image and kernel, such as ih56 and kh3")
    if axes == ["d"]:
        axes = _copy_axis(numbers, "d", "hw")
    elif axes == ["h"]:
        axes = _copy_axis(numbers, "h", "w")
    elif "d" in axes and len(axes) == 2:
        raise _error(text, "needs both or none of the h and w entries beside the d entries")
    padding = tuple(_padding(text, numbers, axis) for axis in axes)
    layer = Layer(
        name=name or text.strip("_"),
        batch=numbers["mb"],
        in_channels=numbers["ic"],
        in_size=tuple(numbers[f"i{axis}"] for axis in axes),
        out_channels=numbers["oc"],
        kernel=tuple(numbers[f"k{axis}"] for axis in axes),
        stride=tuple(numbers.get(f"s{axis}", 1) for axis in axes),
        padding=padding,
        dilation=tuple(numbers.get(f"d{axis}", 0) + 1 for axis in axes),
        groups=numbers["g"],
        repeats=repeats,
    )
    layer.problem()
    return layer


def read_file(path: Path) -> list[Layer]:
    """Read a file of descriptors, one a line; empty lines and lines that begin with # are skipped.

    Raises:
        LayerError: the file cannot be read, or a line is wrong; the message begins with file and line.
    """
    layers = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LayerError(f"{path}: cannot be read: {error}") from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("--"):
            raise LayerError(f"{path}:{number}: {line!r}: options of benchdnn are not understood, only layers")
        try:
            layers.append(parse(line))
        except LayerError as error:
            raise LayerError(f"{path}:{number}: {error}") from error
    return layers


def _split(text: str) -> tuple[dict[str, int], str, int]:
    """Return the numbers, the name and the multiplicity."""
    numbers: dict[str, int] = {}
    end, repeats, name = len(text), 1, ""
    multiplicity = _REPEATS.search(text.rstrip('"'))
    if multiplicity:
        repeats, end = int(multiplicity[1]), multiplicity.start()
        if repeats == 0:
            raise _error(text, "'*0' must be at least *1")
    at = len(text) - len(text.lstrip("_"))
    while at < end:
        if text[at] == "n":
            name = text[at + 1 : end].strip('"')
            break
        entry = _ENTRY.match(text, at, end)
        if entry is None:
            raise _error(text, f"not understood from {text[at:]!r} on")
        if entry[1] in numbers:
            raise _error(text, f"{entry[1]!r} appears twice")
        numbers[entry[1]] = int(entry[2])
        at = entry.end()
    return numbers, name, repeats


def _is_given(numbers: dict[str, int], axis: str) -> bool:
    """Tell whether a descriptor speaks of an axis; a stride of 1 or no padding says nothing."""
    sizes = any(numbers.get(f"{kind}{axis}", 0) for kind in "ikod")
    return sizes or numbers.get(f"s{axis}", 1) != 1 or numbers.get(f"p{axis}", 0) > 0


def _copy_axis(numbers: dict[str, int], given: str, others: str) -> list[str]:
    """Give the axes in `others` the entries of the one that is given."""
    for kind in "iokspd":
        for other in others:
            numbers.pop(f"{kind}{other}", None)
            if f"{kind}{given}" in numbers:
                numbers[f"{kind}{other}"] = numbers[f"{kind}{given}"]
    return [given, *others]


def _padding(text: str, numbers: dict[str, int], axis: str) -> tuple[int, int]:
    """Return the padding at both ends of an axis, from what is given of padding and output."""
    extent, taps = (_at_least_one(text, numbers, f"{kind}{axis}") for kind in "ik")
    stride = numbers.get(f"s{axis}", 1)
    if stride == 0:
        raise _error(text, f"'s{axis}' must be at least 1")
    span = (taps - 1) * (numbers.get(f"d{axis}", 0) + 1) + 1
    out, low = numbers.get(f"o{axis}", 0), numbers.get(f"p{axis}")
    if out == 0:
        return (low or 0, low or 0)
    total = (out - 1) * stride + span - extent  # what the last output needs beyond the image
    if low is None:
        low = max(total, 0) // 2
    if (extent + 2 * low - span) // stride + 1 == out:
        return (low, low)  # the usual case: padding of equal ends gives that output
    high = max(total - low, 0)
    if (extent + low + high - span) // stride + 1 != out:
        reached = (extent + low - span) // stride + 1
        raise _error(text, f"o{axis}{out} contradicts the rest: the output has at least {reached} there")
    return (low, high)


def _at_least_one(text: str, numbers: dict[str, int], entry: str) -> int:
    number = numbers.get(entry)
    if number is None:
        raise _error(text, f"{entry!r} is missing")
    if number == 0:
        raise _error(text, f"{entry!r} must be at least 1")
    return number


def _error(text: str, what: str) -> LayerError:
    return LayerError(f"benchdnn string {text!r}: {what}")
