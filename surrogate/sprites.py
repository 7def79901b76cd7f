"""Frames of fields as pictures: colour maps, orientation, and sprite sheets that a page plays without a video codec.

A sheet is one PNG with a palette, the frames side by side. Cells without data (land) have a grey of their own.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..physics.grid import Grid
from .film import Film, percentiles

__all__ = ["GREY", "Sprite", "coarsening", "colour_scale", "palette", "picture", "sprite"]

GREY = (150, 152, 156)
_LEVELS = 255


@dataclass(frozen=True)
class Sprite:
    """A sheet of frames as a PNG data URI: `columns` frames a row, each width × height pixels."""

    uri: str
    width: int
    height: int
    columns: int


def colour_scale(film: Film, panel: str) -> tuple[str, float, float]:
    """Colour map and limits: one for truth, mean and members, so that they compare, one each for spread and error.

    Diverging about zero for fields of both signs, perceptually uniform otherwise; all maps are safe for the common
    forms of colour blindness. The outermost 0.5 % are left out of the limits.
    """
    if panel == "spread":
        return "magma", 0.0, _above(0.0, percentiles(film.panels[panel], 99.5)[0])
    if panel == "error":
        high = _above(0.0, percentiles(np.abs(film.panels[panel]), 99.5)[0])
        return "RdBu_r", -high, high
    low, high = percentiles(film.reference, 0.5, 99.5)
    if film.signed:
        high = _above(0.0, max(abs(low), abs(high)))
        return "RdBu_r", -high, high
    return "viridis", low, _above(low, high)


def _above(low: float, high: float) -> float:
    if high > low and math.isfinite(high):
        return high
    return low + (abs(low) * 1e-3 or 1.0) if math.isfinite(low) else 1.0


def picture(u: NDArray[Any], grid: Grid) -> NDArray[Any]:
    """Frames (…, *space) as images (…, rows, columns), the first row on top.

    Latitude, or else the first axis, points up. Of 3D fields the middle level is shown.
    """
    while u.ndim - 1 > 2:
        u = u[:, u.shape[1] // 2]
    axes = grid.axes[-2:]
    if len(axes) == 2 and axes[1].kind == "latitude":
        u = u.swapaxes(-1, -2)
    return u[..., ::-1, :]


def sprite(u: NDArray[Any], name: str, low: float, high: float, coarsen: int = 1) -> Sprite:
    """Images (frames, rows, columns) as one palette PNG; each pixel is the mean of coarsen² cells."""
    from PIL import Image

    u = _coarse(u, coarsen)
    n, height, width = u.shape
    columns = max(1, min(n, math.ceil(math.sqrt(n * height / width))))
    rows = math.ceil(n / columns)
    scaled = np.clip((u - low) / (high - low), 0, 1) * (_LEVELS - 1)
    index = np.where(np.isfinite(u), np.nan_to_num(scaled).round() + 1, 0).astype(np.uint8)
    sheet = np.zeros((rows * columns, height, width), dtype=np.uint8)
    sheet[:n] = index
    sheet = sheet.reshape(rows, columns, height, width).swapaxes(1, 2).reshape(rows * height, columns * width)
    image = Image.fromarray(sheet, mode="P")
    colours = np.vstack([GREY, palette(name, _LEVELS)]).astype(np.uint8)
    image.putpalette(colours.tobytes())
    data = io.BytesIO()
    image.save(data, format="PNG", optimize=True)
    return Sprite(f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}", width, height, columns)


def palette(name: str, count: int) -> NDArray[np.uint8]:
    """`count` colours of a map, (count, 3)."""
    from matplotlib import colormaps

    rgba = colormaps[name](np.linspace(0, 1, count))
    return np.asarray((rgba[:, :3] * 255).round(), dtype=np.uint8)


def _coarse(u: NDArray[Any], factor: int) -> NDArray[Any]:
    if factor == 1:
        return u
    n, height, width = u.shape
    rows, columns = height // factor, width // factor
    cells = u[:, : rows * factor, : columns * factor].reshape(n, rows, factor, columns, factor)
    there = np.isfinite(cells)
    count = there.sum(axis=(2, 4))
    total = np.where(there, cells, 0).sum(axis=(2, 4))
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def coarsening(films: Sequence[Film], pixels: float = 5e6) -> int:
    """The factor by which frames are coarsened so that all sheets together have at most so many pixels."""
    total = sum(u.size for f in films for u in f.panels.values() if f.grid.ndim > 1)
    return max(1, math.ceil(math.sqrt(total / pixels)))
