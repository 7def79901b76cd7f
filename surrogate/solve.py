"""The true solver's run from the starts of a forecast: the truth to judge it by, where the equation is known.

A model whose `spec` names one of lapse's equations knows the solver that its data came from. Run from the same
analyses, laid out as the forecast is, its answer can be subtracted, scored and drawn without further ado:

    fc, truth = model.forecast(ds, steps=20), model.solve(ds, steps=20)
    lapse.score(fc, truth, spec=model.spec)

A chaotic flow forgets where it came from: that solver and data agree to round-off says nothing of leads by which
round-off has grown to the size of the flow.
"""

import time
from typing import TYPE_CHECKING, Any

import torch
import xarray as xr

from .. import __version__
from ..datasets.fields import to_dataset
from .job import Job
from .law import law, solved
from .starts import initial_frames

if TYPE_CHECKING:
    from .model import Model

__all__ = ["solve"]

_BATCH = 16  # states solved at once


@torch.no_grad()
def solve(model: "Model", ds: xr.Dataset | xr.DataArray, steps: int, *, init_times: Any = "last") -> xr.Dataset:
    """Run the equation that the model's spec names, with its parameters, from analyses.

    Arguments:
        ds, init_times: as for `forecast`; of the frames of a start only the last is used.
        steps: leads, of one frame interval each.

    Returns:
        Dataset over ``(init_time, lead_time, *space)``, or ``(init_time, member, lead_time, *space)`` where ``ds`` has
        members; in physical units, solved in float64 and kept in float32. The attribute ``lapse_seconds`` is the
        processor time that the solver took.

    Raises SpecError for unfit input, ValueError for a spec without an equation or an equation of other variables.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got steps={steps}")
    spec, solver = model.spec, law(model.spec)
    if set(solver.variables) != set(spec.names):
        raise ValueError(
            f"{spec.equation}: found a model of {', '.join(spec.names)}, wanted one of {', '.join(solver.variables)}. "
            "Usual fix: train on all variables of the equation"
        )
    frames, positions = initial_frames(ds, spec, model.emulator.history, init_times)
    many = "member" in frames.dims
    job = Job(model, frames, positions, steps, frames.sizes["member"] if many else 1, 0)
    u = torch.stack([job.initial(i)[:, -1] for i in range(len(positions))]).flatten(0, 1)
    begin, out = time.process_time(), torch.empty(len(u), steps, *spec.shape)
    for first in range(0, len(u), _BATCH):
        out[first : first + _BATCH] = solved(solver, spec, u[first : first + _BATCH], steps)
    seconds = time.process_time() - begin
    fields = out.reshape(len(positions), job.members, *out.shape[1:])
    leading = ["init_time", "member", "lead_time"]
    coords = {k: v for k, v in job.coordinates().items() if k in (*leading, "valid_time")}
    about = {
        "Conventions": "CF-1.11", "title": f"{solver!r} from given states", "source": f"lapse {__version__} {solver!r}",
        "lapse_input_fingerprint": job.fingerprint, "lapse_seconds": seconds,
    }  # fmt: skip
    result = to_dataset(fields, spec, leading, coords, about)
    return result if many else result.isel(member=0, drop=True)
