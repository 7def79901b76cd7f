"""Ensembles in parts: killed, repeated, grown and divided at will, they become what one process would have made."""

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cf_xarray  # noqa: F401
import numpy as np
import pytest
import torch
import xarray as xr

import lapse
from lapse.datasets.shards import StoreError
from lapse.surrogate import cli
from lapse.surrogate.ensemble import Ensemble, parse_part, status
from lapse.surrogate.model import Model
from lapse.surrogate.rounding import Rounding

STARTS = [0.2, 0.8]
MEMBERS, STEPS = 11, 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model) -> Path:
    return tiny_model.save(tmp_path_factory.mktemp("ensembles") / "model").parent


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    return lapse.load(place / "model")


@pytest.fixture(scope="module")
def ds(make_analyses: Any, model: Model) -> xr.Dataset:
    return make_analyses(model.spec, 0.2 * np.arange(8))


@pytest.fixture(scope="module")
def direct(model: Model, ds: xr.Dataset) -> xr.Dataset:
    return model.forecast(ds, STEPS, MEMBERS, init_times=STARTS, seed=3, progress=False)


def plan(model: Model, ds: xr.Dataset, members: int = MEMBERS, **options: Any) -> Any:
    return model.ensemble(ds, STEPS, members, init_times=STARTS, seed=3, **options)


def finished(ensemble: Ensemble) -> xr.Dataset:
    ensemble.run(progress=False)
    ensemble.finalise()
    return ensemble.open()


# plan, parts, status


def test_a_plan_says_what_it_will_take(model: Model, ds: xr.Dataset) -> None:
    text = str(plan(model, ds, shard=4))
    assert "11 members x 3 leads x 2 start(s) by tiny" in text and "6 blocks of up to 4 members" in text
    assert "12 files, 67.6 kB before compression" in text and "WARNING" not in text  # 2 x 11 x (3 x 16 x 16 x 4 + 1)
    many = plan(model, ds, members=60_000, shard=1)
    assert "240,000 files" in str(many) and "WARNING: more than 50,000 files" in str(many)


def test_parts_in_any_order_make_the_forecast(model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "e.zarr"
    ensemble = plan(model, ds, shard=2).create(path)
    assert "not begun" in str(status(path)) and status(path).blocks == 12
    with pytest.raises(StoreError, match="found 12 of 12 blocks missing"):
        ensemble.finalise()
    others = Ensemble.at(path)  # as another process would
    assert (others.run((3, 5), progress=False), ensemble.run((3, 5), progress=False)) == (2, 0)
    assert status(path).done == 2 and status(path).to_dict()["remaining_minutes"] is not None
    markers = {f: f.stat().st_mtime_ns for f in (path / ".progress").iterdir()}
    for i in (5, 1, 4, 2):
        others.run((i, 5), progress=False)
    assert markers.items() <= {f: f.stat().st_mtime_ns for f in (path / ".progress").iterdir()}.items()
    assert "finalise it" in str(status(path))
    out = finished(others)
    assert np.array_equal(out["vorticity"], direct["vorticity"]) and status(path).complete
    assert xr.open_zarr(path)["vorticity"].dims == direct["vorticity"].dims  # without us
    for name, dim in (("realization", "member"), ("forecast_period", "lead_time")):
        assert out.cf[name].dims == (dim,)
    assert out.cf["forecast_reference_time"].name == "init_time" and out.cf["valid_time"].dims == STARTED


STARTED = ("init_time", "lead_time")


def test_a_forecast_goes_on_as_an_ensemble(model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path) -> None:
    few = model.forecast(ds, STEPS, 4, init_times=STARTS, seed=3, store=tmp_path / "f.zarr", progress=False)
    assert np.array_equal(few["vorticity"], direct["vorticity"][:, :4])
    grown = plan(model, ds).create(tmp_path / "f.zarr", resume=True)
    assert grown.keep.shard == 4 and np.array_equal(finished(grown)["vorticity"], direct["vorticity"])


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="wanted I/N"):
        parse_part(text)


