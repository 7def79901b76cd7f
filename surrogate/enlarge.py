"""Trajectories that a model makes from given starts, as a Dataset that can be trained on.

They are forecasts, cut loose from their starts: ``(trajectory, time, *space)``, like what `simulate` writes. A
coordinate ``generated (trajectory,)`` is 1 for all of them, and stays with them when they are joined to real data; a
training that must not use them selects ``ds.isel(trajectory=ds.generated == 0)`` (real data have no such coordinate:
give them one of noughts first). A student learns its teacher's errors along with the rest.
"""

from typing import TYPE_CHECKING

import numpy as np
import xarray as xr

from ..datasets.fields import space_coordinates
from ..datasets.problem import Problem, SpecError
from ..datasets.time import lead_coordinate
from .emulator import Mode

if TYPE_CHECKING:
    from .model import Model

__all__ = ["enlarge"]


def enlarge(
    model: "Model", ds: xr.Dataset | xr.DataArray, samples: int, *, steps: int | None, mode: Mode, seed: int,
    progress: bool,
) -> xr.Dataset:  # fmt: skip
    """``samples`` trajectories of ``steps`` frames, the starts (which are data) left out.

    Starts are frames of ``ds`` in random order, each used once before any is used again. With a calendar all
    trajectories share their times, hence the last frame is the only start.

    Returns:
        Dataset over ``(trajectory, time, *space)``. Numeric times are those of ``ds``, from its first on, whatever the
        ``start_time``, so that the trajectories can be joined to those that ``ds`` is one of; a coordinate
        ``trajectory`` counts them if ``ds`` has one.
    """
    from .augment import attributes, generated

    whole = model.check(ds, members=True)
    if other := [d for d in ("trajectory", "member") if d in whole.dims]:
        found, fix = (
            f"{whole.sizes[other[0]]} along {other[0]!r}",
            f"choose: ds.isel({other[0]}=0), and join the results",
        )
        raise SpecError([Problem(f"dimension {other[0]!r}", found, "one series of frames", fix)])
    history, times = model.emulator.history, whole["time"].values
    steps = steps or max(1, len(times) - history)
    usable = times[history - 1 :]
    if model.spec.calendar is None:
        count = min(samples, len(usable))
        starts = usable[np.random.default_rng(seed).permutation(len(usable))[:count]]
    else:
        count, starts = 1, usable[-1:]
    members = -(-samples // count)
    fc = model.forecast(whole, steps, members, init_times=starts, mode=mode, seed=seed, progress=progress)
    spec = model.spec
    # Member by member over all starts, so that more samples begin with these.
    flat = fc.stack(trajectory=("member", "init_time"), create_index=False).isel(trajectory=slice(0, samples))
    leads = lead_coordinate(spec, steps)
    if spec.calendar is None:
        beyond = times[-1] + leads.values[: max(0, steps - len(times))]
        time = xr.DataArray(np.concatenate([times[:steps], beyond]), dims="time", attrs=whole["time"].attrs)
    else:
        time = xr.DataArray(fc["valid_time"].values[0], dims="time", attrs={"standard_name": "time"})
    order = ("trajectory", "time", *spec.grid.names)
    data = {n: flat[n].rename(lead_time="time").transpose(*order) for n in spec.names}
    blown = flat["valid"].values == 0
    out = xr.Dataset({n: (order, v.values, v.attrs) for n, v in data.items()})
    out = out.assign_coords(
        {
            "time": time,
            **space_coordinates(spec),
            "start_time": ("trajectory", np.asarray(flat["init_time"].values), dict(whole["time"].attrs)),
            "generated": generated("trajectory", out.sizes["trajectory"]),
        }
    )
    out = out.isel(trajectory=np.flatnonzero(~blown))  # `forecast` has warned of them, and nobody trains on NaN
    if "trajectory" in ds.coords:
        out = out.assign_coords(trajectory=np.arange(out.sizes["trajectory"]))
    what = f"{out.sizes['trajectory']} trajectories of {steps} frames"
    out = out.assign_attrs(attributes(model, str(whole.attrs.get("history", "")), what, seed))
    return out.assign_attrs(
        title=f"{what} made by {model.name}", lapse_mode=mode,
        lapse_input_fingerprint=fc.attrs["lapse_input_fingerprint"],
    )  # fmt: skip
