"""The data module against brute force: statistics of the training frames, and what Lightning is handed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

pytest.importorskip("lightning")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lapse.datasets.datamodule import FieldData
from lapse.datasets.store import MemorySource, StoreSource
from lapse.datasets.windows import Batch

FRAMES = 60


def dataset(K: int = 2, T: int = FRAMES) -> xr.Dataset:
    """Fields with a trend, so that statistics of the wrong split would show."""
    rng = np.random.default_rng(0)
    n = (K, T, 6, 8)
    trend = np.arange(T)[None, :, None, None] / 10
    dims = ("trajectory", "time", "y", "x")
    return xr.Dataset(
        {
            "q": (dims, (rng.normal(3.0, 2.0, n) + trend).astype("f4"), {"units": "kg m-3"}),
            "p": (dims, (rng.normal(1e5, 100.0, n) + trend).astype("f4"), {"units": "Pa"}),
        },
        {
            "trajectory": np.arange(K),
            "time": ("time", 0.25 * np.arange(T), {"units": "s"}),
            "y": ("y", np.arange(6) / 6, {"units": "m"}),
            "x": ("x", np.arange(8) / 8, {"units": "m"}),
        },
    )


def data_module(data: Any, **options: Any) -> FieldData:
    options = {"length": 3, "batch_size": 4, "fractions": (0.5, 0.25, 0.25), "by": "time", **options}
    return FieldData(data, infer={"periodic": {"y": True, "x": True}}, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "fields.zarr"
    dataset().chunk(trajectory=1, time=7).to_zarr(path, zarr_format=3, consolidated=False)
    return path


@pytest.mark.parametrize("memory", [2**31, 0])
def test_the_normaliser_knows_the_training_frames_only(store: Path, memory: int) -> None:
    dm = data_module(store, memory=memory)
    dm.setup()
    assert isinstance(dm.source, MemorySource if memory else StoreSource)
    train = dataset().isel(time=slice(0, FRAMES // 2))
    for c, name in enumerate(dm.spec.names):
        u = train[name].values.astype(np.float64)
        assert float(dm.normaliser.mean[c]) == pytest.approx(u.mean(), rel=1e-6)
        assert float(dm.normaliser.std[c]) == pytest.approx(u.std(), rel=1e-4)
        v = dm.spec[name]
        assert (v.minimum, v.maximum) == (u.min(), u.max())
        assert v.mean == pytest.approx(u.mean(), rel=1e-6)
    normaliser = dm.normaliser
    dm.setup("test")
    assert dm.normaliser is normaliser


def test_memory_disk_and_netcdf_give_the_same_windows(store: Path, tmp_path: Path) -> None:
    dataset().to_netcdf(tmp_path / "fields.nc")

    def batches(data: Any, **options: Any) -> list[list[torch.Tensor]]:
        dm = data_module(data, **options)
        dm.setup()
        loaders: list[Any] = [dm.train_dataloader(), dm.val_dataloader(), dm.test_dataloader()]
        return [[x for b in loader for x in b.fields] for loader in loaders]

    whole, pieces, file = batches(store), batches(store, memory=0), batches(tmp_path / "fields.nc")
    for a, b, c in zip(whole, pieces, file, strict=True):
        key = [sorted(x.flatten().tolist() for x in windows) for windows in (a, b, c)]
        assert key[0] == key[1] == key[2]
    train, val, test = whole
    assert len(train) == 2 * 28 // 4 * 4  # full batches
    assert len(val) == len(test) == 2 * 15 // 3  # windows that do not overlap


def test_splits_are_where_they_should_be(store: Path) -> None:
    dm = data_module(store, eval_length=5, eval_stride=1)
    dm.setup()
    u = dataset()["q"].values
    for name, a, b in (("val", 30, 45), ("test", 45, 60)):
        loader: Any = dm.val_dataloader() if name == "val" else dm.predict_dataloader()
        got = torch.cat([x.fields for x in loader])[:, :, dm.spec.names.index("q")].numpy()
        want = np.concatenate([[u[k, t : t + 5] for t in range(a, b - 4)] for k in range(2)])
        np.testing.assert_array_equal(got, want)


def test_too_large_and_not_plain_is_refused_or_made_plain(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "fields.nc"
    dataset().to_netcdf(path)
    dm = data_module(path, memory=0)
    with pytest.raises(Exception, match=r"convert|cache"):
        dm.setup()
    dm = data_module(path, memory=0, cache=tmp_path / "plain.zarr")
    dm.prepare_data()
    dm.setup()
    assert isinstance(dm.source, StoreSource)
    reference = data_module(store)
    reference.setup()
    a, b = next(iter(dm.val_dataloader())), next(iter(reference.val_dataloader()))
    assert torch.equal(a.fields, b.fields)


def test_the_order_of_variables_is_not_that_of_the_file(tmp_path: Path) -> None:
    """A directory lists a store's arrays in any order, and ranks must agree on their channels."""
    dataset()[["q", "p"]].to_netcdf(tmp_path / "qp.nc")
    dataset()[["p", "q"]].to_netcdf(tmp_path / "pq.nc")
    for name in ("qp.nc", "pq.nc"):
        dm = data_module(tmp_path / name)
        dm.setup()
        assert dm.spec.names == ("p", "q")
    dm = FieldData(tmp_path / "pq.nc", 3, 4, infer={"variables": ["q", "p"], "periodic": {"y": True, "x": True}})
    dm.setup()
    assert dm.spec.names == ("q", "p")


