"""The command line: from an equation to a report, and every error readable, without a traceback and non-zero."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import lapse
from lapse.datasets.shards import ShardedWriter
from lapse.surrogate import cli
from lapse.surrogate.model import Model

FORECAST = "forecast model sim.zarr --select trajectory=1"
LAPSE = (sys.executable, "-m", "lapse.surrogate.cli")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_model: Model) -> Path:
    """A folder with a model, simulated data, and a forecast of each kind."""
    folder = tmp_path_factory.mktemp("cli")
    tiny_model.save(folder / "model")
    (folder / "bad").write_text("a file, no folder")
    before = Path.cwd()
    os.chdir(folder)
    try:
        for line in (
            "simulate kolmogorov sim.zarr --trajectories 2 --frames 9 --resolution 16 --spin-up 2 "
            "--parameter viscosity=0.1 --quiet",
            f"{FORECAST} --init-time 0.2 0.4 --steps 4 --members 6 --out fc.zarr --quiet",
            f"{FORECAST} --init-time 0.2 0.4 --steps 4 --members 6 --out fc.nc --quiet",
        ):
            assert cli.main(line.split()) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    return place


def run(capsys: pytest.CaptureFixture[str], line: str, status: int = 0) -> str:
    """Standard output of a command line, or its standard error where it is to fail."""
    found = cli.main(line.split())
    out, err = capsys.readouterr()
    assert found == status, out + err
    assert "Traceback" not in err
    return err if status else out


def test_simulated_data_say_how_they_were_made(here: Path) -> None:
    ds = lapse.open_dataset("sim.zarr")
    assert dict(ds.sizes) == {"trajectory": 2, "time": 9, "y": 16, "x": 16}
    assert ds.attrs["equation"] == "kolmogorov" and '"viscosity": 0.1' in ds.attrs["parameters"]
    assert np.allclose(ds.time, 0.2 * np.arange(9))


def test_forecasts_are_those_of_the_library(here: Path, tiny_model: Model) -> None:
    ds = lapse.open_dataset("sim.zarr").isel(trajectory=1)
    wanted = tiny_model.forecast(ds, 4, 6, init_times=[0.2, 0.4], progress=False)
    for path in ("fc.zarr", "fc.nc"):
        assert np.array_equal(lapse.open_dataset(path)["vorticity"], wanted["vorticity"])
    assert not list(here.glob(".*.partial"))


def test_growing_a_store(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "forecast model sim.zarr --select trajectory=0 --steps 2 --out grown.zarr --quiet"
    assert "3 of 3 members finite" in run(capsys, f"{line} --members 3")
    first = lapse.open_dataset("grown.zarr")["vorticity"].values
    assert "5 of 5 members finite" in run(capsys, f"{line} --members 5 --resume")
    assert np.array_equal(lapse.open_dataset("grown.zarr")["vorticity"][:, :3], first)
    error = run(capsys, f"{line} --members 5 --resume --seed 1", 1)
    assert "holds something else" in error and "identity.seed: the store has 0, asked for 1" in error


def test_score_prints_what_the_library_finds(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "score fc.zarr sim.zarr --select trajectory=1 --model model --out scores.nc")
    truth = lapse.open_dataset("sim.zarr").isel(trajectory=1)
    wanted = lapse.score(lapse.open_dataset("fc.nc"), truth, spec=lapse.load("model").spec)
    written = xr.open_dataset("scores.nc")
    assert np.allclose(written["crps"], wanted["crps"]) and "persistence" in written["baseline"]
    rows = [line.split() for line in shown.splitlines() if line.startswith("vorticity ")]
    assert [float(row[3]) for row in rows] == pytest.approx(wanted["crps"].values[0], rel=5e-3)
    ratios = (wanted["crps"] / written["baseline_crps"][0]).values[0]
    assert [float(row[-1]) for row in rows] == pytest.approx(ratios, rel=5e-3)
    assert "enstrophy at the last lead" in shown  # through the model's spec
    assert run(capsys, "score fc.nc sim.zarr --select trajectory=1 --rows 2").count("\n") == 3


def test_score_without_the_starts_has_no_persistence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "score fc.nc sim.zarr --select trajectory=1 --select time=3: --missing drop")
    assert "CRPS/persistence" not in shown and "(no persistence: no state at 0.2" in shown


def test_report_is_one_page(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "report fc.zarr sim.zarr --select trajectory=1 --model model --out page.html --title Whirls")
    text = Path("page.html").read_text()
    assert shown.startswith("page.html:") and "<title>Whirls</title>" in text
    assert "Random weights." in text and not re.search(r'(?:src|href)="https?:', text)


def test_check(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no problem: 9 frames of sim.zarr are what tiny needs" in run(capsys, "check model sim.zarr")
    assert "no problem: 9 frames of sim.zarr can be trained on" in run(capsys, "check sim.zarr")
    ds = lapse.open_dataset("sim.zarr").isel(trajectory=0).load()
    ds["vorticity"][3, 4, 5] = np.nan
    ds["vorticity"].attrs["units"] = "m"
    ds.isel(time=[0, 1, 2, 3, 5]).to_netcdf("bad.nc")
    error = run(capsys, "check model bad.nc", 1)
    assert error.startswith("lapse: error: 3 problems:\n  1. ")
    assert "irregular" in error and "NaN" in error and "units 'm'" in error


def test_inspect(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "inspect model")
    assert "<lapse.Model 'tiny'" in shown and "## Autoencoder" in shown and shown.count("vorticity") == 1
    assert run(capsys, "inspect model --card").count("## ") == 2
    shown = run(capsys, "inspect sim.zarr")
    assert "a store of lapse, complete" in shown and "frames 0.2 s apart" in shown and "viscosity = 0.1" in shown
    shown = run(capsys, "inspect fc.zarr")
    assert "init_time: 0.2 … 0.4" in shown and "lapse_seed: 0" in shown and "FieldSpec" not in shown
    assert "shipped models are" in run(capsys, "inspect nothing", 1)


ERRORS = {
    "check model nothing.zarr": "found nothing at nothing.zarr; wanted a zarr store",
    "check nomodel sim.zarr": "no model 'nomodel': found no such directory; shipped models are",
    "check model model/README.md": "an unknown kind of file; wanted zarr or netCDF",
    "forecast model sim.zarr --steps 2 --out a.zarr": "dimension 'trajectory': found 2 trajectories; wanted one",
    "forecast model sim.zarr --steps 2 --out fc.zarr": "fc.zarr exists: continue it with --resume",
    "forecast model sim.zarr --steps 2 --out fc.nc": "fc.nc exists: delete it",
    "forecast model sim.zarr --steps 2 --out fc.nc --resume": "only a zarr store can be continued",
    "forecast model sim.zarr --steps 2 --out fc.grib": "wanted a name that ends with .zarr or .nc",
    "forecast model sim.zarr --select trajectory=0 --init-time 0.3 --steps 2 --out a.nc": "found 0.3; wanted a time of",
    "forecast model sim.zarr --select trajectory=0 --steps 0 --out a.nc": "steps and members must be at least 1",
    "forecast model sim.zarr --select trajectory=0 --steps 9 --members 999999999 --out a.nc": "above the limit",
    "forecast model sim.zarr --select trajectory=0 --steps 2 --out bad/fc.nc": "the folder of bad/fc.nc failed",
    "score fc.nc sim.zarr --select trajectory=7": "--select: Index 7 is out of bounds",
    "score fc.nc sim.zarr --select path=7": "--select path: found no such dimension; wanted one of",
    "simulate kolmogorof a.zarr --interval 1": "found no equation 'kolmogorof'",
    "simulate kolmogorof a.zarr": "wanted one of ['advection_diffusion', 'allen_cahn', ",
    "simulate burgers a.zarr --dimension 2": "wanted one periodic axis (x)",
    "simulate kolmogorov sim.zarr": "sim.zarr exists",
    "train": "no data.path. Usual fix: lapse train data.path=MY.zarr",
    "train data.pth=sim.zarr": "Usual fix: data.path instead of data.pth",
    "train data.path=sim.zarr training.mean.step=3": "Usual fix: training.mean.steps instead of training.mean.step",
    "train data.path=sim.zarr experiment=kolmogorov65": "kolmogorov64",
    "train data.path=sim.zarr autoencoder=idenity": "identity",
    "train data.path=sim.zarr seed": "missing EQUAL",
    "train data.path=nothing.zarr": "found nothing at nothing.zarr",
}


@pytest.mark.parametrize("line", ERRORS)
def test_errors_are_readable(here: Path, capsys: pytest.CaptureFixture[str], line: str) -> None:
    error = run(capsys, line, 1)
    assert error.startswith("lapse: error: ") and ERRORS[line] in error
    assert not Path("a.zarr").exists() and not Path("a.nc").exists()


def test_debug_shows_the_traceback(here: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.zarr"):
        cli.main(["check", "nothing.zarr", "--debug"])


@pytest.mark.parametrize("line", ["", "foretell", "forecast model", "score fc.nc sim.zarr --select time", "--steps"])
def test_a_wrong_command_line_is_status_2(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(line.split())
    assert stop.value.code == 2 and "usage: lapse" in capsys.readouterr().err


def test_help_says_units_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("simulate", "train", "forecast", "score", "check", "inspect", "report"):
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr().out
        assert "--debug" in shown
        for option in re.findall(r"^  (--[a-z-]+) [A-Z]", shown, re.MULTILINE):
            about = shown.split(f"  {option} ", 1)[1].split("\n  --")[0]
            assert "default" in about or option in ("--steps", "--out", "--select", "--time-units", "--parameter"), (
                option
            )
    from lapse.physics.equation import SHIPPED, lookup

    solved = sorted(name for name in SHIPPED if not lookup(name).algebraic)
    assert ", ".join(solved) in " ".join(_help(capsys, "simulate").split())
    assert "in s" in _help(capsys, "simulate") and "LAPSE_THREADS" in _help(capsys, "")


def _help(capsys: pytest.CaptureFixture[str], verb: str) -> str:
    with pytest.raises(SystemExit):
        cli.main([*verb.split(), "--help"])
    return capsys.readouterr().out


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lapse.surrogate.cli import main\n"
        "try: main([{!r}])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'xarray', 'numpy', 'lightning', 'hydra') if m in sys.modules])"
    )
    for option in ("--help", "--version"):
        command = [sys.executable, "-c", code.format(option)]
        out = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60).stdout
        assert out.endswith("[]\n") and (lapse.__version__ in out or "VERB" in out)


@pytest.mark.parametrize(("told", "wanted"), [(None, 1), ("2", 2)])
def test_threads(told: str | None, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if told is None:
        monkeypatch.delenv("LAPSE_THREADS", raising=False)
        torch.set_num_threads(2)
    else:
        monkeypatch.setenv("LAPSE_THREADS", told)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cli._set_threads()
    assert torch.get_num_threads() == wanted
    torch.set_num_threads(1)


def test_threads_must_be_a_number(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LAPSE_THREADS", "many")
    assert "LAPSE_THREADS: found 'many', wanted a whole number" in run(capsys, "inspect nothing", 1)


def test_train_shows_its_config(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "train --show emulator.width=24 data.path=sim.zarr")
    assert "path: sim.zarr" in shown and "width: 24" in shown
    files = run(capsys, "train --show")
    assert "--- trainer/slurm" in files and "# zarr or netCDF" in files


def test_from_data_to_model_to_forecast(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps a stage: that the way is open, not that it leads far."""
    stages = " ".join(
        f"training.{s}.steps=2 training.{s}.batch=2" for s in ("autoencoder", "error", "mean", "generator", "fast")
    )
    short = "training.mean.unroll=[[0,1]] training.fast.unroll=[[0,1]]"
    net = (
        "autoencoder.width=8 autoencoder.encoder_depth=1 autoencoder.decoder_depth=1 emulator.width=8 emulator.depth=1"
    )
    split = "data.by=time data.fractions=[0.6,0.0,0.4]"
    shown = run(capsys, f"train data.path=sim.zarr name=mine out=mine {stages} {short} {net} {split} --quiet")
    assert "# mine" in shown and "model: mine/model" in shown
    shown = run(capsys, "forecast mine sim.zarr --select trajectory=0 --steps 1 --members 2 --out mine.nc --quiet")
    assert "2 of 2 members finite" in shown
    again = run(capsys, f"train data.path=sim.zarr name=mine out=mine {stages} {short} {net} {split} --quiet")
    assert "# mine" in again  # nothing is trained twice


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """Files of this process may not grow beyond ``size`` bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_clearly_and_keeps_completed_blocks(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "forecast model sim.zarr --select trajectory=0 --steps 5 --members 12 --batch-size 4 --out full.zarr --quiet"
    write, calls = ShardedWriter.write, []

    def second_fails(self: ShardedWriter, *arguments: Any) -> None:
        calls.append(arguments)
        with disk_of(1000) if len(calls) == 2 else nullcontext():
            write(self, *arguments)

    with monkeypatch.context() as m:
        m.setattr(ShardedWriter, "write", second_fails)
        error = run(capsys, line, 1)
    assert "lapse: error: writing block 0.1 of full.zarr failed: File too large" in error and "then resume" in error
    assert [p.name for p in Path("full.zarr/.progress").glob("*.done")] == ["0.0.done"]
    assert "12 of 12 members finite" in run(capsys, f"{line} --resume")
    run(capsys, line.replace("full.zarr", "whole.nc"))
    assert np.array_equal(lapse.open_dataset("full.zarr")["vorticity"], lapse.open_dataset("whole.nc")["vorticity"])


def test_a_full_disk_leaves_no_half_file(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    to_netcdf = xr.Dataset.to_netcdf

    def full(self: xr.Dataset, *arguments: Any, **options: Any) -> None:
        with disk_of(1000):
            to_netcdf(self, *arguments, **options)

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    line = "forecast model sim.zarr --select trajectory=0 --steps 5 --members 12 --out full.nc --quiet"
    error = run(capsys, line, 1)
    assert error.startswith("lapse: error: writing full.nc failed: ") and "Free or remount the disk" in error
    assert not list(here.glob("*full.nc*"))


@pytest.mark.parametrize("out", ["fc.zarr", "fc.nc", "scores.nc"])
def test_a_read_only_place_ends_clearly(
    here: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Permissions do not bind root, whom tests may run as; the kernel's read-only /proc does."""
    line = f"forecast model sim.zarr --select trajectory=0 --steps 1 --members 2 --out /proc/{out} --quiet"
    if out == "scores.nc":
        line = f"score fc.nc sim.zarr --select trajectory=1 --out /proc/{out}"
    assert f"/proc/{out}" in run(capsys, line, 1)


def test_an_interruption_says_what_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lapse.surrogate.job.Job.compute", interrupted)
    line = "forecast model sim.zarr --select trajectory=0 --steps 1 --members 2 --out stopped.zarr --quiet"
    assert "lapse: interrupted. Completed blocks" in run(capsys, line, 130)
    assert "1 of 1 blocks missing: --resume" in run(capsys, "inspect stopped.zarr")


def test_ctrl_c_stops_a_real_process(here: Path) -> None:
    line = (
        "forecast model sim.zarr --select trajectory=0 --steps 50 --members 2000 --batch-size 4 --out long.zarr --quiet"
    )
    # A shell starts its background jobs deaf to Ctrl-C, and whatever these start; this one has to hear it.
    process = subprocess.Popen(
        [*LAPSE, *line.split()], cwd=here, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    marked = here / "long.zarr" / ".progress"
    deadline = time.monotonic() + 60
    while not list(marked.glob("*.done")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Completed blocks of a zarr store are kept" in error
    assert "Traceback" not in error and list(marked.glob("*.done"))
