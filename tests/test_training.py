"""Training: it learns, it resumes to the same curve, it ends on time, and two ranks agree."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import lapse.autoencoder.training as training
from lapse.autoencoder.training import Stage, fit
from lapse.surrogate.stages import Shift, run_stage, unroll_at
from lapse.surrogate.train import compose, field_data, new_emulator, shifts, train

TINY = [
    "autoencoder.width=8", "autoencoder.encoder_depth=1", "autoencoder.decoder_depth=1",
    "autoencoder.latent_channels=2", "emulator.width=8",
    "emulator.depth=1", "emulator.sampling_steps=2", "emulator.dropout=0.2",
    "data.periodic={y: true, x: true}", "data.shift={x: 1, y: 4}", "data.fractions=[0.6,0.2,0.2]", "data.by=time",
    "training.every=5", "training.mean.unroll=[[0.0,1],[0.5,2]]", "training.fast.unroll=[[0.0,1],[0.5,2]]",
    *(f"training.{stage}.{key}" for stage in ("autoencoder", "error", "mean", "generator", "fast")
      for key in ("steps=12", "batch=4")),
]  # fmt: skip
QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Smooth random patterns that drift, 2 trajectories x 40 frames on 8 x 12."""
    rng = np.random.default_rng(0)
    y, x = np.meshgrid(2 * np.pi * np.arange(8) / 8, 2 * np.pi * np.arange(12) / 12, indexing="ij")
    u = np.zeros((2, 40, 8, 12))
    waves = [(1, 0), (0, 1), (1, 1), (2, 1)]
    for k, t in np.ndindex(2, 40):
        for (p, q), (a, b) in zip(waves, np.cos([[k, 1], [2, k], [k, 3], [4, 1 + k]]), strict=True):
            u[k, t] += a * np.cos(p * y + q * x - (0.2 + 0.1 * q) * t) + b * np.sin(p * y + q * x - 0.15 * p * t)
    u += 0.01 * rng.normal(size=u.shape)
    path = tmp_path_factory.mktemp("data") / "drift.zarr"
    xr.Dataset(
        {"q": (("trajectory", "time", "y", "x"), u.astype("f4"), {"units": "1"})},
        {
            "time": ("time", 0.5 * np.arange(40), {"units": "s"}),
            "y": ("y", np.arange(8) / 8, {"units": "m"}),
            "x": ("x", np.arange(12) / 12, {"units": "m"}),
        },
    ).to_zarr(path, zarr_format=3, consolidated=False)
    return path


def config(store: Path, out: Path, *more: str) -> dict[str, Any]:
    return compose([f"data.path={store}", f"out={out}", *TINY, *more])


def pixels(store: Path, out: Path, *more: str) -> dict[str, Any]:
    """Without an autoencoder."""
    plain = [o for o in TINY if not o.startswith("autoencoder.")]
    return compose([f"data.path={store}", f"out={out}", *plain, "autoencoder=identity", *more])


def stage(options: dict[str, Any], name: str, folder: Path, **changes: Any) -> tuple[dict[str, Any], Any]:
    """One stage from fresh weights; its record and the emulator."""
    torch.manual_seed(0)
    data = field_data(options)
    emulator = new_emulator(options, data)
    record = run_stage(
        name, emulator, {**options["training"][name], **changes}, data, folder, QUIET,
        shift=shifts(options, data.spec)(5), seed=5, ema=0.9, every=5,
    )  # fmt: skip
    return record, emulator


class Killed(Exception):
    """Stands for SIGKILL, at a known step."""


def losses(record: dict[str, Any]) -> list[float]:
    assert [row["step"] for row in record["losses"]] == list(range(1, len(record["losses"]) + 1))
    return [row["loss"] for row in record["losses"]]


def test_the_loss_falls(store: Path, tmp_path: Path) -> None:
    options = pixels(store, tmp_path, "emulator.dropout=0")
    record, _ = stage(options, "mean", tmp_path / "mean", steps=60, lr=1e-2, unroll=[[0.0, 1]])
    curve = losses(record)
    assert record["steps"] == len(curve) == 60 and record["cpu_minutes"] > 0
    assert np.mean(curve[-10:]) < 0.5 * curve[0]
    assert all(a["cpu_s"] <= b["cpu_s"] for a, b in pairwise(record["losses"]))


