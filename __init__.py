"""lapse: LAtent Physics SurrogatE.

Calibrated ensemble forecasts from simulation or reanalysis snapshots, as xarray Datasets that carry a measured
statement of how well each member obeys the physics.

    physics/       laws and grids: tensors in, tensors out
    datasets/      fields on disk <-> tensors
    autoencoder/   field <-> latent
    surrogate/     latent dynamics, ensembles, scores, reports, command line

The names below are resolved on first use, so that ``import lapse`` costs milliseconds and loads no network library.
Datasets get their ``ds.lapse`` whichever of lapse and xarray is imported first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .surrogate.registration import register_accessor

if TYPE_CHECKING:
    from .datasets.open import open_dataset as open_dataset
    from .datasets.spec import FieldSpec as FieldSpec
    from .datasets.spec import SpecError as SpecError
    from .surrogate import targets as objectives
    from .surrogate.diagnose import diagnose as diagnose
    from .surrogate.events import score_event as score_event
    from .surrogate.package import load as load
    from .surrogate.scores import score as score

__version__ = "0.1.0"

_HOME = {
    "FieldSpec": ".datasets.spec",
    "SpecError": ".datasets.spec",
    "open_dataset": ".datasets.open",
    "diagnose": ".surrogate.diagnose",
    "load": ".surrogate.package",
    "score": ".surrogate.scores",
    "score_event": ".surrogate.events",
}

__all__ = [
    "FieldSpec", "SpecError", "__version__", "diagnose", "load", "objectives", "open_dataset", "score", "score_event",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "objectives":  # of inverse design
        return import_module(".surrogate.targets", __name__)
    if name in _HOME:
        return getattr(import_module(_HOME[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


if __name__ == "lapse":  # and not the clone's folder, under whose name pytest imports this file a second time
    register_accessor()