def test_too_few_windows_are_said_so(store: Path) -> None:
    dm = data_module(store, batch_size=1000)
    dm.setup()
    with pytest.raises(ValueError, match=r"found 56 windows .* smaller batch_size"):
        dm.train_dataloader()


class Recorder(LightningModule):
    """Notes what it is given; learns one number, so that there is something to train."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[float] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        self.seen.append(float(batch.fields.double().sum()))
        return (self.a - batch.fields.mean() / 1e5) ** 2

    def validation_step(self, batch: Batch, index: int) -> None:
        self.log("val", (self.a - batch.fields.mean() / 1e5) ** 2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


@pytest.mark.parametrize("memory", [2**31, 0])
def test_lightning_resumes_in_the_middle_of_an_epoch(store: Path, tmp_path: Path, memory: int) -> None:
    options: dict[str, Any] = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_epochs": 3,
        "enable_model_summary": False,
    }  # fmt: skip
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=20, save_top_k=-1, filename="{step}")
    whole, dm = Recorder(), data_module(store, memory=memory)
    Trainer(callbacks=[keep], **options).fit(whole, dm)
    per_epoch = len(dm.train_dataloader())
    assert len(whole.seen) == 3 * per_epoch == 42
    assert whole.seen[:per_epoch] != whole.seen[per_epoch : 2 * per_epoch]
    resumed = Recorder()
    fresh = data_module(store, memory=memory)
    Trainer(enable_checkpointing=False, **options).fit(resumed, fresh, ckpt_path=tmp_path / "step=20.ckpt")
    assert resumed.seen == whole.seen[20:]
    assert torch.equal(resumed.a, whole.a)


SCRIPT = """
import json, sys
import lightning.pytorch as pl, torch
sys.path.insert(0, {tests!r})
from test_datamodule import Recorder, data_module

if __name__ == "__main__":
    torch.set_num_threads(1)
    model, dm = Recorder(), data_module({store!r}, memory=0)
    trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False,
                         enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False)
    trainer.fit(model, dm)
    windows = [x[0, 0, 0, 0].item() for b in dm.train_dataloader() for x in b.fields]
    with open({out!r} + f"/{{trainer.global_rank}}.json", "w") as f:
        json.dump({{"seen": len(model.seen), "windows": windows, "a": model.a.item(),
                    "mean": dm.normaliser.mean.tolist()}}, f)
"""


def test_two_ranks_share_the_windows(store: Path, tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), store=str(store), out=str(tmp_path)))
    # Compiled modules may be kept: without them every process compiles Lightning anew, which takes a minute.
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=280, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(2)]
    assert [r["seen"] for r in ranks] == [2 * 7, 2 * 7]  # 56 windows, batches of 4, two ranks, two epochs
    assert ranks[0]["a"] == ranks[1]["a"] and ranks[0]["mean"] == ranks[1]["mean"]
    union = ranks[0]["windows"] + ranks[1]["windows"]
    dm = data_module(store)
    dm.setup()
    q = dataset()[dm.spec.names[0]].values
    assert sorted(union) == sorted(float(q[k, t, 0, 0]) for k in range(2) for t in range(28))
