"""Every choice of every config group composes, is plain numbers, and builds what it names."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from hydra.errors import HydraException

from lapse.autoencoder.heads import HEADS
from lapse.datasets.spec import FieldSpec, Variable
from lapse.physics.grid import Grid
from lapse.surrogate.emulator import Emulator
from lapse.surrogate.package import build
from lapse.surrogate.sampler import SAMPLERS
from lapse.surrogate.stages import STAGES
from lapse.surrogate.train import compose

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
CHOICES = [(p.parent.name, p.stem) for p in FILES if p.parent != CONFIGS]
DATA = "data.path=somewhere.zarr"


@functools.cache
def chosen(group: str, choice: str) -> dict[str, Any]:
    return compose([f"{group}={choice}", *([DATA] if group != "experiment" else [])])


def leaves(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return [(str(k), v) for k, v in node.items()] + [leaf for v in node.values() for leaf in leaves(v)]
    return [leaf for v in node for leaf in leaves(v)] if isinstance(node, list) else []


def test_there_are_the_groups_that_the_documents_name() -> None:
    assert {g for g, _ in CHOICES} == {"autoencoder", "data", "emulator", "experiment", "trainer", "training"}
    assert {c for g, c in CHOICES if g == "trainer"} == {"cpu", "gpu", "ddp", "slurm"}
    assert {c for g, c in CHOICES if g == "autoencoder"} == {"convolutional", "identity"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_configs_are_numbers_not_code(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text and "!!python" not in text
    for key, value in leaves(yaml.safe_load(text)):
        assert not key.startswith("_"), key
        assert not (isinstance(value, str) and value.startswith("lapse.")), (key, value)
        assert isinstance(value, int | float | str | bool | list | dict | None), (key, value)


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_composes(group: str, choice: str) -> None:
    config = chosen(group, choice)
    assert set(config) == {"name", "out", "seed", "data", "autoencoder", "emulator", "training", "trainer"}


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] in ("autoencoder", "emulator", "experiment")])
def test_networks_are_built_as_configured(group: str, choice: str) -> None:
    config = chosen(group, choice)
    spec = FieldSpec((Variable("q", "1"),), Grid.periodic_box(16), 1.0, "s")
    emulator = build(spec, {"normaliser": {}, "autoencoder": config["autoencoder"],
                            "emulator": {"calendar": False, **config["emulator"]}})  # fmt: skip
    assert isinstance(emulator, Emulator)
    assert emulator.history == config["emulator"]["history"] and emulator.sampler in SAMPLERS
    u = torch.randn(1, emulator.history, 1, 16, 16)
    state = emulator.encode(u)
    for mode in emulator.modes:
        noise = torch.randn(1, emulator.noise_size(mode))
        assert emulator.decode(emulator.advance(state, noise, mode=mode)).isfinite().all()


@pytest.mark.parametrize(("group", "choice"), [c for c in CHOICES if c[0] in ("training", "experiment")])
def test_stages_have_what_they_ask_for(group: str, choice: str) -> None:
    training = chosen(group, choice)["training"]
    assert set(training["stages"]) <= set(STAGES)
    needs = {"autoencoder": {"noise"}, "mean": {"unroll"}, "generator": {"context_noise"},
             "fast": {"unroll", "members", "scales", "alpha"}}  # fmt: skip
    for name in STAGES:
        options = training[name]
        assert {"steps", "batch", "lr", "cpu_minutes"} | needs.get(name, set()) <= set(options), name
        assert options["steps"] >= 1 and options["batch"] >= 1 and 0 < options["lr"] < 1
        begins = [share for share, *_ in options.get("unroll", [[0.0, 1]])]
        assert begins[0] == 0 and begins == sorted(begins) and begins[-1] < 1
    assert 0 < training["ema"] < 1 and training["every"] >= 1
    assert training["fast"]["members"] >= 2 and 0 <= training["fast"]["alpha"] <= 1


@pytest.mark.parametrize("choice", [c for g, c in CHOICES if g == "trainer"])
def test_trainers_are_keyword_arguments_of_lightning(choice: str) -> None:
    options = chosen("trainer", choice)["trainer"]
    inspect.signature(lightning.Trainer.__init__).bind(None, **options)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    if options["accelerator"] == "gpu" and not torch.cuda.is_available():
        options = {**options, "accelerator": "cpu", "devices": 1, "precision": "32-true"}
    assert lightning.Trainer(**options, **quiet)
    assert options.get("strategy") != "ddp" or options["use_distributed_sampler"] is False


def test_slurm_asks_its_environment_for_the_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "3")
    assert compose([DATA, "trainer=slurm"])["trainer"]["num_nodes"] == 3
    monkeypatch.delenv("SLURM_NNODES")
    assert compose([DATA, "trainer=slurm"])["trainer"]["num_nodes"] == 1


@pytest.mark.parametrize("name", [c for g, c in CHOICES if g == "experiment"])
def test_an_experiment_is_whole(name: str) -> None:
    """One word on the command line says where its data is and what it is called; the rest can still be overridden."""
    config = chosen("experiment", name)
    assert config["data"]["path"] and config["name"] != "model" and config["out"] == f"runs/{config['name']}"
    assert config["data"]["heads"] == "auto" or set(config["data"]["heads"]) <= set(HEADS)
    assert sum(config["data"]["fractions"]) == pytest.approx(1)
    changed = compose([f"experiment={name}", "training.mean.lr=0.5", "seed=9", "out=elsewhere"])
    assert (changed["training"]["mean"]["lr"], changed["seed"], changed["out"]) == (0.5, 9, "elsewhere")


@pytest.mark.parametrize(
    "typo",
    ["training.mean.stepz=3", "autoencoders=identity", "autoencoder=magic", "data.pth=x", "experiment=none"],
)
def test_a_typo_is_an_error(typo: str) -> None:
    with pytest.raises(HydraException):
        compose([DATA, typo])


def test_data_is_the_one_thing_that_must_be_said() -> None:
    with pytest.raises(Exception, match=r"data\.path"):
        compose()
    config = compose([DATA])
    assert config["data"]["path"] == "somewhere.zarr" and config["trainer"]["accelerator"] == "cpu"
