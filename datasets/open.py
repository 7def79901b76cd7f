"""Opening snapshots: zarr v2 and v3, netCDF 3 and 4, one file or many.

A path is one store or file, a list of them, a glob pattern, or a folder of them; many are joined along
time, in the order of their names. What a file is, is read from its first bytes, not from its name. Data
stay on disk: variables are dask arrays in blocks of whole frames, packed integers are unpacked on access,
times become dates in microseconds (datetime64[ns] ends in 2262), or cftime in other calendars. Leads
(`step` in hours, …) become timedelta64; no other variable does, even if its units are seconds.
"""

import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from .frames import with_dates
from .levels import split_dimension
from .names import role_of
from .problem import Problem, SpecError
from .time import DURATIONS

__all__ = ["open_dataset"]

BLOCK = 32 * 2**20
_ZARR = ("zarr.json", ".zgroup", ".zmetadata")
_SIGNATURES = {b"CDF": "netCDF 3", b"\x89HDF": "HDF5", b"GRIB": "GRIB", b"MATLAB": "MATLAB", b"\x93NUMPY": "numpy"}
_OTHERS = {
    "GRIB": "convert it with cfgrib: xr.open_dataset(path, engine='cfgrib').to_netcdf(...)",
    "MATLAB": "scipy.io.loadmat(path), then xr.Dataset({'u': (('time', 'y', 'x'), array)}, coords=...).to_netcdf(...)",
    "numpy": "np.load(path), then xr.Dataset({'u': (('time', 'y', 'x'), array)}, coords=...).to_netcdf(...)",
}


def open_dataset(
    path: str | Path | Sequence[str | Path],
    *,
    variables: Sequence[str] | None = None,
    time_units: str | None = None,
    calendar: str | None = None,
    split: str | None = None,
    concat_dim: str = "time",
    group: str | None = None,
    chunks: Mapping[str, int] | Literal["auto"] | None = "auto",
) -> xr.Dataset:
    """Open snapshots lazily.

    path         zarr store, netCDF file, list, glob pattern, or a folder of files or stores; URLs are
    taken as zarr variables    keep only these (and their coordinates)
    time_units   for times without units: "days since 1900-01-01", or "s" for numeric time; overrides the file
    calendar     of those times ("standard" unless told otherwise)
    split        dimension whose values become variables of their own (pressure levels)
    concat_dim   dimension along which many files are joined; a new one if they do not have it
    group        group inside the file or store
    chunks       dask blocks; "auto": as stored, in whole frames; None: no dask

    Raises FileNotFoundError for a path without files, SpecError for what is neither zarr nor netCDF, for
    files that do not join, and for names that are not there.
    """
    paths = _paths(path)
    decode = time_units is None
    options = {"decode_times": xr.coders.CFDatetimeCoder(time_unit="us") if decode else False, "group": group}
    single = [_open(p, options, chunks) for p in paths]
    ds = single[0] if len(single) == 1 else _joined(single, paths, concat_dim)
    if not ds.data_vars:
        raise SpecError([Problem(str(paths[0]), "no variables", "a field on a grid", "another file, or group=")])
    if variables is not None:
        missing = [v for v in variables if v not in ds.data_vars]
        if missing:
            has = ", ".join(map(str, ds.data_vars))
            raise SpecError(
                [Problem(f"variable {v!r}", "not in the data", f"one of {has}", "variables=") for v in missing]
            )
        ds = ds[list(variables)]
    if time_units is not None:
        ds = _with_time_units(ds, time_units, calendar)
    ds = _with_leads(ds)
    return ds if split is None else split_dimension(ds, split)


def _paths(path: str | Path | Sequence[str | Path]) -> list[str]:
    if not isinstance(path, str | Path):
        found = [p for one in path for p in _paths(one)]
        if not found:
            raise FileNotFoundError("found an empty list of paths; wanted at least one")
        return found
    text = str(path)
    if "://" in text:
        return [text]
    place = Path(text)
    if place.is_dir() and not _is_zarr(place):
        inside = sorted(p for p in place.iterdir() if _is_zarr(p) or p.suffix in (".nc", ".nc4", ".cdf"))
        if not inside:
            listed = ", ".join(sorted(p.name for p in place.iterdir())[:5]) or "nothing"
            raise FileNotFoundError(
                f"found a folder with {listed} at {text}; wanted a zarr store, or a folder of "
                "netCDF files (*.nc) or zarr stores. Usual fix: a glob pattern, 'folder/*.ext'"
            )
        return [str(p) for p in inside]
    if place.exists():
        return [text]
    matches = sorted(glob.glob(text, recursive=True))
    if not matches:
        raise FileNotFoundError(f"found nothing at {text}; wanted a zarr store, a netCDF file, a folder or a pattern")
    return matches


def _is_zarr(place: Path) -> bool:
    return place.is_dir() and any((place / name).exists() for name in _ZARR)