@pytest.mark.parametrize("name", ["autoencoder", "generator", "fast"])
def test_a_resumed_stage_is_the_uninterrupted_one(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses step by step, weights and their average; with noise, shifts, dropout and shuffled data."""
    options = config(store, tmp_path)
    whole, one = stage(options, name, tmp_path / "whole")

    def killed(self: Any, batch: Any, index: int) -> torch.Tensor:
        if self.global_step == 8:
            raise Killed
        return original(self, batch, index)

    original = Stage.training_step
    monkeypatch.setattr(Stage, "training_step", killed)
    with pytest.raises(Killed):
        stage(options, name, tmp_path / "cut")
    monkeypatch.undo()
    assert not (tmp_path / "cut" / "record.json").exists()
    checkpoint = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 5 and len(checkpoint["lapse_stage"]["history"]) == 5
    torch.randn(7), np.random.rand(3)  # another process would be elsewhere in its random numbers
    resumed, two = stage(options, name, tmp_path / "cut")
    np.testing.assert_allclose(losses(resumed), losses(whole), rtol=1e-6)
    for key, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_killed_between_the_last_step_and_the_result(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The averaged weights are in place although nothing is left to train."""
    options = config(store, tmp_path)
    _, whole = stage(options, "mean", tmp_path / "whole", steps=10)

    def killed(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr("lapse.surrogate.stages.torch.save", killed)
    with pytest.raises(Killed):
        stage(options, "mean", tmp_path / "cut", steps=10)
    monkeypatch.undo()
    record, again = stage(options, "mean", tmp_path / "cut", steps=10)
    assert len(losses(record)) == record["steps"] == 10
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, rtol=0, atol=0, msg=key)


def test_a_finished_stage_is_read_not_run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = config(store, tmp_path)
    record, trained = stage(options, "mean", tmp_path / "mean", steps=3)
    monkeypatch.setattr("lapse.surrogate.stages.fit", lambda *_: pytest.fail("trained again"))
    torch.manual_seed(9)
    data = field_data(options)
    fresh = new_emulator(options, data)
    found = run_stage("mean", fresh, options["training"]["mean"], data, tmp_path / "mean", QUIET,
                      shift=shifts(options, data.spec)(5), seed=5, ema=0.9, every=5)  # fmt: skip
    assert found == record
    for key in ("mean.stem.conv.weight", "increment"):
        assert torch.equal(fresh.state_dict()[key], trained.state_dict()[key])
    smaller = new_emulator(config(store, tmp_path, "emulator.parts=[fast]"), data)
    with pytest.raises(ValueError, match="weights of another model"):
        run_stage("mean", smaller, options["training"]["mean"], data, tmp_path / "mean", QUIET,
                  shift=shifts(options, data.spec)(5), seed=5, ema=0.9, every=5)  # fmt: skip


def test_the_budget_ends_a_stage_with_a_rate_near_zero(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processor time is simulated: two seconds a step, so half a minute is 15 steps."""
    rates: list[float] = []
    original = Stage.training_step

    def watched(self: Any, batch: Any, index: int) -> torch.Tensor:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        Clock.now += 2.0
        return original(self, batch, index)

    class Clock:
        now = 100.0

        @staticmethod
        def process_time() -> float:
            return Clock.now

    monkeypatch.setattr(training, "time", Clock)
    monkeypatch.setattr(Stage, "training_step", watched)
    options = config(store, tmp_path)
    record, _ = stage(options, "mean", tmp_path / "mean", steps=1000, cpu_minutes=0.5, lr=1e-2)
    assert record["steps"] == 15 and record["cpu_minutes"] == pytest.approx(0.5)
    assert max(rates) <= 1e-2 and rates[-1] < 0.05 * max(rates)
    half = 0.5 * (1 + np.cos(np.pi * 14 / 15))
    assert rates[-1] == pytest.approx(1e-2 * 15 / 50 * half, rel=1e-5)  # fifteen of fifty steps of warm-up


def test_the_real_budget_is_kept(store: Path, tmp_path: Path) -> None:
    options = config(store, tmp_path)
    begin = time.process_time()
    record, _ = stage(options, "autoencoder", tmp_path / "autoencoder", steps=10**6, cpu_minutes=0.01)
    assert record["steps"] > 3
    assert 0.6 <= 60 * record["cpu_minutes"] <= time.process_time() - begin


def test_only_the_chosen_parts_learn_and_the_others_do_not_drop_out(store: Path, tmp_path: Path) -> None:
    options = config(store, tmp_path)
    data = field_data(options)
    emulator = new_emulator(options, data)
    assert emulator.mean is not None and emulator.generator is not None
    seen: list[bool] = []

    def objective(u: torch.Tensor, phase: torch.Tensor, progress: float) -> torch.Tensor:
        seen.append(emulator.mean.training)  # type: ignore[union-attr]
        seen.append(not emulator.generator.training)  # type: ignore[union-attr]
        maps = torch.zeros(len(u), 3 * 2, 2, 3)
        loss: torch.Tensor = (emulator.generator(maps, torch.zeros(len(u), 32)) - 1).square().mean()  # type: ignore[misc]
        return loss

    before = {k: v.clone() for k, v in emulator.state_dict().items()}
    data.length, data.batch_size = 1, 4
    fit(Stage(emulator, objective, [emulator.generator], 3, lr=1e-2), data, tmp_path, QUIET, ema=None)
    assert seen and not any(seen)
    changed = {k for k, v in emulator.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(k.startswith("generator.") for k in changed)


def test_shifts_move_whole_windows_by_whole_periods(store: Path, tmp_path: Path) -> None:
    shift = Shift((4, 1), (8, 12), torch.Generator().manual_seed(0))
    u = torch.randn(50, 3, 1, 8, 12)
    found = set()
    for before, after in zip(u, shift(u), strict=True):
        hits = [(a, b) for a in range(8) for b in range(12) if torch.equal(before.roll((a, b), (2, 3)), after)]
        assert len(hits) == 1
        found.add(hits[0])
    assert {a for a, _ in found} == {0, 4} and len({b for _, b in found}) > 6
    assert Shift((0, 0), (8, 12), torch.Generator())(u) is u
    data = field_data(config(store, tmp_path))
    for wrong in ({"z": 1}, {"y": 3}):
        with pytest.raises(ValueError, match=r"data\.shift: .* multiple of"):
            shifts({"data": {"shift": wrong}}, data.spec)
    schedule, found = [[0.0, 1], [0.5, 2], [0.75, 4, 12]], [(1, 0), (1, 0), (2, 0), (2, 0), (4, 12), (4, 12)]
    assert [unroll_at(schedule, p) for p in (0, 0.49, 0.5, 0.74, 0.75, 1)] == found


def test_a_model_is_trained_from_a_config(store: Path, tmp_path: Path) -> None:
    """All stages; then nothing is left to do; then another model lacks what the first has."""
    stages = ("autoencoder", "error", "mean", "generator", "fast")
    options = config(store, tmp_path, *(f"training.{name}.steps=3" for name in stages))
    model = train(options, progress=False)
    assert set(model.modes) == {"fast", "quality", "mean"}
    files = {"config.json", "model.safetensors", "climate.safetensors", "README.md", "spec.json"}
    assert {p.name for p in (tmp_path / "model").iterdir()} == files
    records = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/record.json")}
    assert set(records) == set(stages)
    assert all(r["steps"] == len(r["losses"]) == 3 for r in records.values())
    times = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights.pt")}
    again = train(options, progress=False)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/weights.pt")} == times
    for key, value in model.emulator.state_dict().items():
        assert torch.equal(again.emulator.state_dict()[key], value), key
    assert "| fast | 3 |" in again.card


def test_pixel_space_has_no_autoencoder_to_train(store: Path, tmp_path: Path) -> None:
    stages = ["emulator.parts=[mean]", "training.stages=[autoencoder,mean]", "training.mean.steps=2"]
    model = train(pixels(store, tmp_path, *stages), progress=False)
    assert [s["steps"] for s in model.config["training"]["stages"]] == [0, 2]


def test_configs_that_contradict_themselves_are_refused_before_training(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown stages"):
        train(config(store, tmp_path, "training.stages=[autoencoder,magic]"))
    with pytest.raises(ValueError, match=r"found generator, wanted parts of the model, which are mean"):
        train(config(store, tmp_path, "emulator.parts=[mean]", "training.stages=[autoencoder,mean,generator]"))
    assert not list(tmp_path.iterdir())
    options = config(store, tmp_path, "emulator.parts=[mean]")
    with pytest.raises(ValueError, match="stage 'fast': found a model of mean"):
        stage(options, "fast", tmp_path / "fast")


SCRIPT = """
import json, os, sys, time
import torch
torch.set_num_threads(1)
from lapse.autoencoder.training import Stage
from lapse.surrogate.train import compose, train

if __name__ == "__main__":
    seen, noise = [], []
    original = Stage.training_step

    def watched(self, batch, index):
        if self.global_step == int(os.environ.get("HANG_AT", -1)):
            time.sleep(600)
        seen.append(batch[0][:, 0, 0, 0, 0].tolist())
        noise.append(int(torch.get_rng_state().double().sum()))  # without drawing from it
        return original(self, batch, index)

    Stage.training_step = watched
    out = sys.argv[1]
    model = train(compose(sys.argv[2:]), progress=False)
    rank = os.environ.get("LOCAL_RANK", "0")
    weights = {k: v.double().sum().item() for k, v in model.emulator.state_dict().items()}
    with open(f"{out}/{rank}.json", "w") as f:
        json.dump({"seen": seen, "noise": noise, "weights": weights, "card": len(model.card)}, f)
"""


def run_script(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    # Compiled modules may be kept: without them every process compiles Lightning anew, which takes a minute.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", **environment}
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), *arguments], env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str], timeout: float) -> str:
    """What it printed; nothing that it started is left behind."""
    try:
        return process.communicate(timeout=timeout)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.timeout(600)  # half a minute on an idle machine
def test_two_ranks_train_one_model(store: Path, tmp_path: Path) -> None:
    done = run_script(
        tmp_path, f"data.path={store}", f"out={tmp_path / 'run'}", *TINY, "trainer=ddp", "trainer.devices=2",
        "trainer.accelerator=cpu", "emulator.parts=[mean]", "training.stages=[autoencoder,mean]",
        *(f"training.{s}.steps=3" for s in ("autoencoder", "mean")), "training.mean.cpu_minutes=10",
    )  # fmt: skip
    output = output_of(done, timeout=560)
    assert done.returncode == 0, output[-3000:]
    one, two = (json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2))
    assert one["weights"] == two["weights"]
    assert len(one["seen"]) == len(two["seen"]) == 6
    for k in (slice(0, 3), slice(3, 6)):  # stage by stage, each within its first epoch
        mine, other = ({x for batch in r["seen"][k] for x in batch} for r in (one, two))
        assert mine and not mine & other
    assert not set(one["noise"]) & set(two["noise"])
    assert one["card"] and not two["card"]  # one of them writes the model
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.timeout(600)
def test_a_killed_process_goes_on(store: Path, tmp_path: Path) -> None:
    """SIGKILL between two checkpoints; then the same command, and the curve of a run that nobody killed."""
    steps = ["emulator.parts=[mean]", "training.stages=[mean]", "training.mean.steps=20"]
    process = run_script(tmp_path, f"data.path={store}", f"out={tmp_path / 'cut'}", *TINY, *steps, HANG_AT="13")
    last, deadline, reached = tmp_path / "cut" / "mean" / "last.ckpt", time.monotonic() + 240, 0
    while reached < 10 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        reached = torch.load(last, weights_only=True)["global_step"] if last.exists() else 0
    process.send_signal(signal.SIGKILL)
    output = output_of(process, timeout=60)
    assert reached == 10, output[-3000:]
    for name in ("cut", "whole"):
        train(config(store, tmp_path / name, *steps), progress=False)
    cut, whole = (json.loads((tmp_path / n / "mean" / "record.json").read_text()) for n in ("cut", "whole"))
    np.testing.assert_allclose(losses(cut), losses(whole), rtol=1e-6)
    one, two = (torch.load(tmp_path / n / "mean" / "weights.pt", weights_only=True) for n in ("cut", "whole"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-7, msg=key)
