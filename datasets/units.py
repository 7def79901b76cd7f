"""Units of measurement: are two spellings the same, and if not, what converts one into the other.

A small reader of UDUNITS-like text ("m s-1", "m/s", "m**2 s**-2", "kg m^-3", "hPa", "degC"): each factor
is a known unit, perhaps with an SI prefix, to an integer power; the result is a scale, an offset and the
exponents of (m, kg, s, K, mol, A, rad). Temperatures have an offset only when they stand alone. What it
does not know it leaves to pint where that is installed. Definitions: BIPM, The International System of
Units (SI), 9th edition.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xarray as xr

__all__ = ["Conversion", "conversion", "stated_units", "stripped"]

Exponents = tuple[int, ...]
_NONE: Exponents = (0, 0, 0, 0, 0, 0, 0)


_KEYS = ("units", "Units", "unit", "Unit")


@dataclass(frozen=True)
class Conversion:
    """wanted = scale · found + offset."""

    scale: float
    offset: float

    @property
    def identity(self) -> bool:
        """Whether nothing has to be done."""
        return self.scale == 1.0 and self.offset == 0.0


@dataclass(frozen=True)
class _Unit:
    scale: float
    exponents: Exponents
    offset: float = 0.0


def _base(index: int) -> Exponents:
    return tuple(int(i == index) for i in range(7))


_M, _KG, _S, _K, _MOL, _A, _RAD = (_base(i) for i in range(7))


def _power(m: int = 0, kg: int = 0, s: int = 0, k: int = 0) -> Exponents:
    return (m, kg, s, k, 0, 0, 0)


_PREFIXED = {
    "m": _Unit(1.0, _M),
    "metre": _Unit(1.0, _M),
    "meter": _Unit(1.0, _M),
    "g": _Unit(1e-3, _KG),
    "gram": _Unit(1e-3, _KG),
    "s": _Unit(1.0, _S),
    "sec": _Unit(1.0, _S),
    "second": _Unit(1.0, _S),
    "K": _Unit(1.0, _K),
    "mol": _Unit(1.0, _MOL),
    "A": _Unit(1.0, _A),
    "Hz": _Unit(1.0, _power(s=-1)),
    "N": _Unit(1.0, _power(m=1, kg=1, s=-2)),
    "Pa": _Unit(1.0, _power(m=-1, kg=1, s=-2)),
    "pascal": _Unit(1.0, _power(m=-1, kg=1, s=-2)),
    "bar": _Unit(1e5, _power(m=-1, kg=1, s=-2)),
    "J": _Unit(1.0, _power(m=2, kg=1, s=-2)),
    "W": _Unit(1.0, _power(m=2, kg=1, s=-3)),
    "l": _Unit(1e-3, _power(m=3)),
    "L": _Unit(1e-3, _power(m=3)),
}
_PLAIN = {
    "1": _Unit(1.0, _NONE),
    "-": _Unit(1.0, _NONE),
    "dimensionless": _Unit(1.0, _NONE),
    "%": _Unit(1e-2, _NONE),
    "percent": _Unit(1e-2, _NONE),
    "degK": _Unit(1.0, _K),
    "deg_K": _Unit(1.0, _K),
    "kelvin": _Unit(1.0, _K),
    "Kelvin": _Unit(1.0, _K),
    "degC": _Unit(1.0, _K, 273.15),
    "deg_C": _Unit(1.0, _K, 273.15),
    "°C": _Unit(1.0, _K, 273.15),
    "C": _Unit(1.0, _K, 273.15),
    "celsius": _Unit(1.0, _K, 273.15),
    "Celsius": _Unit(1.0, _K, 273.15),
    "degree_Celsius": _Unit(1.0, _K, 273.15),
    "degrees_Celsius": _Unit(1.0, _K, 273.15),
    "degree_C": _Unit(1.0, _K, 273.15),
    "degrees_C": _Unit(1.0, _K, 273.15),
    "degF": _Unit(5 / 9, _K, 459.67 * 5 / 9),
    "°F": _Unit(5 / 9, _K, 459.67 * 5 / 9),
    "fahrenheit": _Unit(5 / 9, _K, 459.67 * 5 / 9),
    "min": _Unit(60.0, _S),
    "minute": _Unit(60.0, _S),
    "minutes": _Unit(60.0, _S),
    "h": _Unit(3600.0, _S),
    "hr": _Unit(3600.0, _S),
    "hour": _Unit(3600.0, _S),
    "hours": _Unit(3600.0, _S),
    "d": _Unit(86400.0, _S),
    "day": _Unit(86400.0, _S),
    "days": _Unit(86400.0, _S),
    "rad": _Unit(1.0, _RAD),
    "radian": _Unit(1.0, _RAD),
    "radians": _Unit(1.0, _RAD),
    "deg": _Unit(math.pi / 180, _RAD),
    "degree": _Unit(math.pi / 180, _RAD),
    "degrees": _Unit(math.pi / 180, _RAD),
    "knot": _Unit(1852 / 3600, _power(m=1, s=-1)),
    "knots": _Unit(1852 / 3600, _power(m=1, s=-1)),
    "kt": _Unit(1852 / 3600, _power(m=1, s=-1)),
    "ft": _Unit(0.3048, _M),
    "atm": _Unit(101325.0, _power(m=-1, kg=1, s=-2)),
    "mb": _Unit(100.0, _power(m=-1, kg=1, s=-2)),
    "gpm": _Unit(1.0, _M),
}
_PREFIX = {
    "nano": 1e-9,
    "micro": 1e-6,
    "milli": 1e-3,
    "centi": 1e-2,
    "deci": 1e-1,
    "hecto": 1e2,
    "kilo": 1e3,
    "mega": 1e6,
    "giga": 1e9,
    "n": 1e-9,
    "u": 1e-6,
    "µ": 1e-6,
    "μ": 1e-6,
    "m": 1e-3,
    "c": 1e-2,
    "d": 1e-1,
    "h": 1e2,
    "k": 1e3,
    "M": 1e6,
    "G": 1e9,
}
_FACTOR = re.compile(r"(?P<name>[^\W\d]\w*?|%|°[CF]|1|-)(?:(?:\*\*|\^)?(?P<power>[+-]?\d+))?$")


def conversion(found: str, wanted: str) -> Conversion | None:
    """What turns numbers in `found` into `wanted`; None where nothing does, or one of them is unknown.

    >>> conversion("degC", "K")
    Conversion(scale=1.0, offset=273.15)
    >>> conversion("m**2 s**-2", "m2/s2").identity
    True
    >>> conversion("m", "s") is None
    True
    """
    if found.strip() == wanted.strip():
        return Conversion(1.0, 0.0)
    a, b = _read(found), _read(wanted)
    if a is None or b is None:
        return _by_pint(found, wanted)
    if a.exponents != b.exponents:
        return None
    scale, offset = a.scale / b.scale, (a.offset - b.offset) / b.scale
    # 1e-3/1e-3 style rounding must not turn equal units into a rescaling of all data.
    return Conversion(1.0 if math.isclose(scale, 1.0, rel_tol=1e-12) else scale, round(offset, 10))


def stated_units(array: xr.DataArray) -> tuple[str | None, str | None]:
    """Units a variable states, and a note where it does so under another name than CF's `units`."""
    for key in _KEYS:
        value = array.attrs.get(key)
        if isinstance(value, str) and value.strip():
            return (
                value.strip(),
                None if key == "units" else f"units of {array.name} read from its attribute {key!r}",
            )
    return None, None