def test_refusals_name_the_fix(
    model: Model, ds: xr.Dataset, tmp_path: Path, make_model: Any, tiny_model: Model
) -> None:
    path = tmp_path / "e.zarr"
    plan(model, ds, keep="latents").create(path)
    with pytest.raises(StoreError, match=r"exists\. Continue it \(resume=True"):
        plan(model, ds, keep="latents").create(path)
    with pytest.raises(StoreError, match="keeps latents, asked for fields"):
        plan(model, ds).create(path, resume=True)
    with pytest.raises(StoreError, match=r"identity\.seed: the store has 3, asked for 4"):
        model.ensemble(ds, STEPS, MEMBERS, init_times=STARTS, seed=4, keep="latents").create(path, resume=True)
    with pytest.raises(StoreError, match=r"was made by tiny sha256:.*, not by tiny sha256:unsaved.*lapse\.load\("):
        Ensemble.at(path, tiny_model)
    with pytest.raises(StoreError, match=r"is no ensemble.*lapse ensemble init"):
        status(tmp_path)
    with pytest.raises(ValueError, match=r"has no hash.*save\("):
        plan(tiny_model, ds, keep="latents").create(tmp_path / "u.zarr")
    with pytest.raises(ValueError, match="wanted one of fields, latents, statistics"):
        plan(model, ds, keep="means")
    with pytest.raises(ValueError, match="does not take these options"):
        plan(model, ds, keep="latents", bins=3)
    told = json.loads((path / ".lapse" / "job.json").read_text())
    told["model"]["source"] = told["model"]["name"] = "gone"
    (path / ".lapse" / "job.json").write_text(json.dumps(told))
    with pytest.raises(StoreError, match=r"is not found at gone.*say where it is"):
        Ensemble.at(path)


# latents


@pytest.fixture(scope="module")
def latents(model: Model, ds: xr.Dataset, place: Path) -> Ensemble:
    ensemble = plan(model, ds, keep="latents", shard=4, batch_size=3).create(place / "latents.zarr")
    finished(ensemble)
    return ensemble


def test_latents_open_as_the_forecast(latents: Ensemble, direct: xr.Dataset) -> None:
    fc = Ensemble.at(latents.path).open()
    assert {n: (v.dims, v.shape, v.dtype) for n, v in fc.variables.items()} == {
        n: (v.dims, v.shape, v.dtype) for n, v in direct.variables.items()
    }
    assert fc["vorticity"].attrs == direct["vorticity"].attrs and "lapse_keep" not in fc.attrs
    error = np.abs(fc["vorticity"] - direct["vorticity"])
    # z is rounded to 11 bits and D is smooth: an error of some 2^-11 of the field, and with the wrong noise a hundred
    # times more.
    assert 0 < float(error.max()) < 2**-10 * float(np.abs(direct["vorticity"]).max())
    assert fc.cf["realization"].name == "member"


def test_any_selection_is_that_of_the_whole(latents: Ensemble) -> None:
    """Members, leads, region: bit by bit, though other frames are decoded together."""
    whole = latents.open()["vorticity"].values
    fresh = latents.open()["vorticity"]
    assert np.array_equal(fresh.isel(init_time=1, member=7, lead_time=2).values, whole[1, 7, 2])
    part = fresh.isel(init_time=[1, 0], member=[9, 2, 3], lead_time=[2, 0], x=slice(5, 9), y=3)
    assert np.array_equal(part.values, whole[[1, 0]][:, [9, 2, 3]][:, :, [2, 0]][..., 3, 5:9])
    assert np.array_equal(fresh.isel(member=slice(None, None, 4)).values, whole[:, ::4])
    assert np.array_equal(fresh.chunk(member=5).isel(lead_time=1).compute().values, whole[:, :, 1])


