"""Rectilinear grids: where the numbers of a field sit.

A :class:`Grid` is an ordered product of :class:`Axis` objects, one for each trailing axis of the array it
describes.

Conventions, stated once for the whole library:

- Values are cell values: coordinate ``x[i]`` is the node in the middle of the cell that ``u[i]`` stands for.
- Coordinates ascend.
- A periodic axis includes its left end and excludes its right end, so its length is ``size * spacing`` and
  ``u[size]`` would be ``u[0]`` again. Periodic axes are evenly spaced.
- Coordinates carry their own units; nothing is converted here. An axis is a latitude or a longitude if its
  units say so (the spellings of the CF conventions, section 4.1 and 4.2), otherwise it is Cartesian.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

LATITUDE_UNITS = frozenset(
    {"degrees_north", "degree_north", "degree_N", "degrees_N", "degreeN", "degreesN"},
)
LONGITUDE_UNITS = frozenset(
    {"degrees_east", "degree_east", "degree_E", "degrees_E", "degreeE", "degreesE"},
)
REGULAR = 1e-3  # an axis is regular if every gap is this close, relatively, to the mean gap (fp32 files round)


@dataclass(frozen=True)
class Axis:
    """One spatial axis.

    Args:
        name: Dimension name, e.g. ``"x"`` or ``"lat"``.
        coordinates: Node values in ``units``, strictly ascending.
        units: UDUNITS spelling, e.g. ``"m"`` or ``"degrees_north"``.
        periodic: Whether the field continues at the left end after the right one.

    Raises:
        ValueError: For empty, non-finite or non-ascending coordinates, or for an irregular periodic axis.

    >>> Axis("x", (0.0, 0.5, 1.0, 1.5), units="m", periodic=True).length
    2.0
    """

    name: str
    coordinates: tuple[float, ...]
    units: str = "1"
    periodic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "coordinates", tuple(float(c) for c in self.coordinates))
        if not self.coordinates:
            raise ValueError(f"axis {self.name!r}: found no coordinates, wanted at least one")
        for i, c in enumerate(self.coordinates):
            if not math.isfinite(c):
                raise ValueError(f"axis {self.name!r}: found {c} at index {i}, wanted finite coordinates")
        for i, gap in enumerate(self._gaps):
            if gap <= 0:
                a, b = self.coordinates[i : i + 2]
                raise ValueError(
                    f"axis {self.name!r}: found {a} followed by {b} at index {i}, wanted strictly ascending "
                    "coordinates (sort or flip the axis)"
                )
        if self.periodic and self.size > 1 and not self.regular:
            raise ValueError(
                f"axis {self.name!r}: found gaps from {self._gap_range}, "
                "wanted an evenly spaced periodic axis (interpolate, or set periodic=False)"
            )

    @cached_property
    def _gaps(self) -> tuple[float, ...]:
        x = self.coordinates
        return tuple(b - a for a, b in pairwise(x))

    @property
    def _gap_range(self) -> str:
        return f"{min(self._gaps):g} to {max(self._gaps):g} {self.units}"

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.coordinates)

    @cached_property
    def regular(self) -> bool:
        """Whether the nodes are evenly spaced, to within 0.1 % of the mean gap."""
        if self.size < 2:
            return False
        mean = sum(self._gaps) / len(self._gaps)
        return all(abs(gap - mean) <= REGULAR * mean for gap in self._gaps)

    @property
    def spacing(self) -> float:
        """Mean gap between neighbours, in ``units``. Raises ValueError where the axis has no one spacing."""
        if self.size < 2:
            raise ValueError(f"axis {self.name!r}: found a single node, wanted at least two to have a spacing")
        if not self.regular:
            raise ValueError(
                f"axis {self.name!r}: found gaps from {self._gap_range}, "
                "wanted an evenly spaced axis (use `widths` instead)"
            )
        return (self.coordinates[-1] - self.coordinates[0]) / (self.size - 1)

    @property
    def widths(self) -> tuple[float, ...]:
        """Cell widths: edges lie half-way between nodes, and the end cells are symmetric about their nodes."""
        if self.size == 1:
            return (1.0,)
        if self.regular:
            return (self.spacing,) * self.size
        g = self._gaps
        return (g[0], *((a + b) / 2 for a, b in pairwise(g)), g[-1])

    @property
    def length(self) -> float:
        """Sum of the cell widths: the period of a periodic axis."""
        return self.size * self.spacing if self.regular else sum(self.widths)

    @property
    def kind(self) -> Literal["latitude", "longitude", "cartesian"]:
        """What the units say the axis is."""
        if self.units in LATITUDE_UNITS:
            return "latitude"
        return "longitude" if self.units in LONGITUDE_UNITS else "cartesian"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe description; exact, since JSON writes a float's shortest round-trip form."""
        return {
            "name": self.name,
            "coordinates": list(self.coordinates),
            "units": self.units,
            "periodic": self.periodic,
        }

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "Axis":
        """Inverse of :meth:`to_dict`."""
        return cls(str(d["name"]), tuple(d["coordinates"]), str(d["units"]), bool(d["periodic"]))