def stripped(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes without any statement of units."""
    return {k: v for k, v in attrs.items() if k not in _KEYS}


def _read(text: str) -> _Unit | None:
    """A product of powers; everything after one "/" up to the next separator is in the denominator."""
    words = re.sub(r"\s*/\s*", " /", text.strip().replace("·", " ").replace(".", " "))
    words = re.sub(r"(?<!\*)\*(?!\*)", " ", words)
    unit = _Unit(1.0, _NONE)
    factors = words.split()
    if not factors:
        return None
    for factor in factors:
        sign = -1 if factor.startswith("/") else 1
        match = _FACTOR.fullmatch(factor.removeprefix("/"))
        known = _known(match["name"]) if match else None
        if match is None or known is None:
            return None
        power = sign * int(match["power"] or 1)
        exponents = tuple(a + power * b for a, b in zip(unit.exponents, known.exponents, strict=True))
        offset = known.offset if len(factors) == 1 and power == 1 else 0.0
        unit = _Unit(unit.scale * known.scale**power, exponents, offset)
    return unit


def _known(name: str) -> _Unit | None:
    for text in (name, name.removesuffix("s") if len(name) > 3 else name):
        if text in _PLAIN:
            return _PLAIN[text]
        if text in _PREFIXED:
            return _PREFIXED[text]
        for prefix, factor in _PREFIX.items():
            unit = _PREFIXED.get(text.removeprefix(prefix)) if text.startswith(prefix) else None
            if unit is not None:
                return _Unit(unit.scale * factor, unit.exponents)
    return None


def _by_pint(found: str, wanted: str) -> Conversion | None:
    try:
        import cf_xarray.units
    except ImportError:
        return None
    registry: Any = cf_xarray.units.units
    try:
        zero = registry.Quantity(0.0, found).to(wanted).magnitude
        one = registry.Quantity(1.0, found).to(wanted).magnitude
    except Exception:  # pint raises many kinds, some from its parser: they all mean "not convertible"
        return None
    return Conversion(float(one - zero), float(zero))
