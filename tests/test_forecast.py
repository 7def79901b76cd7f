"""Forecasts: a member is what (seed, start, index) make it, whatever is around it; nothing completed is ever lost."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import cf_xarray  # noqa: F401
import cftime
import numpy as np
import pytest
import torch
import xarray as xr

from lapse import FieldSpec, SpecError
from lapse.datasets.fields import to_tensor
from lapse.datasets.shards import StoreError
from lapse.surrogate.model import Model
from lapse.surrogate.noise import member_generator
from lapse.surrogate.rollout import repeat_state, rollout

Make = Callable[..., Model]
Analyses = Callable[[FieldSpec, Any], xr.Dataset]


def run(model: Model, ds: xr.Dataset, steps: int = 3, members: int = 6, **options: Any) -> xr.Dataset:
    return model.forecast(ds, steps, members, progress=False, **options)


def fields(fc: xr.Dataset) -> np.ndarray:
    return fc["vorticity"].values


# what a member is


def test_a_forecast_is_the_rollout_of_each_member_alone(tiny_model: Model, analyses: xr.Dataset) -> None:
    """Stated anew: encode the last two frames, roll out one member at a time (four copies: rounding), decode."""
    fc = run(tiny_model, analyses, steps=3, members=3, seed=4)
    u = to_tensor(analyses.isel(time=[3, 4]), tiny_model.spec)[None]
    for m in range(3):
        with torch.no_grad():
            state = repeat_state(tiny_model.emulator.encode(u), 4)
            generators = [member_generator(4, analyses.time.values[-1], m) for _ in range(4)]
            alone = [f[0, 0].numpy() for _, f in rollout(tiny_model.emulator, state, 3, "fast", generators)]
        assert np.array_equal(fields(fc)[0, m], alone)
    means = fields(fc).mean(axis=(-2, -1))
    assert np.allclose(means, float(analyses["vorticity"][-1].mean()), atol=1e-6)  # the head's promise
    assert fields(fc).std(axis=1).min() > 0


def test_fifty_of_a_hundred_members_are_those_of_fifty(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    fifty, hundred = (run(tiny_model, analyses, steps=2, members=n) for n in (50, 100))
    assert np.array_equal(fields(hundred)[:, :50], fields(fifty))
    store = tmp_path / "fc.zarr"
    assert np.array_equal(fields(run(tiny_model, analyses, steps=2, members=50, store=store)), fields(fifty))
    marked = {p.name: p.stat().st_mtime_ns for p in (store / ".progress").iterdir()}
    grown = run(tiny_model, analyses, steps=2, members=100, store=store, resume=True)
    assert np.array_equal(fields(grown), fields(hundred))
    assert {p.name: p.stat().st_mtime_ns for p in (store / ".progress").iterdir()}.items() >= marked.items()
    assert grown.sizes["member"] == grown["valid"].sum() == 100
    assert [line.split("model ")[1] for line in grown.attrs["history"].splitlines()[1:]] == [
        "tiny, 50 members, 2 steps", "tiny, 100 members, 2 steps",
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["fast", "quality"])
def test_block_size_leaves_no_trace(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path, mode: str) -> None:
    wanted = fields(run(tiny_model, analyses, members=9, mode=mode))
    for size in (1, 2, 4, 5, 8):
        assert np.array_equal(fields(run(tiny_model, analyses, members=9, mode=mode, batch_size=size)), wanted)
    stored = run(tiny_model, analyses, members=9, mode=mode, batch_size=4, store=tmp_path / "fc.zarr")
    assert np.array_equal(fields(stored), wanted)


def test_a_longer_forecast_begins_with_the_shorter(tiny_model: Model, analyses: xr.Dataset) -> None:
    assert np.array_equal(fields(run(tiny_model, analyses, 5))[:, :, :2], fields(run(tiny_model, analyses, 2)))


def test_seed_and_start_make_other_members(tiny_model: Model, analyses: xr.Dataset) -> None:
    first = fields(run(tiny_model, analyses))
    assert not np.isclose(fields(run(tiny_model, analyses, seed=1)), first).mean() > 0.01
    again = analyses.assign_coords(time=analyses.time + 0.2)
    assert not np.isclose(fields(run(tiny_model, again)), first).mean() > 0.01


def test_the_mean_mode_has_no_spread(tiny_model: Model, analyses: xr.Dataset) -> None:
    assert np.ptp(fields(run(tiny_model, analyses, mode="mean")), axis=1).max() == 0


def test_starts_are_forecast_as_if_alone(tiny_model: Model, analyses: xr.Dataset) -> None:
    every = run(tiny_model, analyses, init_times="all")
    assert np.allclose(every.init_time, [0.2, 0.4, 0.6, 0.8])  # two frames of history
    for i, t in enumerate(every.init_time.values):
        alone = run(tiny_model, analyses.sel(time=slice(None, t)))
        assert np.array_equal(fields(alone)[0], fields(every)[i])
    assert np.allclose(every.valid_time, every.init_time + every.lead_time)


def test_members_start_from_initial_members_in_turn(tiny_model: Model, analyses: xr.Dataset) -> None:
    shifted = [analyses.roll(x=5 * k, roll_coords=False) for k in range(3)]
    ensemble = xr.concat(shifted, "member").assign_coords(member=[0, 1, 2])
    fc = run(tiny_model, ensemble, members=7, batch_size=5)
    for k, alone in enumerate(shifted):
        assert np.array_equal(fields(run(tiny_model, alone, members=7))[:, k::3], fields(fc)[:, k::3])
    one_by_one = fields(run(tiny_model, ensemble, members=7, batch_size=1))
    assert np.array_equal(one_by_one, fields(fc))


# times and metadata

TIMES = {
    "datetime64": np.datetime64("2001-02-27T00", "ns") + np.arange(5) * np.timedelta64(6, "h"),
    "noleap": xr.date_range("2001-02-27", periods=5, freq="6h", calendar="noleap", use_cftime=True).values,
    "numeric": 0.2 * np.arange(5),
}


@pytest.fixture(scope="module", params=TIMES)
def dated(request: pytest.FixtureRequest, make_model: Make, make_analyses: Analyses) -> tuple[Model, xr.Dataset, Any]:
    times = TIMES[request.param]
    if request.param == "numeric":
        model = make_model()
    else:
        calendar = "noleap" if request.param == "noleap" else "proleptic_gregorian"
        model = make_model(interval=6.0, time_units="hours", calendar=calendar)
    return model, make_analyses(model.spec, times), times


def test_times_follow_the_input_and_survive_files(dated: tuple[Model, xr.Dataset, Any], tmp_path: Path) -> None:
    model, ds, times = dated
    step = times[1] - times[0]
    fc = run(model, ds, steps=4, members=2, init_times=times[2:4])
    stored = run(model, ds, steps=4, members=2, init_times=times[2:4], store=tmp_path / "fc.zarr")
    fc.to_netcdf(tmp_path / "fc.nc")
    coder = xr.coders.CFDatetimeCoder(time_unit="ns")
    read = [xr.open_dataset(tmp_path / "fc.nc", decode_times=coder), xr.open_zarr(tmp_path / "fc.zarr"), stored]
    for a in [fc, *read]:
        assert a["vorticity"].dims == ("init_time", "member", "lead_time", "y", "x")
        assert a["valid_time"].dims == ("init_time", "lead_time")
        for i in range(2):
            valid = [times[2 + i] + step * (k + 1) for k in range(4)]
            if isinstance(step, float):
                assert np.allclose(a["valid_time"][i], valid) and np.allclose(a["lead_time"], step * np.arange(1, 5))
            else:
                assert (a["valid_time"][i].values == valid).all()
                assert (a["lead_time"].values == np.arange(1, 5) * np.timedelta64(6, "h")).all()
        kinds = {"datetime64": "MMm", "noleap": "OOm", "numeric": "fff"}
        wanted = kinds[next(k for k, t in TIMES.items() if t is times)]
        assert "".join(a[n].dtype.kind for n in ("init_time", "valid_time", "lead_time")) == wanted
        assert np.array_equal(fields(a), fields(fc))
        assert a.attrs["lapse_input_fingerprint"] == fc.attrs["lapse_input_fingerprint"]


def test_cf_xarray_knows_the_coordinates(dated: tuple[Model, xr.Dataset, Any]) -> None:
    model, ds, _ = dated
    fc = run(model, ds, members=2)
    wanted = {
        "forecast_reference_time": "init_time",
        "forecast_period": "lead_time",
        "realization": "member",
        "time": "valid_time",
    }
    assert {k: fc.cf.standard_names[k] for k in wanted} == {k: [v] for k, v in wanted.items()}
    assert fc.cf["atmosphere_relative_vorticity"].name == "vorticity"
    assert fc["vorticity"].attrs["units"] == "s-1" and fc["y"].attrs["units"] == "m"


def spellings() -> dict[str, list[Any]]:
    noleap = cftime.DatetimeNoLeap(2001, 2, 27, 12)
    return {
        "datetime64": ["2001-02-27T12", "2001-02-27 12:00:00", np.datetime64("2001-02-27T12"),
                       datetime(2001, 2, 27, 12), [np.datetime64("2001-02-27T12", "ns")],
                       xr.DataArray(TIMES["datetime64"][2])],
        "noleap": ["2001-02-27T12:00", noleap, [noleap], np.datetime64("2001-02-27T12")],
        "numeric": [0.4, "0.4", np.float32(0.4), [0.4], 0.40000001],
    }  # fmt: skip


def test_starts_are_found_by_any_spelling(dated: tuple[Model, xr.Dataset, Any]) -> None:
    model, ds, times = dated
    wanted = fields(run(model, ds.isel(time=slice(None, 3)), steps=1, members=2))
    for spelled in spellings()[next(k for k, t in TIMES.items() if t is times)]:
        fc = run(model, ds, steps=1, members=2, init_times=spelled)
        assert fc.init_time.values == [times[2]] and np.array_equal(fields(fc), wanted), spelled


def test_unknown_and_too_early_starts_are_all_named(tiny_model: Model, analyses: xr.Dataset) -> None:
    with pytest.raises(SpecError) as error:
        run(tiny_model, analyses, init_times=[0.0, 0.3, 0.4, "soon"])
    text = str(error.value)
    assert text.startswith("3 problems")
    assert (
        "0.0 with 0 frame(s) before it; wanted 1 frame(s) before it" in text and "found 0.3" in text and "soon" in text
    )


def test_provenance(tiny_model: Model, analyses: xr.Dataset) -> None:
    import lapse

    fc = run(tiny_model, analyses, seed=3)
    assert fc.attrs["Conventions"].startswith("CF-1.")
    assert fc.attrs["source"] == f"lapse {lapse.__version__} model tiny sha256:unsaved"
    assert fc.attrs["history"].splitlines()[0] == "made for a test"
    assert "forecast, model tiny, 6 members, 3 steps" in fc.attrs["history"].splitlines()[-1]
    told = {k: fc.attrs[k] for k in ("lapse_seed", "lapse_model", "lapse_mode", "lapse_version")}
    assert told == {"lapse_seed": 3, "lapse_model": "tiny", "lapse_mode": "fast", "lapse_version": lapse.__version__}
    prints = {
        "same": run(tiny_model, analyses, seed=4),
        "earlier frames do not count": run(tiny_model, analyses.isel(time=slice(2, None))),
        "field": run(tiny_model, analyses * 1.0001),
        "time": run(tiny_model, analyses.assign_coords(time=analyses.time + 1)),
    }
    same = {k: v.attrs["lapse_input_fingerprint"] == fc.attrs["lapse_input_fingerprint"] for k, v in prints.items()}
    assert same == {"same": True, "earlier frames do not count": True, "field": False, "time": False}
    assert all(v.attrs["lapse_config_hash"] == fc.attrs["lapse_config_hash"] for v in prints.values())


# reading


def counted(ds: xr.Dataset) -> tuple[xr.Dataset, list[int]]:
    """The Dataset with each frame in a dask block of its own, and the list of frames that are read."""
    import dask.array as da

    read: list[int] = []
    values = ds["vorticity"].values

    def frame(block_info: Any = None) -> np.ndarray:
        k = block_info[None]["array-location"][0][0]
        read.append(k)
        return values[k : k + 1]

    lazy = da.map_blocks(frame, chunks=((1,) * len(values), *((n,) for n in values.shape[1:])), dtype=values.dtype,
                         meta=np.empty((0, 0, 0), values.dtype))  # fmt: skip
    return ds.assign(vorticity=ds["vorticity"].copy(data=lazy)), read


def test_only_the_needed_frames_are_read_and_once(tiny_model: Model, make_analyses: Analyses) -> None:
    ds = make_analyses(tiny_model.spec, 0.2 * np.arange(40))
    lazy, read = counted(ds)
    fc = run(tiny_model, lazy)
    assert sorted(read) == [38, 39]
    assert np.array_equal(fields(fc), fields(run(tiny_model, ds)))
    read.clear()
    run(tiny_model, lazy, init_times=[2.0, 2.2, 6.0])
    assert sorted(read) == [9, 10, 11, 29, 30]


def test_frames_that_are_not_needed_need_not_be_whole(tiny_model: Model, analyses: xr.Dataset) -> None:
    holed = analyses.where(analyses.time != analyses.time[0])
    assert np.array_equal(fields(run(tiny_model, holed)), fields(run(tiny_model, analyses)))
    with pytest.raises(SpecError, match="NaN"):
        run(tiny_model, holed, init_times=0.2)


def test_problems_of_structure_and_of_numbers_come_together(tiny_model: Model, analyses: xr.Dataset) -> None:
    bad = analyses.where(analyses.x < 5).assign_coords(time=[0.0, 0.2, 0.4, 0.6, 1.4])
    bad["vorticity"].attrs["units"] = "m"
    with pytest.raises(SpecError) as error:
        run(tiny_model, bad)
    text = str(error.value)
    assert "irregular times" in text and "units 'm'" in text and "NaN" in text


def test_trajectories_are_a_question(tiny_model: Model, analyses: xr.Dataset) -> None:
    with pytest.raises(SpecError, match=r"ds.isel\(trajectory=0\)"):
        run(tiny_model, xr.concat([analyses, analyses], "trajectory"))
    one = run(tiny_model, analyses.expand_dims("trajectory"))
    assert np.array_equal(fields(one), fields(run(tiny_model, analyses)))


def test_a_mask_is_nan_and_nothing_else_is(make_model: Make, make_analyses: Analyses) -> None:
    mask = np.ones((16, 16), bool)
    mask[3:6, 7:] = False
    model = make_model(masks={"vorticity": mask}, equation=None)
    fc = run(model, make_analyses(model.spec, 0.2 * np.arange(3)))
    assert (np.isfinite(fields(fc)) == mask).all() and bool(fc["valid"].all())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"steps": 0}, "steps=0"), ({"members": 0}, "members=0"), ({"mode": "quick"}, "no mode 'quick'; it has fast"),
     ({"members": 10**9}, "stream it with store="), ({"seed": -1}, "seed=-1")],
)  # fmt: skip
def test_impossible_wishes(tiny_model: Model, analyses: xr.Dataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, MemoryError), match=message):
        run(tiny_model, analyses, **options)


# members that blow up


class Explosive(torch.nn.Module):
    """A fast net that multiplies its answer by a huge number where the first noise number is large."""

    def __init__(self, net: torch.nn.Module, threshold: float) -> None:
        super().__init__()
        self.net, self.threshold = net, threshold

    def forward(self, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        huge = torch.where(c[:, :1] > self.threshold, torch.inf, 1.0)
        return self.net(x, c) * huge[..., None, None]


def test_a_member_that_blows_up_is_flagged_and_harms_no_other(
    tiny_model: Model, analyses: xr.Dataset, tmp_path: Path
) -> None:
    model = copy.deepcopy(tiny_model)
    model.emulator.fast = Explosive(model.emulator.fast, 1.7)  # type: ignore[assignment,arg-type]
    healthy = run(tiny_model, analyses, steps=4, members=20)
    with pytest.warns(UserWarning, match="members blew up") as caught:
        fc = run(model, analyses, steps=4, members=20)
    finite = np.isfinite(fields(fc)).all(axis=(-2, -1))[0]
    lost = ~finite.all(axis=1)
    assert 0 < lost.sum() < 10
    assert np.array_equal(fc["valid"][0] == 0, lost)
    assert np.isnan(fields(fc)[0][~finite]).all()
    assert (np.diff(finite.astype(int), axis=1) <= 0).all()  # never finite again
    assert np.array_equal(fields(fc)[0][finite], fields(healthy)[0][finite])
    first = int(np.flatnonzero(lost)[0])
    text = str(caught[0].message)
    assert text.startswith(f"{lost.sum()} of 20 members blew up: member {first} of the start 0.8 from lead ")
    assert f"from lead {0.2 * (1 + finite[first].sum()):.6g} s on" in text
    with pytest.warns(UserWarning, match=f"^{lost.sum()} of 20 members blew up"):
        stored = run(model, analyses, steps=4, members=20, store=tmp_path / "fc.zarr")
    assert np.array_equal(fields(stored), fields(fc), equal_nan=True)


# stores


def test_a_store_of_something_else_is_not_continued(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    store = tmp_path / "fc.zarr"
    wanted = fields(run(tiny_model, analyses, store=store))
    with pytest.raises(StoreError, match="exists"):
        run(tiny_model, analyses, store=store)
    others: list[tuple[xr.Dataset, dict[str, Any], str]] = [
        (analyses, {"seed": 1}, "identity.seed: the store has 0, asked for 1"),
        (analyses, {"mode": "quality"}, "identity.mode"),
        (analyses, {"steps": 4}, "lead_time"),
        (analyses * 1.001, {}, "identity.inputs"),
        (analyses, {"members": 3}, "member"),
    ]
    for ds, options, message in others:
        with pytest.raises(StoreError, match=message):
            run(tiny_model, ds, store=store, resume=True, **options)
    assert np.array_equal(fields(run(tiny_model, analyses, store=store, resume=True)), wanted)


def test_a_failure_in_the_middle_keeps_what_was_completed(
    tiny_model: Model, analyses: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lapse.datasets.shards import ShardedWriter

    store = tmp_path / "fc.zarr"
    write, done = ShardedWriter.write, []

    def full_after_two(self: ShardedWriter, *arguments: Any) -> None:
        if len(done) == 2:
            raise StoreError("No space left on device")
        write(self, *arguments)
        done.append(arguments)

    with monkeypatch.context() as m, pytest.raises(StoreError, match="No space"):
        m.setattr(ShardedWriter, "write", full_after_two)
        run(tiny_model, analyses, batch_size=2, store=store)
    assert len(list((store / ".progress").iterdir())) == 2
    resumed = run(tiny_model, analyses, batch_size=2, store=store, resume=True)
    assert np.array_equal(fields(resumed), fields(run(tiny_model, analyses)))


STREAM = """
import os, sys, time
import torch
torch.set_num_threads(1)
import lapse
from lapse.datasets.shards import ShardedWriter
model, data, store = sys.argv[1:]
model, ds = lapse.load(model), lapse.open_dataset(data)
write = ShardedWriter.write
def slow(self, values, block):
    time.sleep(0.01)
    write(self, values, block)
    time.sleep(0.01)
