"""Which frames are for training, which for validation and which for the test.

A split is a list of rectangles, trajectories [k0, k1) times times [t0, t1), through which windows run freely: no
rectangle reaches over a gap in time, and those of different splits share no frame. In time, the splits are
chronological, since neighbouring frames know each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from .store import Source

__all__ = ["Rectangle", "split", "stretches"]

SPLITS = ("train", "val", "test")


def stretches(source: Source) -> list[tuple[int, int]]:
    """The regular runs of times [t0, t1): what a window may not leave."""
    edges = [0, *source.breaks, source.shape[1]]
    return [(a, b) for a, b in pairwise(edges) if b > a]


@dataclass(frozen=True)
class Rectangle:
    """Trajectories [k0, k1) × times [t0, t1), through which windows run freely."""

    k0: int
    k1: int
    t0: int
    t1: int

    def starts(self, length: int) -> int:
        """Number of windows."""
        return (self.k1 - self.k0) * max(0, self.t1 - self.t0 - length + 1)


def split(
    source: Source,
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1),
    by: Literal["auto", "time", "trajectory"] = "auto",
) -> dict[str, list[Rectangle]]:
    """Cuts a source into "train", "val" and "test": rectangles that share no frame.

    Args:
        fractions: of train, val and test, in this order along the dimension; they add up to 1. The borders
            are rounded to whole frames or trajectories, and a fraction that is not 0 gets at least one.
        by: "time" cuts all trajectories at the same times (chronologically); "trajectory" gives whole
            trajectories to each; "auto" the latter where there are at least ten.
    """
    if len(fractions) != 3 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ValueError(f"found fractions {fractions}, wanted three that are not negative and add up to 1")
    K, T = source.shape[:2]
    along = ("trajectory" if K >= 10 else "time") if by == "auto" else by
    if along not in ("time", "trajectory"):
        raise ValueError(f"found by={by!r}, wanted 'auto', 'time' or 'trajectory'")
    n = K if along == "trajectory" else T
    wanted = sum(f > 0 for f in fractions)
    if n < wanted:
        raise ValueError(f"found {n} along {along}, wanted at least {wanted} to split by {fractions}")
    sizes = [max(round(f * n), int(f > 0)) for f in fractions]
    sizes[int(np.argmax(sizes))] += n - sum(sizes)
    edges = np.cumsum([0, *sizes]).tolist()
    out: dict[str, list[Rectangle]] = {}
    for name, a, b in zip(SPLITS, edges[:-1], edges[1:], strict=True):
        if along == "trajectory":
            out[name] = [Rectangle(a, b, s, e) for s, e in stretches(source) if b > a]
        else:
            cut = [(max(s, a), min(e, b)) for s, e in stretches(source)]
            out[name] = [Rectangle(0, K, s, e) for s, e in cut if e > s]
    return out
