"""The networks that are built in, and how the words of a command line become layers."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from leanconv.bench import benchdnn
from leanconv.bench.layers import Layer, LayerError, distinct, read_csv

# Name of the file -> what it holds.
NETWORKS = {
    "alexnet": "AlexNet with two groups, 227 x 227",
    "alexnet_one_tower": "AlexNet in one tower, without groups, 224 x 224",
    "vgg16": "VGG-16, configuration D, 224 x 224",
    "googlenet": "GoogLeNet, 224 x 224",
    "resnet18": "ResNet-18, 224 x 224",
    "resnet50": "ResNet-50 with the stride in the 3x3 (v1.5), 224 x 224",
    "mobilenet_v1": "MobileNet v1 1.0, 224 x 224",
    "mobilenet_v2": "MobileNet v2 1.0, 224 x 224",
    "squeezenet1_0": "SqueezeNet 1.0, 224 x 224",
    "squeezenet1_1": "SqueezeNet 1.1, 224 x 224",
    "convnext_tiny": "ConvNeXt-T, depthwise 7 x 7, 224 x 224",
    "replknet31b": "RepLKNet-31B, depthwise 13 x 13 to 31 x 31, 224 x 224",
    "deeplab_v3": "DeepLab v3 from its dilated block on, 513 x 513",
    "unet": "U-Net without padding, 572 x 572",
    "wavenet": "WaveNet, causal and dilated signals of one second",
    "wav2vec2": "feature encoder of wav2vec 2.0, a signal of one second",
    "conv_tasnet": "Conv-TasNet, depthwise and dilated signals of four seconds",
    "c3d": "C3D, 16 frames of 112 x 112",
    "r3d18": "ResNet-18 with 3-D convolutions, 16 frames of 112 x 112",
    "large_kernels": "single layers with kernels of 7 to 31 taps a side",
    "mec": "the twelve layers of the MEC and im2win papers",
    "survey": "single layers of all kinds, by which leanconv is steered; some with batch 8",
}


@functools.cache
def network(name: str) -> tuple[Layer, ...]:
    """Return the layers of a built-in network, named "network/layer", in the network's order.

    Case, "-", "_", "." and spaces in the name do not matter: "ResNet-50" is "resnet50".

    Raises:
        LayerError: there is no such network; the message lists the nearest names.
    """
    known = _known_network(name)
    if known is None:
        raise LayerError(f"no network is called {name!r}{_near(name, NETWORKS)}; there are {', '.join(NETWORKS)}")
    with as_file(files("leanconv.bench") / "networks" / f"{known}.csv") as path:
        layers = read_csv(path)
    return tuple(replace(layer, name=f"{known}/{layer.name}") for layer in layers)


def resolve(words: Iterable[str]) -> list[Layer]:
    """Return the layers that a list of words stands for.

    A word is a path to a file (CSV, or oneDNN's strings one a line), one of oneDNN's strings, the name of a
    network, or the name of a layer: "network/layer", or the layer alone if one network only has a layer of
    that name. Equal shapes of a network are merged.

    Raises:
        LayerError: a word is none of these; the message lists the nearest names.
    """
    layers: list[Layer] = []
    for word in words:
        layers += _resolve_word(word)
    return layers


def in_order(words: Iterable[str]) -> list[Layer]:
    """As `resolve`, but the layers of networks stand in their order, each as often as the network holds it.

    Raises:
        LayerError: as `resolve`.
    """
    layers: list[Layer] = []
    for word in words:
        found = network(word) if _known_network(word) and not Path(word).is_file() else _resolve_word(word)
        layers += [layer for layer in found for _ in range(layer.repeats)]
    return layers


def select(layers: Iterable[Layer], *, pattern: str | None = None, batches: Sequence[int] = ()) -> list[Layer]:
    """Return the layers whose name holds a match of a regular expression, with other batches if given.

    Args:
        layers: to choose from.
        pattern: the regular expression; all layers if None.
        batches: numbers of images, for each layer in turn. Of layers that differ by nothing else one is left. If there
            are several, names end in `@b` and the number.

    Raises:
        LayerError: `pattern` is no regular expression.
    """
    try:
        expression = re.compile(pattern or "")
    except re.error as error:
        raise LayerError(f"{pattern!r} is no regular expression: {error}") from error
    chosen = [layer for layer in layers if expression.search(layer.name)]
    if not batches:
        return chosen
    result: dict[Layer, None] = {}
    for layer in chosen:
        base = re.sub(r"@b\d+$", "", layer.name)
        for batch in batches:
            name = f"{base}@b{batch}" if len(batches) > 1 else base
            result.setdefault(replace(layer, name=name, batch=batch))
    return [*result]


def _resolve_word(word: str) -> list[Layer]:
    path = Path(word)
    if benchdnn.looks_like(word) and not path.is_file():
        return [benchdnn.parse(word)]
    if path.suffix.lower() == ".csv":
        return read_csv(path)
    if _known_network(word):
        return distinct(network(word))
    if path.is_file():
        return benchdnn.read_file(path) if _holds_descriptors(path) else read_csv(path)
    by_name = _layers_by_name()
    found = by_name.get(word.lower(), [])
    if len(found) == 1:
        return found
    if found:
        names = ", ".join(layer.name for layer in found)
        raise LayerError(f"layer {word!r} is in several networks: name one of {names}")
    raise LayerError(
        f"{word!r} is no file, no network, no layer of one and no benchdnn string{_near(word, by_name)}; "
        f"networks: {', '.join(NETWORKS)}"
    )


def _known_network(name: str) -> str | None:
    """Return the network's name as `NETWORKS` spells it, or None."""
    return {_plain(known): known for known in NETWORKS}.get(_plain(name))


def _plain(name: str) -> str:
    return re.sub(r"[-_. ]", "", name.lower())


@functools.cache
def _layers_by_name() -> dict[str, list[Layer]]:
    """Return the built-in layers by full name, and by the name without the network."""
    by_name: dict[str, list[Layer]] = {}
    for name in NETWORKS:
        for layer in network(name):
            full = layer.name.lower()
            by_name.setdefault(full, []).append(layer)
            by_name.setdefault(full.partition("/")[2], []).append(layer)
    return by_name


def _near(word: str, names: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the names most like a word, or nothing."""
    matches = difflib.get_close_matches(word.lower(), [*names, *NETWORKS], n=4, cutoff=0.6)
    matches = list(dict.fromkeys(matches))
    return f"; did you mean {' or '.join(matches)}?" if matches else ""


def _holds_descriptors(path: Path) -> bool:
    """Tell whether the first line of a file that says something is a benchdnn string or option."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return False  # reading it as CSV will say why
    first = next((line for line in map(str.strip, lines) if line and not line.startswith("#")), "")
    return first.startswith("--") or benchdnn.looks_like(first)
