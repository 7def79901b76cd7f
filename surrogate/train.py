"""Training from a config: data in, a released model out.

The config is what `configs/` composes: plain numbers. Each stage writes its checkpoints under ``out/<stage>`` and is
resumed from there; a finished stage is not run again. The last act is the package with its measured card; of several
ranks the first does it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from tqdm import tqdm

from ..datasets.datamodule import FieldData
from ..datasets.open import open_dataset
from ..datasets.spec import FieldSpec
from .card import write_card
from .certificate import training_certificate
from .climate import training_climate
from .emulator import Emulator
from .model import Model
from .package import build
from .stages import STAGES, Shift, run_stage

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["compose", "train"]


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config that hydra composes from `lapse.configs` and command-line overrides, resolved to plain values."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from omegaconf import OmegaConf

    with initialize_config_module("lapse.configs", version_base="1.3"):
        config = OmegaConf.to_container(hydra_compose("train", list(overrides)), resolve=True, throw_on_missing=True)
    if not isinstance(config, dict):
        raise TypeError("a training config is a mapping")
    return {str(k): v for k, v in config.items()}


def train(config: Mapping[str, Any], progress: bool = True) -> Model:
    """Train every stage of ``config["training"]["stages"]`` and write the package to ``out/model``.

    Arguments:
        config: as `compose` gives it.
        progress: show progress bars.

    Raises SpecError for data that does not say what it is, ValueError for a config that contradicts itself.
    """
    training, out = dict(config["training"]), Path(config["out"])
    unknown = [s for s in training["stages"] if s not in STAGES]
    if unknown:
        raise ValueError(f"unknown stages {unknown}; known: {', '.join(STAGES)}")
    absent = [s for s in training["stages"] if s not in ("autoencoder", *config["emulator"]["parts"])]
    if absent:
        raise ValueError(
            f"training.stages: found {', '.join(absent)}, wanted parts of the model, which are "
            f"{', '.join(config['emulator']['parts'])}. Usual fix: leave the stage out, or name it in emulator.parts"
        )
    torch.manual_seed(config["seed"])
    data = field_data(config)
    emulator = new_emulator(config, data)
    trainer = {**config["trainer"], "enable_progress_bar": progress}
    shift = shifts(config, data.spec)
    records = []
    for index, name in enumerate(training["stages"]):
        if progress:
            minutes = training[name].get("cpu_minutes")
            budget = f"{training[name]['steps']} steps" if minutes is None else f"{minutes:g} CPU minutes"
            tqdm.write(f"stage {index + 1} of {len(training['stages'])}: {name}, {budget}")
        seed = config["seed"] + index
        records.append(
            run_stage(
                name, emulator, training[name], data, out / name, trainer,
                shift=shift(seed), seed=seed, ema=training["ema"], every=training["every"],
            )
        )  # fmt: skip
    model = Model(emulator.eval(), config["name"], package_config(config, emulator, records))
    if getattr(rank_zero_only, "rank", 0) == 0:
        data.trainer = None  # whose ranks would share the windows that the card is measured on
        model.card = write_card(model, data, records)
        certificate = training_certificate(model, data, **training["certificate"])
        if certificate is not None:
            model.certificates[certificate.mode] = certificate
            model.card += "\n".join(["", *certificate.lines()])
        model.climate = training_climate(emulator, data, shift=config["data"]["shift"])
        model.save(out / "model")
    return model


def field_data(config: Mapping[str, Any]) -> FieldData:
    """The data of a config, set up: spec known, normaliser fitted on the training split."""
    options = config["data"]
    dated = " since " in (options["time_units"] or "")
    opening = {k: options[k] for k in ("time_units", "calendar") if dated and options[k] is not None}
    given = ("variables", "dims", "periodic", "kinds", "split", "equation", "units", "interval")
    infer = {k: options[k] for k in given if options[k] is not None}
    if options["time_units"] is not None and not dated:
        infer["time_units"] = options["time_units"]
    n_year, n_day = options["climatology"] if options["climatology"] != "auto" else (0, 0)
    if options["climatology"] == "auto":
        ds = open_dataset(options["path"], **opening)
        n_year, n_day = _cycles(FieldSpec.infer(ds, **infer), ds)
    data = FieldData(
        options["path"], 1, 1, infer=infer, open=opening, fractions=tuple(options["fractions"]), by=options["by"],
        n_year=n_year, n_day=n_day, pointwise=options["pointwise"], seed=config["seed"], cache=options["cache"],
        memory=options["memory"], workers=options["workers"],
    )  # fmt: skip
    data.prepare_data()
    data.setup()
    return data


_DAYS = {"seconds": 1 / 86400, "minutes": 1 / 1440, "hours": 1 / 24, "days": 1, "months": 30.4, "years": 365.2}


def _cycles(spec: FieldSpec, ds: "xr.Dataset") -> tuple[int, int]:
    """Harmonics of year and day that a record can determine: none without a calendar, or shorter than a year."""
    if spec.calendar is None:
        return 0, 0
    days = spec.interval * _DAYS[spec.time_units]
    frames = max(n for d, n in ds[spec.names[0]].sizes.items() if d not in spec.grid.names)
    year = 0 if frames * days < 365 or days > 90 else 2
    return year, 0 if days >= 0.5 else 1


def new_emulator(config: Mapping[str, Any], data: FieldData) -> Emulator:
    """Networks with fresh weights for the data of a config, its normaliser in place."""
    from ..autoencoder.heads import suggest_heads

    heads = config["data"]["heads"]
    if heads == "auto":
        u, _ = next(data.frames("train"))
        heads = suggest_heads(data.spec, u[:64]) if config["autoencoder"]["network"] != "identity" else ()
    emulator = build(
        data.spec,
        {
            "normaliser": data.climatology,
            "autoencoder": {**config["autoencoder"], "heads": list(heads)},
            "emulator": {"calendar": data.spec.calendar is not None, **config["emulator"]},
        },
    )
    emulator.autoencoder.normaliser.load_state_dict(data.normaliser.state_dict())
    return emulator


def shifts(config: Mapping[str, Any], spec: FieldSpec) -> Callable[[int], Shift]:
    """Augmentation by shifts along the axes named in ``data.shift``; they must be periodic."""
    cells = dict(config["data"]["shift"] or {})
    for name in cells:
        axis = next((a for a in spec.grid.axes if a.name == name), None)
        if axis is None or not axis.periodic or axis.size % int(cells[name]):
            axes = ", ".join(f"{a.name} ({a.size}, periodic={a.periodic})" for a in spec.grid.axes)
            raise ValueError(
                f"data.shift: {name!r} must be a periodic axis whose size is a multiple of {cells[name]}; "
                f"axes are {axes}"
            )
    steps = [int(cells.get(a.name, 0)) for a in spec.grid.axes]
    return lambda seed: Shift(steps, spec.grid.shape, torch.Generator().manual_seed(seed))


def package_config(
    config: Mapping[str, Any], emulator: Emulator, records: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What `config.json` keeps: how to build the networks, and how they were trained."""
    normaliser = emulator.autoencoder.normaliser
    return {
        "name": config["name"],
        "normaliser": {"n_year": normaliser.n_year, "n_day": normaliser.n_day,
                       "pointwise": normaliser.climatology.shape[0] > 0},
        "autoencoder": dict(emulator.autoencoder.config),
        "emulator": dict(emulator.config),
        "training": {
            "seed": config["seed"],
            "data": {k: v for k, v in config["data"].items() if k != "path"},
            "stages": [
                {"stage": r["stage"], "steps": r["steps"], "cpu_minutes": round(r["cpu_minutes"], 2)} for r in records
            ],
        },
    }  # fmt: skip


def losses(folder: Path) -> dict[str, list[dict[str, float]]]:
    """Loss curves of the finished stages under ``folder``."""
    return {p.parent.name: json.loads(p.read_text())["losses"] for p in sorted(folder.glob("*/record.json"))}
