"""Integers as numbers: packed ones by their scale_factor, add_offset and _FillValue (CF conventions 8.1),
others cast.

xarray unpacks on opening; this is for Datasets that were opened with mask_and_scale=False, or made from
integers.
"""

import numpy as np
import xarray as xr

__all__ = ["unpacked"]

_PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value")


def unpacked(array: xr.DataArray) -> tuple[xr.DataArray, str | None]:
    """An integer array as float64, lazily, and a note of what was done; any other array as it is."""
    if array.dtype.kind not in "iu":
        return array, None
    packing = {k: array.attrs[k] for k in _PACKING if k in array.attrs}
    numbers = array.astype(np.float64)
    for key in ("_FillValue", "missing_value"):
        if key in packing:
            numbers = numbers.where(array != packing[key])
    if packing:
        numbers = numbers * packing.get("scale_factor", 1.0) + packing.get("add_offset", 0.0)
    attrs = {k: v for k, v in array.attrs.items() if k not in packing}
    return numbers.assign_attrs(attrs), f"{array.name} {'unpacked' if packing else 'cast'} from {array.dtype}"