def test_only_what_is_asked_for_is_decoded(latents: Ensemble, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    emulator = latents.job.model.emulator
    monkeypatch.setattr(
        emulator, "decode", lambda s, *a: (decoded.append(len(s.z)), type(emulator).decode(emulator, s, *a))[1]
    )
    one = latents.open()["vorticity"].isel(init_time=0, member=5, lead_time=1, x=slice(2))
    assert decoded == []
    one.load()
    assert decoded == [4]  # the smallest batch


def test_latents_are_small(latents: Ensemble) -> None:
    """Sixteen times fewer numbers at half the size, but for what is kept once a member."""
    plan_of = latents.writer.plan
    numbers = np.prod(latents.job.model.emulator.latent_shape)
    assert plan_of.bytes == 2 * MEMBERS * (2 * STEPS * numbers + 4 + 1)


@pytest.mark.parametrize("share", [0.5, 2.0])
def test_rounded_latents_add_the_share_that_was_asked_for(
    model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path, share: float
) -> None:
    """Of the decoder's error, root mean square over all frames; bytes, resumed and opened by another process alike."""
    path = tmp_path / "bytes.zarr"
    ensemble = plan(model, ds, keep="latents", shard=4, batch_size=3, rounding=share).create(path)
    ensemble.run((1, 2), progress=False)
    plan(model, ds, keep="latents", shard=4, rounding=share).create(path, resume=True)
    finished(Ensemble.at(path))
    fc, stored = Ensemble.at(path).open(), xr.open_zarr(path)
    assert stored["latent"].dtype == np.int8
    off = (fc["vorticity"] - direct["vorticity"]).astype("f8")
    with torch.no_grad():
        z = torch.from_numpy(xr.open_zarr(path)["latent"].values)
        z = Rounding(share, stored["latent"].attrs["step"]).unpack(z.numpy(), axis=2)
        error = model.emulator.error.scale(torch.from_numpy(z).flatten(0, 2)).square().mean().sqrt()
    asked = share * float(error) * float(model.emulator.autoencoder.normaliser.std)
    assert float((off**2).mean() ** 0.5) == pytest.approx(asked, rel=0.4)
    late = fc["vorticity"].isel(member=[8, 1], lead_time=[2, 1]).values
    assert np.array_equal(late, fc["vorticity"].values[:, [8, 1]][:, :, [2, 1]])
    with pytest.raises(StoreError):
        plan(model, ds, keep="latents", shard=4, rounding=0.9 * share).create(path, resume=True)


def test_bytes_go_round_and_members_that_blew_up_stay_so(
    model: Model, ds: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, rounding = np.random.default_rng(0), Rounding(1.0, 0.05)
    z = rng.uniform(-6.3, 6.3, (2, 9, 3, 4))
    back = rounding.unpack(rounding.pack(z, axis=1), axis=1)
    assert np.abs(back - z).max() <= 0.025 + 1e-6
    from lapse.surrogate.job import Job

    compute = Job.latents

    def sick(self: Job, index: int, first: int, last: int) -> dict[str, Any]:
        out = compute(self, index, first, last)
        for m in range(first, last):
            if m == 5:
                out["valid"][0, m - first], out["latent"][0, m - first, 1:] = 0, np.nan
        return out

    monkeypatch.setattr(Job, "latents", sick)
    ensemble = plan(model, ds, keep="latents", shard=4, rounding=0.5).create(tmp_path / "sick.zarr")
    finished(ensemble)
    missing = ensemble.open()["vorticity"].isnull().any(("y", "x", "lead_time", "init_time")).values
    assert missing.tolist() == [m == 5 for m in range(MEMBERS)]


@pytest.mark.parametrize(("share", "told"), [(0.0, "wanted a share above 0"), (-1.0, "wanted a share above 0")])
def test_unfit_roundings(model: Model, ds: xr.Dataset, share: float, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        print(plan(model, ds, keep="latents", rounding=share))
    with pytest.raises(ValueError, match="does not take these options"):
        plan(model, ds, keep="fields", rounding=0.5)
    unaware = copy.copy(model)
    unaware.emulator = copy.deepcopy(model.emulator)
    unaware.emulator.error = None
    with pytest.raises(ValueError, match="has no model of its decoder's error"):
        print(plan(unaware, ds, keep="latents", rounding=0.5))


def test_what_cannot_be_kept_as_latents(model: Model, ds: xr.Dataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep='latents' needs a store"):
        model.forecast(ds, 1, 2, keep="latents", progress=False)
    fc = model.forecast(ds, 2, 5, keep="latents", store=tmp_path / "l.zarr", progress=False)
    assert fc.sizes["member"] == 5 and fc["vorticity"].notnull().all()


# statistics


OPTIONS: dict[str, Any] = {"keep": "statistics", "exceed": {"vorticity": [0.5, 1.5]}, "quantiles": (0.1, 0.5)}


@pytest.mark.parametrize(("shard", "batch"), [(MEMBERS, MEMBERS), (5, 3)])
def test_online_statistics_are_those_of_the_members(
    model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path, shard: int, batch: int
) -> None:
    ensemble = plan(model, ds, shard=shard, batch_size=batch, truth=ds, **OPTIONS).create(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="no data yet"):
        ensemble.open()
    Ensemble.at(tmp_path / "s.zarr").run((2, 2), progress=False)
    out, x = finished(ensemble), direct["vorticity"].astype("f8")
    wanted = {
        "mean": x.mean("member"), "variance": x.var("member", ddof=1), "minimum": x.min("member"),
        "maximum": x.max("member"),
    }  # fmt: skip
    for name, values in wanted.items():
        assert np.allclose(out[f"vorticity_{name}"], values, rtol=1e-5, atol=1e-6), name
        assert out[f"vorticity_{name}"].attrs["cell_methods"] == f"realization: {name}"
    error = np.abs(out["vorticity_quantile"] - x.quantile([0.1, 0.5], "member"))
    assert (error <= out["vorticity_quantile_error"] + 1e-6).all()
    share = (x > out["vorticity_threshold"]).mean("member").transpose(*out["vorticity_exceedance"].dims)
    assert np.allclose(out["vorticity_exceedance"], share)
    assert (out["members_used"] == MEMBERS).all() and not out["blown_up"].any()
    scores, offline = xr.open_dataset(tmp_path / "s.zarr" / "scores.nc"), lapse.score(direct, ds, spec=model.spec)
    for name in ("rmse", "vrmse", "bias", "spread", "spread_skill", "coverage", "rank_histogram", "crmse", "drift"):
        assert np.allclose(scores[name], offline[name], rtol=1e-5, atol=1e-7), name
    assert (np.abs(scores["crps"] - offline["crps"]) <= scores["crps_error"]).all()
    assert out.cf["forecast_period"].name == "lead_time" and status(tmp_path / "s.zarr").complete


def test_statistics_grow(model: Model, ds: xr.Dataset, tmp_path: Path) -> None:
    """With more members the last, cut block is made again; without a store nothing is left behind."""
    finished(plan(model, ds, members=6, shard=4, **OPTIONS).create(tmp_path / "s.zarr"))
    grown = plan(model, ds, shard=4, **OPTIONS).create(tmp_path / "s.zarr", resume=True)
    assert not status(tmp_path / "s.zarr").complete and len(grown.writer.missing()) == 4
    at_once = model.forecast(ds, STEPS, MEMBERS, init_times=STARTS, seed=3, keep="statistics", progress=False)
    out = finished(grown)
    for name in ("mean", "variance", "minimum", "maximum"):
        assert np.allclose(out[f"vorticity_{name}"], at_once[f"vorticity_{name}"], rtol=1e-5, atol=1e-6)


def test_members_that_blow_up_are_left_out(
    model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lapse.surrogate.job import Job

    compute = Job.compute

    def sick(self: Job, index: int, first: int, last: int) -> dict[str, Any]:
        out = compute(self, index, first, last)
        for m in range(first, last):
            if m in (0, 5):
                out["valid"][0, m - first] = 0
                out["vorticity"][0, m - first, 1:] = np.nan
        return out

    monkeypatch.setattr(Job, "compute", sick)
    out = finished(plan(model, ds, shard=4, **OPTIONS).create(tmp_path / "s.zarr"))
    healthy = direct["vorticity"].drop_isel(member=[0, 5]).astype("f8")
    assert (out["members_used"] == MEMBERS - 2).all() and (out["blown_up"] == 2).all()
    assert np.allclose(out["vorticity_mean"], healthy.mean("member"), rtol=1e-5, atol=1e-6)


# kills, the command line, dask


def test_killed_workers_lose_and_double_nothing(
    place: Path, model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path
) -> None:
    """Two workers on disjoint parts, both killed at the first block; a third ends the work."""
    path = tmp_path / "e.zarr"
    plan(model, ds, shard=1).create(path)
    script = (
        "import sys, time\nfrom lapse.surrogate.ensemble import Ensemble\nfrom lapse.surrogate.keep import Fields\n"
        "compute = Fields.compute\nFields.compute = lambda *a: (time.sleep(0.05), compute(*a))[1]\n"
        "Ensemble.at(sys.argv[1]).run((int(sys.argv[2]), 2), progress=False)"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(path), str(i)]) for i in (1, 2)]
    end = time.monotonic() + 200
    while status(path).done < 2 and time.monotonic() < end:
        time.sleep(0.02)
    for worker in workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert 2 <= status(path).done < 22
    out = finished(Ensemble.at(path))
    assert np.array_equal(out["vorticity"], direct["vorticity"]) and (out["valid"] == 1).all()
    assert len(list((path / ".progress").iterdir())) == 22


def test_the_command_line(
    place: Path, ds: xr.Dataset, direct: xr.Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    ds.to_zarr("data.zarr", consolidated=False)

    def run(line: str, wanted: int = 0) -> str:
        assert cli.main(["ensemble", *line.split()]) == wanted
        said = capsys.readouterr()
        return said.err if wanted else said.out

    init = "init model data.zarr --steps 3 --members 11 --seed 3 --init-time 0.2 0.8 --shard 4 --out c.zarr"
    assert "6 blocks of up to 4 members" in run(f"{init} --plan") and not Path("c.zarr").exists()
    assert "c.zarr: begun. Next: lapse ensemble run" in run(init)
    assert "exists. Continue it" in run(init, 1)
    assert "part 2/2, 3 blocks computed" in run("run c.zarr --part 2/2 --quiet")
    assert json.loads(run("status c.zarr --json"))["done"] == 3
    assert "found 3 of 6 blocks missing" in run("finalise c.zarr", 1)
    assert "wanted I/N" in run("run c.zarr --part 3/2", 1)
    assert "part 1/1, 3 blocks" in run("run c.zarr --quiet")
    assert "complete; init_time 2, member 11, lead_time 3" in run("finalise c.zarr")
    assert np.array_equal(lapse.open_dataset("c.zarr")["vorticity"], direct["vorticity"])
    assert "only with --keep statistics" in run(f"{init} --resume --exceed vorticity=1", 1)
    other = init.replace("c.zarr", "s.zarr") + " --keep statistics --truth data.zarr --exceed vorticity=1 --bins 16"
    run(f"{other} --quantiles 0.5")
    run("run s.zarr --quiet")
    assert "0 members blew up" in run("finalise s.zarr")
    made = xr.open_zarr("s.zarr")
    assert np.allclose(made["vorticity_mean"], direct["vorticity"].mean("member"), rtol=1e-4, atol=1e-5)
    assert "crps" in xr.open_dataset("s.zarr/scores.nc") and made["quantile"].values.tolist() == [0.5]


def test_latents_are_scored_like_fields(
    latents: Ensemble, direct: xr.Dataset, ds: xr.Dataset, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ds.to_zarr(tmp_path / "truth.zarr", consolidated=False)
    out = tmp_path / "scores.nc"
    assert cli.main(["score", str(latents.path), str(tmp_path / "truth.zarr"), "--out", str(out)]) == 0
    assert "vorticity" in capsys.readouterr().out
    assert np.allclose(xr.open_dataset(out)["crps"], lapse.score(direct, ds)["crps"], rtol=1e-3)


def test_a_cluster_of_dask(model: Model, ds: xr.Dataset, direct: xr.Dataset, tmp_path: Path) -> None:
    pytest.importorskip("distributed", reason="the extra hpc is not installed")
    from lapse.surrogate.cluster import local

    ensemble = plan(model, ds, shard=4).create(tmp_path / "e.zarr")
    client = local(2)
    try:
        assert ensemble.run(executor="dask", client=client, progress=False) == 6
        models = client.run(_models)
        assert sum(models.values()) <= 2 and set(models.values()) <= {0, 1}
    finally:
        client.cluster.close()
        client.close()
    assert np.array_equal(finished(ensemble)["vorticity"], direct["vorticity"])


def _models() -> int:
    """Models that this worker holds."""
    from lapse.surrogate.cluster import _opened

    return _opened.cache_info().currsize


def test_dask_needs_a_model_on_disk(tiny_model: Model, ds: xr.Dataset, tmp_path: Path) -> None:
    ensemble = plan(tiny_model, ds).create(tmp_path / "e.zarr")
    found = "distributed" if "distributed" in sys.modules or _installed() else "hpc"
    with pytest.raises((StoreError, ImportError), match="never saved" if found == "distributed" else "hpc"):
        ensemble.run(executor="dask", progress=False)
    with pytest.raises(ValueError, match="executor: found 'slurm'"):
        ensemble.run(executor="slurm", progress=False)  # type: ignore[arg-type]


def _installed() -> bool:
    from importlib.util import find_spec

    return find_spec("distributed") is not None