@dataclass(frozen=True)
class Grid:
    """Axes in the order of an array's trailing dimensions.

    >>> Grid.periodic_box(64).shape
    (64, 64)
    """

    axes: tuple[Axis, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "axes", tuple(self.axes))
        if not self.axes:
            raise ValueError("grid: found no axes, wanted at least one")
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"grid: found axes {self.names}, wanted distinct names")

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(a.size for a in self.axes)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the axes."""
        return tuple(a.name for a in self.axes)

    @property
    def periodic(self) -> tuple[bool, ...]:
        """Which axes are periodic."""
        return tuple(a.periodic for a in self.axes)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Spacing of every axis in its own units. Raises ValueError if an axis is irregular."""
        return tuple(a.spacing for a in self.axes)

    @property
    def length(self) -> tuple[float, ...]:
        """Length of every axis in its own units."""
        return tuple(a.length for a in self.axes)

    def index(self, name: str) -> int:
        """Position of an axis. Raises KeyError, naming the axes there are."""
        if name not in self.names:
            raise KeyError(f"found no axis {name!r}, wanted one of {self.names}")
        return self.names.index(name)

    def meshgrid(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
        """Coordinates of every node, one tensor of shape ``shape`` for each axis."""
        return torch.meshgrid(*(torch.tensor(a.coordinates, dtype=dtype) for a in self.axes), indexing="ij")

    def area_weights(self) -> Tensor:
        """Relative cell areas: shape ``shape``, float64, mean 1.

        The product over the axes of cos(latitude) on a latitude axis, and of the cell widths on irregular
        axes. The mean of ``weights * u`` is then the area mean of u.
        """
        w = torch.ones(self.shape, dtype=torch.float64)
        for i, axis in enumerate(self.axes):
            factor = torch.tensor(axis.widths, dtype=torch.float64)
            if axis.kind == "latitude":
                lat = torch.tensor(axis.coordinates, dtype=torch.float64)
                factor = factor * torch.cos(torch.deg2rad(lat)).clamp(min=0)
            w = w * (factor / factor.mean()).reshape(-1, *(1,) * (self.ndim - 1 - i))
        return w / w.mean()

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe description."""
        return {"axes": [a.to_dict() for a in self.axes]}

    @classmethod
    def from_dict(cls, d: Mapping[str, Any]) -> "Grid":
        """Inverse of :meth:`to_dict`."""
        return cls(tuple(Axis.from_dict(a) for a in d["axes"]))

    def resampled(self, shape: Sequence[int]) -> "Grid":
        """The same box from the same origin, evenly spaced, with so many nodes along each axis.

        >>> Grid.periodic_box(8).resampled((4, 2)).shape
        (4, 2)
        """
        axes = []
        for a, n in zip(self.axes, shape, strict=True):
            first, gap = a.coordinates[0], a.length / n
            axes.append(Axis(a.name, tuple(first + i * gap for i in range(n)), a.units, a.periodic))
        return Grid(tuple(axes))

    @staticmethod
    def periodic_box(
        n: int | Sequence[int],
        length: float | Sequence[float] = 2 * math.pi,
        names: Sequence[str] = ("y", "x"),
        units: str = "m",
    ) -> "Grid":
        """Evenly spaced periodic box [0, length) with n nodes along each axis.

        Args:
            n: Number of nodes, one for all axes or one each.
            length: Period, one for all axes or one each, in ``units``.
            names: Names of the axes, in array order; their number is the dimension of the box.
            units: Units of every axis.
        """
        return Grid(
            tuple(
                Axis(name, tuple(i * L / m for i in range(m)), units, periodic=True)
                for name, m, L in _box("periodic box", n, length, names)
            )
        )

    @staticmethod
    def walled_box(
        n: int | Sequence[int],
        length: float | Sequence[float] = 1.0,
        names: Sequence[str] = ("y", "x"),
        units: str = "m",
    ) -> "Grid":
        """Evenly spaced box (0, length) between walls: n cells along each axis, whose outer faces are the walls.

        Args: as :meth:`periodic_box`.
        """
        return Grid(
            tuple(
                Axis(name, tuple((i + 0.5) * L / m for i in range(m)), units)
                for name, m, L in _box("walled box", n, length, names)
            )
        )

    def __str__(self) -> str:
        def show(a: Axis) -> str:
            ends = f"{a.coordinates[0]:g} to {a.coordinates[-1]:g} {a.units}"
            return f"{a.name}: {a.size} nodes, {ends}, {'periodic' if a.periodic else 'bounded'}"

        return "; ".join(show(a) for a in self.axes)


def _box(
    kind: str, n: int | Sequence[int], length: float | Sequence[float], names: Sequence[str]
) -> list[tuple[str, int, float]]:
    """(name, nodes, length) of every axis."""
    sizes = (n,) * len(names) if isinstance(n, int) else tuple(n)
    lengths = tuple(length) if isinstance(length, Sequence) else (float(length),) * len(names)
    if not len(sizes) == len(lengths) == len(names):
        raise ValueError(
            f"{kind}: found {len(sizes)} sizes and {len(lengths)} lengths, wanted one for each of the axes "
            f"{tuple(names)}"
        )
    return list(zip(names, sizes, lengths, strict=True))