ShardedWriter.write = slow
print("ready", flush=True)
for _ in sys.stdin:  # each line asks for one more attempt, in a child that can be killed
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        model.forecast(ds, steps=2, members=40, batch_size=1, store=store, resume=True, progress=False)
        os._exit(0)
    print(child, flush=True)
    _, status = os.waitpid(child, 0)
    print("ended", status, flush=True)
"""


def test_ten_kills_lose_nothing(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    """SIGKILL at random moments of a streaming forecast, then resume: the store of an uninterrupted run.

    The children are forked by a process that has imported everything, since only the forecast is to be killed.
    """
    model = tiny_model.save(tmp_path / "model")
    analyses.to_netcdf(tmp_path / "ds.nc")
    store, script = tmp_path / "fc.zarr", tmp_path / "stream.py"
    script.write_text(STREAM)
    command = [sys.executable, str(script), str(model), str(tmp_path / "ds.nc"), str(store)]
    pipe: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    progress = []
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipe) as parent:
        assert parent.stdin and parent.stdout

        def ask() -> int:
            print("go", file=parent.stdin, flush=True)
            return int(parent.stdout.readline())

        assert parent.stdout.readline() == "ready\n"
        for _ in range(10):
            child, before = ask(), len(list(store.glob(".progress/*.done")))
            wanted = before + random.randint(0, 3)  # blocks further on, then at any moment of a block
            while len(list(store.glob(".progress/*.done"))) < wanted:
                time.sleep(0.002)
            time.sleep(random.uniform(0, 0.1))
            os.kill(child, signal.SIGKILL)
            parent.stdout.readline()
            progress.append(len(list(store.glob(".progress/*.done"))))
        ask()
        assert parent.stdout.readline() == "ended 0\n"
        parent.stdin.close()
    assert progress == sorted(progress) and progress[-1] > 0
    killed = xr.open_zarr(store)
    whole = run(Model(tiny_model.emulator, "tiny", tiny_model.config), analyses, steps=2, members=40)
    assert np.array_equal(fields(killed), fields(whole)) and bool((killed["valid"] == 1).all())
    assert not list(store.rglob("*.partial"))


def test_no_warnings_in_a_healthy_forecast(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(tiny_model, analyses, store=tmp_path / "fc.zarr").load()
        run(tiny_model, analyses, store=tmp_path / "fc.zarr", members=8, resume=True).load()
