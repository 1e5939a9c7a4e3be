"""A page with a photograph and lines of several sizes, one at an angle; and a picture of what was found on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pictures import COLOURS

Array = NDArray[Any]

HEIGHT, WIDTH = 736, 960
INK = (38, 36, 40)
TITLE = "Lines on a page"
SUBTITLE = "A detector marks where text is; it does not read it."
BODY = (
    "A convolution lays a small kernel over an image,",
    "multiplies what lies on top of each other, adds it",
    "all up, and moves on by one pixel. A network for",
    "text does so in a hundred layers, first on edges,",
    "then on strokes, then on words. In the end each",
    "pixel has a number: how likely it is part of a line.",
    "",
    "Around every region of likely pixels a rectangle is",
    "drawn, at any angle. The boxes in this picture are",
    "computed twice, by two programs, and compared.",
)
FORMULA = "y[k,p,q] = sum  x[c,p+r,q+s] * w[k,c,r,s]"
CAPTION = "Commodore Hopper, 1984"
STAMP = "COUNTED IN BYTES"
SMALL_PRINT = "Set in DejaVu. The photograph is a work of the United States Navy, in the public domain."


def font(name: str, size: int) -> Any:
    """One of matplotlib's own fonts, so that the page is the same on every machine."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf", size)


def text_page() -> Array:
    """Return the page: (736, 960, 3), uint8, red first; paper with uneven light and grain, the same every time."""
    light = 246 - 26 * np.linspace(0, 1, HEIGHT)[:, None] * np.linspace(0.3, 1, WIDTH)
    page = Image.fromarray(np.stack([light, light - 3, light - 11], axis=-1).astype(np.uint8))
    draw = ImageDraw.Draw(page)
    draw.text((60, 46), TITLE, INK, font("DejaVuSerif-Bold", 46))
    draw.text((60, 114), SUBTITLE, INK, font("DejaVuSerif-Italic", 21))
    for number, line in enumerate(BODY):
        draw.text((60, 180 + 37 * number), line, INK, font("DejaVuSerif", 20))
    draw.text((60, 580), FORMULA, INK, font("DejaVuSansMono", 20))
    with Image.open(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg") as photo:
        page.paste(photo.convert("RGB").resize((256, 300), Image.Resampling.LANCZOS), (648, 172))
    draw.text((660, 486), CAPTION, INK, font("DejaVuSans", 18))
    stamp = Image.new("RGBA", (330, 60))
    ImageDraw.Draw(stamp).text((16, 14), STAMP, (176, 32, 40, 225), font("DejaVuSans-Bold", 27))
    stamp = stamp.rotate(9, Image.Resampling.BICUBIC, expand=True)
    page.paste(stamp, (600, 544), stamp)
    draw.text((60, 690), SMALL_PRINT, INK, font("DejaVuSans", 14))
    grain = np.random.default_rng(0).normal(0, 3, (HEIGHT, WIDTH, 1))
    return np.clip(np.asarray(page) + grain, 0, 255).astype(np.uint8)


def draw_boxes(page: Array, probability: Array, found: dict[str, Array], path: Path) -> None:
    """Save the page with boxes around its lines, next to how likely each pixel is text.

    Args:
        page: (H, W, 3), uint8.
        probability: (H, W), 0 to 1.
        found: boxes (n, 4, 2) of each engine, corners as x and y.  The first are drawn as lines, others as dashes.
        path: where to save.
    """
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axis in (left, right):
        axis.set_axis_off()
    left.imshow(page, interpolation="antialiased")
    for number, (name, boxes) in enumerate(found.items()):
        style = {"lw": 2.2} if number == 0 else {"lw": 1.1, "ls": (0, (3, 3))}
        for index, box in enumerate(boxes):
            xs, ys = np.concatenate([box, box[:1]]).T
            label = f"{name}: {len(boxes)} boxes" if index == 0 else None
            left.plot(xs, ys, color=COLOURS[number], label=label, **style)
    if any(len(boxes) for boxes in found.values()):
        figure.legend(loc="outside upper left", ncols=len(found), frameon=False, fontsize=9)
    right.imshow(probability, cmap="inferno", vmin=0, vmax=1, interpolation="antialiased")
    figure.text(0.99, 0.955, "how likely a pixel is text: what the network computes", ha="right", fontsize=9)
    figure.savefig(path, dpi=110)
