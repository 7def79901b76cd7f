"""Canonical Dataset <-> tensor.

    Dataset: one variable per channel, dims (*leading, *space)    tensor: (*leading, C, *space), float32

A canonical Dataset is what `datasets.check` returns. Under the mask a tensor holds the variable's training
mean (0 where that is not known), a neutral value for whatever looks at it; a Dataset holds NaN.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from ..physics.grid import Axis
from .spec import FieldSpec

__all__ = ["space_coordinates", "to_dataset", "to_tensor"]

_STANDARD_NAMES = {
    "time": "time",
    "init_time": "forecast_reference_time",
    "lead_time": "forecast_period",
    "valid_time": "time",
    "member": "realization",
}
_DIRECTION = {"latitude": "Y", "longitude": "X"}


def to_tensor(ds: xr.Dataset, spec: FieldSpec) -> Tensor:
    """Fields of a canonical Dataset as (*leading, C, *space) float32; leading is usually (T,).

    Cells under a variable's mask get its training mean. NaN elsewhere are kept: finding them is the
    check's job.
    """
    space = spec.grid.names
    channels = []
    for variable in spec.variables:
        array = ds[variable.name]
        leading = [d for d in array.dims if d not in space]
        # A copy: data in memory must not change under its owner when the mask is filled.
        values = np.array(array.transpose(*leading, *space).values, dtype=np.float32)
        mask = spec.masks.get(variable.name)
        if mask is not None:
            values[..., ~mask] = variable.mean or 0.0
        channels.append(values)
    return torch.from_numpy(np.stack(channels, axis=-1 - len(space)))


def to_dataset(
    fields: Tensor,
    spec: FieldSpec,
    dims: Sequence[str] = ("time",),
    coords: Mapping[str, Any] | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Physical fields (*dims, C, *space) as a Dataset in the spec's units, NaN under the masks, float32.

    `dims` names the leading axes, for instance ("init_time", "member", "lead_time"); `coords` are further
    coordinates, as xarray takes them; the spatial ones come from the spec. CF standard names are filled in
    where a coordinate has none. Raises ValueError where the shape does not fit.
    """
    wanted = (*(f"{d}" for d in dims), "variable", *spec.grid.names)
    if fields.ndim != len(wanted) or tuple(fields.shape[len(dims) :]) != spec.shape:
        raise ValueError(
            f"found a tensor of shape {tuple(fields.shape)}; wanted {wanted} with the last "
            f"{len(spec.shape)} axes {spec.shape}. Usual fix: name every leading axis in dims="
        )
    values = fields.detach().to("cpu", torch.float32).numpy()
    data = {}
    for index, variable in enumerate(spec.variables):
        channel = np.array(np.moveaxis(values, len(dims), 0)[index])
        mask = spec.masks.get(variable.name)
        if mask is not None:
            channel[..., ~mask] = np.nan
        names = {
            "units": variable.units,
            "standard_name": variable.standard_name,
            "long_name": variable.long_name,
        }
        data[variable.name] = (
            (*dims, *spec.grid.names),
            channel,
            {k: v for k, v in names.items() if v is not None},
        )
    ds = xr.Dataset(data, coords={**space_coordinates(spec), **(coords or {})}, attrs=dict(attrs or {}))
    for name, standard_name in _STANDARD_NAMES.items():
        if name in ds.coords:
            ds[name].attrs.setdefault("standard_name", standard_name)
    return ds


def space_coordinates(spec: FieldSpec) -> dict[str, xr.DataArray]:
    """The grid's coordinates with CF attributes, float64, ready for `xr.Dataset(coords=…)`."""
    return {axis.name: _coordinate(axis) for axis in spec.grid.axes}


def _coordinate(axis: Axis) -> xr.DataArray:
    attrs: dict[str, Any] = {"units": axis.units}
    if axis.kind in _DIRECTION:
        attrs |= {"standard_name": axis.kind, "axis": _DIRECTION[axis.kind]}
    if axis.periodic:
        # CF has no word for it; an attribute of ours saves the question when the file comes back as
        # training data.
        attrs["periodic"] = "true"
    return xr.DataArray(np.array(axis.coordinates), dims=axis.name, attrs=attrs)