def _open(path: str, options: Mapping[str, Any], chunks: Any) -> xr.Dataset:
    place = Path(path)
    if "://" in path or place.is_dir():
        consolidated = None if "://" in path else _consolidated(place / (options["group"] or ""))
        asked = {} if chunks == "auto" else chunks
        return xr.open_dataset(path, engine="zarr", chunks=asked, consolidated=consolidated, **options)
    start = place.open("rb").read(8)
    kind = next((k for signature, k in _SIGNATURES.items() if start.startswith(signature)), None)
    if kind not in ("netCDF 3", "HDF5"):
        fix = _OTHERS.get(kind or "", "convert it: xr.Dataset(...).to_netcdf('data.nc') or .to_zarr('data.zarr')")
        raise SpecError([Problem(path, f"{kind or 'an unknown kind of'} file", "zarr or netCDF", fix)])
    ds = xr.open_dataset(path, engine="netcdf4", **options)
    if not ds.data_vars or all(str(d).startswith("phony_dim") for d in ds.dims):
        raise SpecError([_plain_hdf5(path, ds, options["group"])])
    return ds if chunks is None else ds.chunk(_blocks(ds) if chunks == "auto" else chunks)


def _consolidated(place: Path) -> bool:
    """Whether the metadata are consolidated; asking xarray to find out costs a warning where they are not."""
    if (place / ".zmetadata").exists():
        return True
    meta = place / "zarr.json"
    return meta.exists() and bool(json.loads(meta.read_text()).get("consolidated_metadata"))


def _blocks(ds: xr.Dataset) -> dict[str, int]:
    """Whole frames, about `BLOCK` bytes of the largest variable, in multiples of the stored chunks."""
    largest = max(ds.data_vars.values(), key=lambda v: v.nbytes)
    if not largest.ndim or largest.dtype.kind not in "iuf":
        return {}
    first = str(largest.dims[0])
    stored = (largest.encoding.get("chunksizes") or (1,))[0]
    frame = max(1, largest.nbytes // max(1, largest.sizes[first]))
    count = max(stored, BLOCK // frame // stored * stored, 1)
    return {first: int(min(count, max(1, largest.sizes[first])))}


def _plain_hdf5(path: str, ds: xr.Dataset, group: str | None) -> Problem:
    import netCDF4

    with netCDF4.Dataset(path) as file:
        groups = ", ".join(file[group].groups if group else file.groups)
    sizes = ", ".join(f"{n} {tuple(v.shape)}" for n, v in ds.data_vars.items())
    found = f"plain HDF5 {f'with the arrays {sizes} and' if sizes else 'with'} no named dimensions"
    fix = "read it with h5py and name the axes: xr.Dataset({'u': (('time', 'y', 'x'), array)}, coords=...).to_netcdf()"
    if groups:
        found += f", groups {groups}"
        fix = f"group= if one of them holds netCDF variables; else {fix}"
    return Problem(path, found, "netCDF 4 or zarr", fix)


def _joined(parts: list[xr.Dataset], paths: list[str], dim: str) -> xr.Dataset:
    names = set(parts[0].data_vars)
    for part, path in zip(parts, paths, strict=True):
        if set(part.data_vars) != names:
            found, wanted = (", ".join(sorted(map(str, v))) for v in (part.data_vars, names))
            raise SpecError([Problem(path, f"variables {found}", f"{wanted}, as in {paths[0]}", "open them apart")])
    try:
        return xr.concat(
            parts,
            dim=dim,
            data_vars="minimal" if dim in parts[0].dims else "all",
            coords="minimal",
            compat="override",
            join="exact",
            combine_attrs="override",
        )
    except ValueError as error:
        wanted = "the same grid and variables in every file"
        fix = "open them apart and regrid, or leave the odd ones out"
        raise SpecError([Problem(f"{len(parts)} files", f"files that do not join ({error})", wanted, fix)]) from error


def _with_time_units(ds: xr.Dataset, units: str, calendar: str | None) -> xr.Dataset:
    times = [str(d) for d in ds.dims if d in ds.coords and role_of(ds, str(d)) == "time"]
    if len(times) != 1:
        found = f"{len(times)} time coordinates among the dimensions {', '.join(map(str, ds.dims))}"
        fix = "FieldSpec.infer(ds, dims={'time': ...}, time_units=...)"
        raise SpecError([Problem("time_units", found, "one, whose units these are", fix)])
    name = times[0]
    bare = ds[name].assign_attrs(units=units)
    if " since " not in units:
        return ds.assign_coords({name: bare})
    dates = with_dates(xr.Dataset(coords={"time": ("time", bare.values, bare.attrs)}), units, calendar)["time"]
    return ds.assign_coords({name: (name, dates.values, dates.attrs)})


def _with_leads(ds: xr.Dataset) -> xr.Dataset:
    """Leads in hours or days as timedelta64; xarray leaves those without a `dtype` attribute as numbers."""
    for dim in map(str, ds.dims):
        if dim not in ds.coords or ds[dim].dtype.kind not in "iuf" or role_of(ds, dim) != "lead_time":
            continue
        seconds = DURATIONS.get(str(ds[dim].attrs.get("units", "")).rstrip("s") + "s")
        if seconds is not None:
            micro = np.round(ds[dim].values.astype(np.float64) * seconds * 1e6).astype(np.int64)
            whole = math.gcd(*micro.tolist(), 10**6) == 10**6
            leads = micro.astype("m8[us]").astype("m8[s]") if whole else micro.astype("m8[us]")
            attrs = {k: v for k, v in ds[dim].attrs.items() if k != "units"}
            ds = ds.assign_coords({dim: (dim, leads, attrs)})
    return ds
