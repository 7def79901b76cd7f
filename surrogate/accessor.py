"""``ds.lapse``: the functions of lapse as methods of a Dataset. Sugar, without any state.

    ds.lapse.forecast(model, steps=40, members=32)      is      model.forecast(ds, steps=40, members=32)
    ds.lapse.score(truth)                               is      lapse.score(ds, truth)
    ds.lapse.diagnose("kolmogorov", viscosity=0.012)    is      lapse.diagnose(ds, "kolmogorov", viscosity=0.012)

A model is a `Model`, the name of a shipped one, or a directory; a name is loaded anew at every call, hence load a model
that is used more than once. `import lapse` registers the accessor (see `registration`).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

if TYPE_CHECKING:
    from ..physics.equation import Equation
    from .layouts import Layout
    from .model import Model
    from .targets import Objective

__all__ = ["Accessor"]


@xr.register_dataset_accessor("lapse")  # type: ignore[no-untyped-call]
class Accessor:
    """Methods of lapse on a Dataset."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def forecast(self, model: "Model | str | Path", steps: int, members: int = 32, **options: Any) -> xr.Dataset:
        """An ensemble forecast from these analyses; ``options`` as for `Model.forecast`."""
        return _model(model).forecast(self._ds, steps, members, **options)

    def design(self, model: "Model | str | Path", objective: "Objective", steps: int, **options: Any) -> xr.Dataset:
        """The initial condition near this one with the best objective; ``options`` as for `Model.design`."""
        return _model(model).design(self._ds, objective, steps, **options)

    def designs(self, model: "Model | str | Path", objective: "Objective", steps: int, **options: Any) -> xr.Dataset:
        """Many initial conditions at this time with a good objective; ``options`` as for `Model.designs`."""
        return _model(model).designs(self._ds, objective, steps, **options)

    def augment(self, model: "Model | str | Path", samples: int = 32, **options: Any) -> xr.Dataset:
        """Samples of complete fields given these, which are sparse or noisy; ``options`` as for `Model.augment`."""
        return _model(model).augment(self._ds, samples, **options)

    def solve(self, model: "Model | str | Path", steps: int, **options: Any) -> xr.Dataset:
        """What the solver of the model's equation makes of these analyses; ``options`` as for `Model.solve`."""
        return _model(model).solve(self._ds, steps, **options)

    def check(self, model: "Model | str | Path", *, members: bool = False) -> xr.Dataset:
        """This Dataset as the model needs it, or a SpecError that names every problem at once."""
        return _model(model).check(self._ds, members=members)

    def encode(self, model: "Model | str | Path") -> xr.Dataset:
        """Latents of every frame."""
        return _model(model).encode(self._ds)

    def decode(self, model: "Model | str | Path") -> xr.Dataset:
        """Fields of these latents, in physical units."""
        return _model(model).decode(self._ds)

    def reconstruction(self, model: "Model | str | Path") -> xr.Dataset:
        """What the model's autoencoder keeps of each frame."""
        return _model(model).reconstruction(self._ds)

    def score(self, truth: xr.Dataset | xr.DataArray, **options: Any) -> xr.Dataset:
        """Scores of this forecast; ``options`` as for `lapse.score`."""
        from .scores import score

        return score(self._ds, truth, **options)

    def score_event(self, truth: xr.Dataset | xr.DataArray, variable: str, **options: Any) -> xr.Dataset:
        """Probabilities of an event against its frequency; ``options`` as for `lapse.score_event`."""
        from .events import score_event

        return score_event(self._ds, truth, variable, **options)

    def diagnose(self, equation: "str | Equation | None" = None, **options: Any) -> xr.Dataset:
        """How well these fields obey a law; ``options`` as for `lapse.diagnose`."""
        from .diagnose import diagnose

        return diagnose(self._ds, equation, **options)

    def to_layout(self, layout: "Layout") -> xr.Dataset:
        """This forecast under the names of "weatherbench", "ecmwf" or "climpred"; see `lapse.surrogate.layouts`."""
        from .layouts import to_layout

        return to_layout(self._ds, layout)

    def report(self, truth: xr.Dataset | None = None, path: str | Path = "report.html", **options: Any) -> Path:
        """Write a page about this forecast; ``options`` as for `lapse.surrogate.report`."""
        from .report import report

        return report(self._ds, truth, path=path, **options)


def _model(model: "Model | str | Path") -> "Model":
    if isinstance(model, str | Path):
        from .package import load

        return load(model)
    return model
