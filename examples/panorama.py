"""A filter on a panorama: convolved flat, and mapped onto the sphere that the panorama shows.

The panorama is equirectangular: a row is a latitude, a column a longitude, so what lies near a pole is drawn as wide as
the equator. Round spots of one angular size, scattered over the sphere, are looked for by one round filter. `conv2d`
finds those at the equator; near the poles they are too wide for it. `mapped_conv2d` samples the filter's taps on the
plane that touches the sphere at each pixel, and finds every spot alike, also the one across the picture's seam.

The panorama is made by a formula. Prints the filter's response at every spot and writes a picture.

    python examples/panorama.py [--out panorama.png]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

import leanconv

Array = NDArray[Any]

HEIGHT, WIDTH = 240, 480  # three quarters of a degree a pixel
SPOT = np.radians(5.0)  # angular radius of a spot
STEP = np.radians(2.25)  # angle between taps: three pixels at the equator
TAPS = 7
# Latitude and longitude of the spots, in degrees; the last one lies across the seam.
SPOTS = [(0, 0), (20, 60), (-20, -60), (40, 120), (-40, -120), (55, 20), (-55, -20), (70, 90), (-70, -90), (82, -30)]
SPOTS += [(-82, 30), (10, 180)]


def sphere_map(height: int, width: int, taps: int, step: float) -> Array:
    """Where the taps of a square kernel lie on the planes that touch the sphere (gnomonic projection).

    Args:
        height: rows of the panorama, from the north pole to the south pole.
        width: columns, once around.
        taps: R = S.
        step: angle between neighbouring taps, in radians.

    Returns:
        A sampling map (height, width, taps, taps, 2) for `mapped_conv2d` with pad_mode=("replicate", "circular").
    """
    latitude, longitude = directions(height, width)
    offset = np.tan(step * (np.arange(taps) - (taps - 1) / 2))
    up, right = -offset[:, None], offset[None, :]
    distance = np.hypot(up, right)
    angle = np.arctan(distance)
    # The direction of tap (r, s) seen from each row; longitudes only add, so one column serves for all.
    sin, cos = (f(latitude)[:, None, None] for f in (np.sin, np.cos))
    shrink = np.cos(angle)  # sin(angle) / distance, which has no value in the centre
    north = np.arcsin(np.clip(shrink * (sin + up * cos), -1, 1))
    east = np.arctan2(right, cos - up * sin)
    result = np.empty((height, width, taps, taps, 2), np.float32)
    result[..., 0] = ((0.5 - north / np.pi) * height - 0.5)[:, None]
    result[..., 1] = ((longitude[None, :, None, None] + east[:, None]) / (2 * np.pi) + 0.5) * width - 0.5
    return result


def directions(height: int, width: int) -> tuple[Array, Array]:
    """Latitudes of the rows and longitudes of the columns of a panorama, in radians."""
    return np.pi * (0.5 - (np.arange(height) + 0.5) / height), 2 * np.pi * ((np.arange(width) + 0.5) / width - 0.5)


def panorama() -> Array:
    """The synthetic panorama, (HEIGHT, WIDTH, 3): bright spots on a sky with faint clouds."""
    latitude, longitude = directions(HEIGHT, WIDTH)
    y, x = np.sin(latitude)[:, None], np.cos(latitude)[:, None]
    place = np.stack(np.broadcast_arrays(x * np.cos(longitude), x * np.sin(longitude), y), axis=-1)
    waves = np.random.default_rng(0).normal(scale=4, size=(3, 24))
    clouds = np.cos(place @ waves + np.arange(24)).mean(axis=-1)
    image = np.array([0.25, 0.4, 0.6]) + 0.05 * clouds[..., None]
    for north, east in np.radians(SPOTS):
        centre = np.array([np.cos(north) * np.cos(east), np.cos(north) * np.sin(east), np.sin(north)])
        inside = np.arccos(np.clip(place @ centre, -1, 1)) < SPOT
        image[inside] = [1.0, 0.8, 0.3]
    return image.astype(np.float32)


def spot_filter() -> Array:
    """Weights (1, 3, TAPS, TAPS) that answer a bright round spot, and not an even sky; 1 for a white spot on black."""
    offset = STEP * (np.arange(TAPS) - (TAPS - 1) / 2)
    inside = np.hypot(*np.meshgrid(offset, offset)) < SPOT
    kernel = np.where(inside, 1 / inside.sum(), -1 / (~inside).sum())
    return np.ascontiguousarray(np.broadcast_to(kernel / 3, (1, 3, TAPS, TAPS)), dtype=np.float32)


def main() -> int:
    """Convolve both ways, print the responses, write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("panorama.png"), help="the picture (default: panorama.png)")
    arguments = parser.parse_args()
    image, weights = panorama(), spot_filter()
    places = sphere_map(HEIGHT, WIDTH, TAPS, STEP)
    dilation = round(STEP / (np.pi / HEIGHT))
    options: dict[str, Any] = {"layout": "NHWC", "activation": "relu"}
    for _ in range(2):  # kernels are compiled in the first call, the second one is timed
        start = time.perf_counter()
        flat = leanconv.conv2d(image, weights, padding="same", dilation=dilation, pad_mode="circular", **options)
        middle = time.perf_counter()
        sphere = leanconv.mapped_conv2d(image, weights, places, pad_mode=("replicate", "circular"), **options)
        end = time.perf_counter()
    flat, sphere = flat[..., 0], sphere[..., 0]
    print(f"conv2d {1e3 * (middle - start):.1f} ms, mapped_conv2d {1e3 * (end - middle):.1f} ms")
    print("response at the centre of each spot")
    print("latitude  longitude    conv2d  mapped_conv2d")
    pairs = []
    for north, east in SPOTS:
        at = int((90 - north) * HEIGHT / 180), int((east + 180) * WIDTH / 360) % WIDTH
        pairs.append((flat[at], sphere[at]))
        print(f"{north:8}  {east:9}  {flat[at]:8.3f}  {sphere[at]:13.3f}")
    low, high = np.min(pairs, axis=0), np.max(pairs, axis=0)
    print(f"least of the largest  {low[0] / high[0]:8.2f}  {low[1] / high[1]:13.2f}")
    picture(image, places, flat, sphere, arguments.out)
    print(f"wrote {arguments.out}")
    return 0


def picture(image: Array, places: Array, flat: Array, sphere: Array, path: Path) -> None:
    """Draw the panorama with the taps at three pixels, and both responses."""
    figure = Figure(figsize=(7, 11), layout="constrained")
    top, *others = figure.subplots(3, 1)
    top.imshow(np.clip(image, 0, 1))
    top.set_title("the panorama, and the taps that mapped_conv2d reads at four pixels", fontsize=10)
    for row, column, colour in ((120, 300, "#d55e00"), (60, 260, "#cc79a7"), (30, 160, "#009e73"), (228, 80, "black")):
        y, x = places[row, column].reshape(-1, 2).T
        top.scatter(x % WIDTH, np.clip(y, 0, HEIGHT - 1), s=2, color=colour)
    for axis, response, title in zip(others, (flat, sphere), ("conv2d", "mapped_conv2d"), strict=True):
        axis.imshow(response, cmap="inferno", vmin=0, vmax=max(flat.max(), sphere.max()))
        axis.set_title(f"response to round spots: {title}", fontsize=10)
    for axis in (top, *others):
        axis.set_axis_off()
        axis.set_xlim(0, WIDTH)
        axis.set_ylim(HEIGHT, 0)
    figure.savefig(path, dpi=90)


if __name__ == "__main__":
    sys.exit(main())
