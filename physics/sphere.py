"""Vector calculus on the sphere, on grids of latitude and longitude.

With longitude λ, latitude φ, radius R and v = (u, v) eastward and northward (component order as everywhere: along the
last axis first),

    ∇f   = (f_λ / cos φ, f_φ) / R                       ∇·v = (u_λ + (v cos φ)_φ) / (R cos φ)
    ∇²f  = (f_λλ / cos²φ + f_φφ − tan φ f_φ) / R²         ζ  = (v_λ − (u cos φ)_φ) / (R cos φ)

Grids are regional or global, in degrees, latitudes ascending, even or not (Gaussian). Derivatives along a periodic
longitude are spectral unless `accuracy` says otherwise, those along a bounded one finite differences.

*Across a pole* a meridian continues on the other side of the globe: row φ beyond the pole is row 180° − φ, half a
turn away, where components of vectors have the opposite sign. A grid whose longitude is periodic and whose last row
lies within 1½ spacings of the pole is continued in that way, so that polar rows are inner rows, with centred
differences. If both poles are crossed and the great circles are evenly spaced (rows at the poles, or half a spacing
off them), latitude is periodic, too, and derivatives along it are spectral by default (the double Fourier method:
Merilees 1973, doi:10.1080/00046973.1973.9648342; Orszag 1974,
doi:10.1175/1520-0493(1974)102<0056:FSOS>2.0.CO;2): spherical harmonics below the grid's limit are then
differentiated exactly.

*At a pole* (a row at ±90°) cos φ is nought and the quotients take their limits: u of a gradient is ∓f_λφ/R (north,
south), a divergence is 2⟨v_φ⟩/R, a vorticity −2⟨u_φ⟩/R, a Laplacian 2⟨f_φφ⟩/R², with ⟨·⟩ over the row. East and
north at a pole are those of the meridian in question.

*Beside a pole* the slope of what is odd across it (harmonics of odd zonal order) does not vanish, and tan φ would
multiply its error by the number of rows: an order lost. Poleward of 60° the part of f that is odd across the pole is
therefore differentiated as cos φ · (odd / cos φ), whose second factor is smooth and even. The order of finite
differences then holds in every row. Noise is multiplied by 1/cos φ all the same: differentiate in float64, and judge
data that was cut or interpolated near a pole with area weights (:meth:`Sphere.mean`).

Derivatives along the two axes commute to round-off. Hence ∇×∇f = 0 and the divergence of a stream function's
velocity are nought for the discrete operators.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .differences import ACCURACIES, difference, difference_matrix, difference_weights
from .grid import Axis, Grid
from .operators import spectral_derivative

EARTH_RADIUS = 6.371e6  # m, mean radius
EARTH_ROTATION = 7.292e-5  # s-1
POLAR = 1e-6  # degrees within which a row is at the pole
CAP = math.radians(60)  # beyond, slopes of what is odd across the pole are taken of odd / cos φ
REACH = 1.5  # spacings from the last row to the pole, below which the grid is continued across it


class Sphere:
    """Operators on a grid with axes (latitude, longitude).

    Args:
        grid: Latitude, then longitude, in degrees as their units say.
        radius: R, m; derivatives are per unit of it.
        accuracy: Order of finite differences, 2, 4 or 6. None: spectral along whatever is periodic (see above), else 2.

    Raises:
        ValueError: If the axes are others, latitudes leave [−90, 90], a periodic longitude is not 360° long, a row lies
            at a pole that the grid cannot cross, or there is no such accuracy.

    >>> from lapse.physics.grid import Axis, Grid
    >>> lat = Axis("lat", tuple(-85.0 + 10 * i for i in range(18)), "degrees_north")
    >>> lon = Axis("lon", tuple(range(0, 360, 10)), "degrees_east", periodic=True)
    >>> sphere = Sphere(Grid((lat, lon)), radius=1.0)
    >>> f = torch.sin(torch.deg2rad(sphere.grid.meshgrid()[0]))          # Y₁₀, an eigenfunction: ∇²f = −2f
    >>> bool((sphere.laplacian(f) + 2 * f).abs().max() < 1e-11)
    True
    """

    def __init__(self, grid: Grid, radius: float = EARTH_RADIUS, accuracy: int | None = None) -> None:
        kinds = tuple(a.kind for a in grid.axes)
        if kinds != ("latitude", "longitude"):
            raise ValueError(f"sphere: found axes {grid.names} ({kinds}), wanted (latitude, longitude), with CF units")
        if accuracy not in (None, *ACCURACIES) or not radius > 0:
            raise ValueError(f"sphere: found accuracy={accuracy}, radius={radius}, wanted 2, 4, 6 or None and R > 0")
        lat, lon = grid.axes
        if lat.coordinates[0] < -90 - POLAR or lat.coordinates[-1] > 90 + POLAR:
            raise ValueError(f"sphere: found latitudes up to {lat.coordinates[-1]:g}, wanted -90 to 90")
        if lon.periodic and abs(lon.length - 360) > 0.01:
            raise ValueError(f"sphere: found a periodic longitude of {lon.length:g} degrees, wanted 360")
        self.grid, self.radius, self.accuracy = grid, float(radius), accuracy
        self._lat = _radians(lat)
        self._lon = _radians(lon)
        gaps = [b - a for a, b in pairwise(lat.coordinates)] or [math.inf]
        to_pole = (lat.coordinates[0] + 90, 90 - lat.coordinates[-1])
        self.crosses = tuple(
            lon.periodic and d <= REACH * gap for d, gap in zip(to_pole, (gaps[0], gaps[-1]), strict=True)
        )
        self._polar = tuple(d <= POLAR for d in to_pole)
        for at_pole, crosses in zip(self._polar, self.crosses, strict=True):
            if at_pole and not crosses:
                raise ValueError(
                    f"sphere: found a row at a pole and the longitude ({lon.coordinates[0]:g} to "
                    f"{lon.coordinates[-1]:g}) not periodic, wanted all longitudes, or no polar row"
                )
        offsets = [d / lat.spacing for d in to_pole] if lat.regular else [math.nan]
        even = all(abs(x - offsets[0]) < 1e-3 and min(x, abs(x - 0.5)) < 1e-3 for x in offsets)
        self.spectral = accuracy is None and all(self.crosses) and even
        phi = torch.tensor(self._lat.coordinates, dtype=torch.float64)
        self._sin, self._cos = phi.sin()[:, None], phi.cos()[:, None]
        for end, at_pole in zip((0, -1), self._polar, strict=True):
            if at_pole:
                self._cos[end] = 0
        self._cap = ((phi < -CAP) & self.crosses[0] | (phi > CAP) & self.crosses[1])[:, None]

    def gradient(self, f: Tensor) -> Tensor:
        """∇f: field (…, lat, lon) -> vector (…, 2, lat, lon), eastward and northward, in units of f per unit of R."""
        self._check(f)
        east = self._dlon(f)
        u = self._over_cos(east)
        if any(self._polar):
            u = self._at_poles(u, lambda: self._dlat(east, 1), (1.0, -1.0))
        return torch.stack((u, self._dlat(f, 1)), dim=-3) / self.radius

    def divergence(self, v: Tensor) -> Tensor:
        """∇·v: vector (…, 2, lat, lon), eastward and northward -> field (…, lat, lon)."""
        east, north = self._components(v)
        out = self._over_cos(self._dlon(east) + self._dlat(north * self._cos.to(north), 1))
        return self._at_poles(out, lambda: 2 * _zonal(self._dlat(north, -1))) / self.radius

    def vorticity(self, v: Tensor) -> Tensor:
        """Radial component ζ of ∇×v: vector (…, 2, lat, lon) -> field (…, lat, lon); twice the rate of rotation."""
        east, north = self._components(v)
        out = self._over_cos(self._dlon(north) - self._dlat(east * self._cos.to(east), 1))
        return self._at_poles(out, lambda: -2 * _zonal(self._dlat(east, -1))) / self.radius

    def laplacian(self, f: Tensor) -> Tensor:
        """∇²f: field (…, lat, lon) -> field (…, lat, lon)."""
        self._check(f)
        second = self._dlat(f, 1, order=2)
        zonal = self._over_cos(self._over_cos(self._dlon(f, order=2)) - self._dlat(f, 1) * self._sin.to(f))
        out = self._at_poles(second + zonal, lambda: 2 * _zonal(second))
        return out / self.radius**2

    def from_stream_function(self, psi: Tensor) -> Tensor:
        """Velocity k×∇ψ = (−ψ_φ, ψ_λ/cos φ)/R, free of divergence: (…, lat, lon) -> (…, 2, lat, lon)."""
        u, v = self.gradient(psi).unbind(dim=-3)
        return torch.stack((-v, u), dim=-3)

    def coriolis(self, rotation: float = EARTH_ROTATION) -> Tensor:
        """2Ω sin φ, shape (lat, lon), float64, in units of `rotation`, the sphere's own Ω."""
        return (2 * rotation * self._sin).expand(self.grid.shape)

    def areas(self) -> Tensor:
        """Cell areas R² Δλ (sin φ₊ − sin φ₋), shape (lat, lon), float64, in units of R².

        Edges lie half-way between rows; where the grid reaches a pole (see above) its last cells do, so that the areas
        of a global grid add up to 4πR².
        """
        phi = self._lat.coordinates
        width = self._lat.widths
        ends = [phi[0] - width[0] / 2, phi[-1] + width[-1] / 2]
        for i, (pole, crosses) in enumerate(zip((-math.pi / 2, math.pi / 2), self.crosses, strict=True)):
            ends[i] = pole if crosses else min(max(ends[i], -math.pi / 2), math.pi / 2)
        middles = [(a + b) / 2 for a, b in pairwise(phi)]
        edges = torch.tensor([ends[0], *middles, ends[1]], dtype=torch.float64).sin()
        lon = torch.tensor(self._lon.widths, dtype=torch.float64)
        return self.radius**2 * (edges[1:] - edges[:-1])[:, None] * lon

    def mean(self, f: Tensor) -> Tensor:
        """Area mean, in float64: (…, lat, lon) -> (…)."""
        self._check(f)
        w = self.areas().to(f.device)
        return (f.to(torch.float64) * w).sum(dim=(-2, -1)) / w.sum()

    def _dlon(self, f: Tensor, order: int = 1) -> Tensor:
        if self._lon.periodic and self.accuracy is None:
            return spectral_derivative(f, -1, 2 * math.pi, order)
        return difference(f, self._lon, -1, order, self.accuracy or 2)

    def _dlat(self, f: Tensor, sign: int, order: int = 1) -> Tensor:
        """∂/∂φ (per radian) of what takes the factor `sign` across a pole: 1 for scalars, −1 for components."""
        n = self.grid.shape[0]
        south, north = (int(at_pole) for at_pole in self._polar)  # a polar row is not its own mirror image
        if self.spectral:
            back = sign * self._across(f)[..., south : n - north, :].flip(-2)
            return spectral_derivative(torch.cat((f, back), dim=-2), -2, 2 * math.pi, order)[..., :n, :]
        plain = self._differences(f, sign, order)
        if not any(self.crosses):
            return plain
        odd = (f - sign * self._across(f)) / 2  # its values at opposite sides of a pole cancel
        sin, cos, g = self._sin.to(f), self._cos.to(f), self._odd_over_cos(odd)
        slope = self._differences(g, -sign, 1)
        if order == 1:
            better = cos * slope - sin * g
        else:
            better = cos * self._differences(g, -sign, 2) - 2 * sin * slope - cos * g
        return torch.where(self._cap.to(f.device), plain - self._differences(odd, sign, order) + better, plain)

    def _differences(self, f: Tensor, sign: int, order: int) -> Tensor:
        """Finite differences along the meridians, with rows from beyond the poles as ghosts."""
        n, accuracy = self.grid.shape[0], self.accuracy or 2
        south, north = (int(at_pole) for at_pole in self._polar)
        phi, parts, rows = self._lat.coordinates, [f], list(self._lat.coordinates)
        ghosts = min(accuracy // 2 + order, n - 1)
        if self.crosses[0]:
            parts.insert(0, sign * self._across(f)[..., south : south + ghosts, :].flip(-2))
            rows = [-math.pi - x for x in reversed(phi[south : south + ghosts])] + rows
        if self.crosses[1]:
            parts.append(sign * self._across(f)[..., n - north - ghosts : n - north, :].flip(-2))
            rows += [math.pi - x for x in reversed(phi[n - north - ghosts : n - north])]
        start = ghosts if self.crosses[0] else 0
        D = difference_matrix(Axis("latitude", tuple(rows)), order, accuracy)[start : start + n]
        return D.to(f) @ torch.cat(parts, dim=-2)

    def _odd_over_cos(self, odd: Tensor) -> Tensor:
        """odd / cos φ; at a pole its limit, interpolated from the rows on both sides (it is even across a pole)."""
        g = self._over_cos(odd)
        reach = min((self.accuracy or 2) // 2 + 1, self.grid.shape[0] - 1)
        index = torch.arange(odd.shape[-2], device=odd.device)[:, None]
        for end, at_pole in zip((0, -1), self._polar, strict=True):
            if at_pole:
                near = [k + 1 if end == 0 else -2 - k for k in range(reach)]
                apart = [abs(self._lat.coordinates[k] - self._lat.coordinates[end]) for k in near]
                w = difference_weights((*(-d for d in reversed(apart)), *apart), 0.0, 0)[reach:]
                limit = sum(2 * c * g[..., k, :] for c, k in zip(w, near, strict=True))
                g = torch.where(index == end % odd.shape[-2], torch.as_tensor(limit).unsqueeze(-2), g)
        return g

    def _across(self, f: Tensor) -> Tensor:
        """Rows half a turn away: (…, lat, lon) -> (…, lat, lon)."""
        n = f.shape[-1]
        if n % 2 == 0:
            return f.roll(n // 2, dims=-1)
        v = torch.fft.rfft(f, dim=-1)
        sign = 1.0 - 2.0 * (torch.arange(v.shape[-1], device=f.device) % 2)
        out: Tensor = torch.fft.irfft(v * sign.to(f.dtype), n=n, dim=-1)
        return out

    def _over_cos(self, f: Tensor) -> Tensor:
        cos = self._cos.to(f)
        return f / torch.where(cos > 0, cos, 1.0)

    def _at_poles(self, f: Tensor, limit: Callable[[], Tensor], factors: tuple[float, float] = (1.0, 1.0)) -> Tensor:
        """f with its polar rows (south, north) replaced by those of `limit()`, times a factor each."""
        if not any(self._polar):
            return f
        rows, value = f, limit()
        index = torch.arange(f.shape[-2], device=f.device)[:, None]
        for end, at_pole, factor in zip((0, f.shape[-2] - 1), self._polar, factors, strict=True):
            if at_pole:
                rows = torch.where(index == end, factor * value, rows)
        return rows

    def _components(self, v: Tensor) -> tuple[Tensor, Tensor]:
        if v.ndim < 3 or tuple(v.shape[-3:]) != (2, *self.grid.shape):
            raise ValueError(f"sphere: found a vector of shape {tuple(v.shape)}, wanted (…, 2, *{self.grid.shape})")
        east, north = v.unbind(dim=-3)
        return east, north

    def _check(self, f: Tensor) -> None:
        if tuple(f.shape[-2:]) != self.grid.shape:
            raise ValueError(f"sphere: found a field of shape {tuple(f.shape)}, wanted (…, *{self.grid.shape})")


def _radians(axis: Axis) -> Axis:
    return Axis(axis.name, tuple(math.radians(x) for x in axis.coordinates), "rad", axis.periodic)


def _zonal(f: Tensor) -> Tensor:
    """Mean over a row: at a pole, what all its nodes share."""
    return f.mean(dim=-1, keepdim=True)
