"""A dimension whose every value becomes a variable of its own: u(level=500) -> u_500."""

from collections.abc import Hashable

import xarray as xr

from .problem import Problem, SpecError

__all__ = ["split_dimension"]


def split_dimension(ds: xr.Dataset, dim: str) -> xr.Dataset:
    """Replace every variable along `dim` by one variable for each of its values, named NAME_VALUE.

    Variables without it stay as they are. Lazy arrays stay lazy. Raises SpecError where there is no such
    dimension.
    """
    if dim not in ds.dims:
        raise SpecError(
            [
                Problem(
                    f"dimension {dim!r}",
                    "no such dimension",
                    f"one of {', '.join(map(str, ds.dims))}",
                    "correct split=",
                )
            ]
        )
    labels = ds[dim].values if dim in ds.coords else range(ds.sizes[dim])
    units = ds[dim].attrs.get("units", "") if dim in ds.coords else ""
    data: dict[Hashable, xr.DataArray] = {}
    for name, array in ds.data_vars.items():
        if dim not in array.dims:
            data[name] = array
            continue
        for index, label in enumerate(labels):
            text = f"{label:g}" if isinstance(label, int | float) or hasattr(label, "dtype") else str(label)
            one = array.isel({dim: index}, drop=True)
            one.attrs["long_name"] = f"{array.attrs.get('long_name', name)} at {dim} {text} {units}".rstrip()
            data[f"{name}_{text}"] = one
    rest = [name for name, c in ds.coords.items() if dim not in c.dims]
    return xr.Dataset(data, coords={name: ds.coords[name] for name in rest}, attrs=ds.attrs)
