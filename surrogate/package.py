"""A released model: a directory without code.

    model.safetensors   the weights, normalisation included
    config.json         sizes and names; every class is looked up in our own registry, none is imported by name
    spec.json           what the fields are
    README.md           the model card, with the measured figures
    climate.safetensors mean and covariance of the training latents, for `augment`; a model may lack it
    certificate.json    bounds of the residual, for certified forecasts; a model may lack it

Nothing is unpickled and nothing is instantiated from a path in a file. The config holds the sha256 of the weights, and
a load that finds others is refused.
"""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..datasets.spec import FieldSpec

if TYPE_CHECKING:
    from .emulator import Emulator
    from .model import Model

__all__ = ["PackageError", "build", "load", "save", "shipped"]

FORMAT_VERSION = 1
SHIPPED = Path(__file__).parent / "models"


class PackageError(ValueError):
    """A directory that is not a released model, or not one that this version can read."""


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(p.parent.name for p in SHIPPED.glob("*/config.json"))


def load(name: str | Path, device: str = "cpu") -> "Model":
    """Open a model that is shipped with the package, or a directory.

    Arguments:
        name: one of `shipped`, or the path of a model or of the output folder of a training.
        device: where the networks live, for instance "cuda".

    Raises PackageError with what was found, what was wanted, and the usual fix.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as load_tensors

    from .certificate import load_certificates
    from .climate import Climate
    from .model import Model

    folder = SHIPPED / str(name) if str(name) in shipped() else Path(name)
    if not folder.is_dir():
        has = ", ".join(shipped()) or "none"
        raise PackageError(f"no model {str(name)!r}: found no such directory; shipped models are {has}")
    if not (folder / "config.json").exists() and (folder / "model" / "config.json").exists():
        folder = folder / "model"
    config = _read(folder / "config.json")
    found = config.get("format_version")
    if found != FORMAT_VERSION:
        raise PackageError(
            f"{folder}: found format_version {found!r}, wanted {FORMAT_VERSION}; it was written by lapse "
            f"{config.get('lapse_version', '?')}, this is {__version__}. Use the version that wrote it, or train again."
        )
    if missing := [k for k in ("name", "sha256") if not isinstance(config.get(k), str)]:
        raise PackageError(f"{folder}/config.json: found no {' and no '.join(missing)}; the copy is damaged")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise PackageError(f"{folder}: found no model.safetensors; the copy is incomplete")
    data = weights.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != config["sha256"]:
        raise PackageError(
            f"{weights}: found sha256 {digest[:12]}…, wanted {config['sha256'][:12]}…; the file was changed or cut "
            "short. Copy the whole directory again"
        )
    emulator = build(_spec(folder / "spec.json"), config)
    try:
        emulator.load_state_dict(load_tensors(data))
    except (RuntimeError, SafetensorError) as problem:
        raise PackageError(f"{folder}: the weights are not those of config.json and spec.json: {problem}") from problem
    card = folder / "README.md"
    model = Model(
        emulator.to(device).eval(), config["name"], config, card.read_text() if card.exists() else "", source=folder
    )
    model.climate = Climate.load(folder / "climate.safetensors", digest)
    model.certificates = load_certificates(folder / "certificate.json", digest)
    return model


def save(model: "Model", path: str | Path) -> Path:
    """Write a model as a directory, atomically enough: weights first, the config that vouches for them last."""
    from safetensors.torch import save as save_tensors

    from .certificate import save_certificates

    if model.emulator.laws is not None or model.emulator.corrector is not None:
        raise ValueError(
            "found a model at other parameters than it was trained at, or a corrected one, wanted the one that it was "
            "made from. Usual fix: save that one, and call `at` or `corrected` after loading"
        )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in model.emulator.state_dict().items()}
    data = save_tensors(tensors)
    (folder / "model.safetensors").write_bytes(data)
    (folder / "spec.json").write_text(json.dumps(model.spec.to_dict(), indent=1) + "\n")
    (folder / "README.md").write_text(model.card)
    config = {
        **model.config,
        "format_version": FORMAT_VERSION,
        "lapse_version": __version__,
        "name": model.name,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    if model.climate is not None:
        model.climate.save(folder / "climate.safetensors", str(config["sha256"]))
    if model.certificates:
        save_certificates(model.certificates, folder / "certificate.json", str(config["sha256"]))
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    return folder


def build(spec: FieldSpec, config: dict[str, Any]) -> "Emulator":
    """The networks that a config describes, with fresh weights.

    ``config`` has the entries ``normaliser``, ``autoencoder`` and ``emulator``, each the keyword arguments of its
    class. Raises PackageError for one that does not describe a model.
    """
    from ..autoencoder.model import Autoencoder
    from ..datasets.normalise import Normaliser
    from .emulator import Emulator
    from .sampler import SAMPLERS

    try:
        autoencoder_config = dict(config["autoencoder"])
        autoencoder = Autoencoder(
            spec,
            Normaliser(spec, **config["normaliser"]),
            network=autoencoder_config.pop("network"),
            heads=tuple(autoencoder_config.pop("heads", ())),
            **autoencoder_config,
        )
        emulator_config = dict(config["emulator"])
        emulator_config["parts"] = tuple(emulator_config.get("parts", ("mean", "generator", "fast")))
        emulator = Emulator(autoencoder, **emulator_config)
    except (KeyError, TypeError, ValueError) as problem:
        said = f"no entry {problem}" if isinstance(problem, KeyError) else problem
        raise PackageError(f"this config does not describe a model: {said}") from problem
    if emulator.sampler not in SAMPLERS:
        raise PackageError(f"found sampler {emulator.sampler!r}, wanted one of {', '.join(SAMPLERS)}")
    return emulator


def _spec(path: Path) -> FieldSpec:
    data = _read(path)
    try:
        return FieldSpec.from_dict(data)
    except (KeyError, TypeError) as problem:
        raise PackageError(f"{path}: not a spec ({problem!r}); the copy is damaged") from problem


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise PackageError(
            f"{path.parent}: found no {path.name}; a model is a directory with config.json, spec.json "
            "and model.safetensors"
        ) from None
    except json.JSONDecodeError as problem:
        raise PackageError(f"{path}: not JSON ({problem}); the copy is damaged") from None
    if not isinstance(data, dict):
        raise PackageError(f"{path}: found {type(data).__name__}, wanted an object")
    return data
