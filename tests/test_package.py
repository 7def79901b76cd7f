"""Packages: exact round trips, and a clear refusal of whatever is not what it says."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lapse
from lapse.surrogate.model import Model
from lapse.surrogate.package import SHIPPED, PackageError, build, load, shipped


@pytest.fixture
def package(tiny_model: Model, tmp_path: Path) -> Path:
    return tiny_model.save(tmp_path / "tiny")


def edit(package: Path, file: str = "config.json", **changes: Any) -> None:
    data = json.loads((package / file).read_text())
    for key, value in changes.items():
        *path, last = key.split("__")
        inner = data
        for name in path:
            inner = inner[name]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    (package / file).write_text(json.dumps(data))


def test_round_trip_is_exact(tiny_model: Model, package: Path, analyses: xr.Dataset) -> None:
    model = load(package)
    theirs = model.emulator.state_dict()
    for name, weights in tiny_model.emulator.state_dict().items():
        assert torch.equal(theirs[name], weights) and theirs[name].dtype == weights.dtype, name
    assert theirs.keys() == tiny_model.emulator.state_dict().keys()
    assert model.spec == tiny_model.spec and model.card == tiny_model.card and model.name == "tiny"
    assert not model.emulator.training
    before, after = (m.forecast(analyses, 2, 5, progress=False) for m in (tiny_model, model))
    assert np.array_equal(before["vorticity"], after["vorticity"])
    again = model.save(package.parent / "again")
    for file in ("model.safetensors", "spec.json", "README.md", "config.json"):
        assert (again / file).read_bytes() == (package / file).read_bytes()


def test_the_hash_is_that_of_the_weights_and_travels(package: Path, analyses: xr.Dataset) -> None:
    digest = hashlib.sha256((package / "model.safetensors").read_bytes()).hexdigest()
    fc = load(package).forecast(analyses, 1, 1, progress=False)
    assert fc.attrs["source"].endswith(f"sha256:{digest}")


def test_a_package_holds_no_code(package: Path) -> None:
    assert sorted(p.name for p in package.iterdir()) == ["README.md", "config.json", "model.safetensors", "spec.json"]
    for file in package.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError)):
            pickle.loads(file.read_bytes())
    config = (package / "config.json").read_text()
    assert "_target_" not in config and "lapse.surrogate" not in config


def test_a_training_folder_stands_for_its_model(tiny_model: Model, tmp_path: Path) -> None:
    tiny_model.save(tmp_path / "run" / "model")
    assert load(tmp_path / "run").name == "tiny"


def test_changed_weights_are_refused(package: Path) -> None:
    weights = bytearray((package / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (package / "model.safetensors").write_bytes(bytes(weights))
    with pytest.raises(PackageError, match=r"found sha256 \w{12}…, wanted \w{12}…; the file was changed or cut short"):
        load(package)


@pytest.mark.parametrize("file", ["config.json", "spec.json", "model.safetensors"])
def test_a_missing_file_is_named(package: Path, file: str) -> None:
    (package / file).unlink()
    with pytest.raises(PackageError, match=f"found no {file}"):
        load(package)


def test_a_missing_card_is_no_harm(package: Path) -> None:
    (package / "README.md").unlink()
    assert load(package).card == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "found format_version 2, wanted 1; it was written by lapse 0"),
        ({"format_version": None}, "found format_version None, wanted 1"),
        ({"autoencoder__network": "os.system"}, "unknown autoencoder 'os.system'; known: convolutional, identity"),
        ({"autoencoder__heads": ["mean", "magic"]}, "magic"),
        ({"autoencoder__network": None}, "no entry 'network'"),
        ({"emulator__sampler": "rk9"}, "found sampler 'rk9', wanted one of euler"),
        ({"emulator__layers": 3}, "unexpected keyword argument 'layers'"),
        ({"emulator__width": 16}, "the weights are not those of config.json"),
        ({"sha256": None}, "found no sha256"),
        ({"name": None}, "found no name"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(package: Path, changes: dict[str, Any], message: str) -> None:
    edit(package, **changes)
    with pytest.raises(PackageError, match=message):
        load(package)


def test_damaged_json_and_spec_are_named(package: Path) -> None:
    text = (package / "spec.json").read_text()
    edit(package, "spec.json", grid=None)
    with pytest.raises(PackageError, match=r"spec\.json: not a spec"):
        load(package)
    (package / "spec.json").write_text(text[:50])
    with pytest.raises(PackageError, match=r"spec\.json: not JSON"):
        load(package)
    (package / "spec.json").write_text("[1]")
    with pytest.raises(PackageError, match="found list, wanted an object"):
        load(package)


def test_unknown_names_list_the_shipped_ones() -> None:
    with pytest.raises(PackageError, match="no model 'kolmogorv': found no such directory; shipped models are"):
        load("kolmogorv")


def test_latents_know_their_model(tiny_model: Model, package: Path, analyses: xr.Dataset) -> None:
    model = load(package)
    latents = model.encode(analyses)
    assert latents["latent"].dims == ("time", "channel", "latent_y", "latent_x")
    assert np.allclose(latents["carried"][:, 0], analyses["vorticity"].mean(("y", "x")), atol=1e-6)
    fields = model.decode(latents)
    xr.testing.assert_equal(fields, model.reconstruction(analyses))
    assert np.allclose(fields["vorticity"].mean(("y", "x")), analyses["vorticity"].mean(("y", "x")), atol=1e-6)
    with pytest.raises(ValueError, match="not from tiny sha256:unsaved"):
        tiny_model.decode(latents)


def test_a_config_builds_the_same_shapes(tiny_model: Model) -> None:
    fresh = build(tiny_model.spec, tiny_model.config)
    shapes = {k: v.shape for k, v in fresh.state_dict().items()}
    assert shapes == {k: v.shape for k, v in tiny_model.emulator.state_dict().items()}


@pytest.mark.parametrize("name", shipped())
def test_shipped_models_open(name: str) -> None:
    model = lapse.load(name)
    assert model.name == name and model.card.startswith(f"# {name}")
    assert sum(p.stat().st_size for p in (SHIPPED / name).iterdir()) < 30e6
