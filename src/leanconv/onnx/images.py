"""Images as inputs of a model, read with pillow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leanconv.arrays import Array
from leanconv.errors import ArgumentValueError, MissingPackageError, ModelError
from leanconv.onnx.model import Port

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's pixels between 0 and 1, which most classifiers were trained with."""


@dataclass(frozen=True, slots=True)
class Preparation:
    """What is done to an image before a model sees it: (pixel * scale - mean) / deviation.

    Attributes:
        scale: factor of pixels, which are 0 to 255.
        mean: of each channel, or one number for all.
        deviation: likewise.
        size: height and width to which images are resized; None for what the model fixes, or the image's own.
        bgr: whether blue comes first.
        multiple: height and width that the model leaves free are rounded to a multiple of this.
    """

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    deviation: tuple[float, ...] = (1.0,)
    size: tuple[int, int] | None = None
    bgr: bool = False
    multiple: int = 1


def image_input(path: str | os.PathLike[str], port: Port, how: Preparation) -> Array:
    """An image as a model's input, (1, C, H, W), or (1, H, W, C) if the model's last extent is 1 or 3.

    Args:
        path: of the image.
        port: the input: four axes, of which channels are 1 or 3, or free.
        how: what is done to its pixels.

    Raises:
        ArgumentValueError: the input takes no images, or numbers of channels do not fit.
        ModelError: the file is no image, or cannot be read.
        MissingPackageError: pillow is not installed.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingPackageError("pillow", "images are read with it", "pip install leanconv[onnx]") from error
    channels, wanted, last = _image_axes(port)
    try:
        with Image.open(path) as opened:
            image = opened.convert("L" if channels == 1 else "RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError, ValueError, SyntaxError) as error:
        raise ModelError(f"{os.fspath(path)} cannot be read as an image: {error}") from error
    height, width = how.size or wanted
    height = height or max(how.multiple, round(image.height / how.multiple) * how.multiple)
    width = width or max(how.multiple, round(image.width / how.multiple) * how.multiple)
    if (image.height, image.width) != (height, width):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    pixels: Array = np.asarray(image, np.float32).reshape(height, width, channels)
    pixels = pixels[:, :, ::-1] if how.bgr else pixels
    pixels = (pixels * np.float32(how.scale) - _each("mean", how.mean, channels)) / _each(
        "deviation", how.deviation, channels
    )
    ordered = pixels if last else pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(ordered[None]).astype(port.dtype)


def _image_axes(port: Port) -> tuple[int, tuple[int | None, int | None], bool]:
    """Channels, height and width as far as they are fixed, and whether channels come last."""
    shape = port.shape
    if shape is None or len(shape) != 4 or (isinstance(shape[0], int) and shape[0] != 1):
        raise ArgumentValueError("image", str(port), "must be for an input of four axes and one image")
    last = shape[3] in (1, 3) and shape[1] not in (1, 3)
    channels = shape[3] if last else shape[1]
    channels = channels if isinstance(channels, int) else 3
    if channels not in (1, 3):
        raise ArgumentValueError("image", str(port), "must be for an input of 1 or 3 channels")
    places = shape[1:3] if last else shape[2:]
    height, width = (extent if isinstance(extent, int) else None for extent in places)
    return channels, (height, width), last


def _each(name: str, numbers: Sequence[float], channels: int) -> Array:
    if len(numbers) not in (1, channels):
        raise ArgumentValueError(name, tuple(numbers), f"must be one number, or {channels}")
    return np.asarray(numbers, np.float32)
