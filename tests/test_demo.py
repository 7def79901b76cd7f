"""The demo, with a tiny model: what it writes is what it says, and the figures it prints are those of the files."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lapse
from lapse.surrogate import demo
from lapse.surrogate.model import Model


@pytest.fixture(scope="module")
def shown(tiny_model: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    tiny_model.save(folder / "model")
    (folder / "out" / "forecast.zarr").mkdir(parents=True)  # of an earlier run
    (folder / "out" / "forecast.nc").write_text("of an earlier run")
    text = io.StringIO()
    arguments = ["--model", str(folder / "model"), "--members", "5", "--steps", "6", "--out", str(folder / "out")]
    with contextlib.redirect_stdout(text):
        assert demo.main(arguments) == 0
    return text.getvalue(), folder / "out"


def test_files(shown: tuple[str, Path], tiny_model: Model) -> None:
    text, out = shown
    names = ["forecast.nc", "forecast.zarr", "report.html", "truth.zarr"]
    assert sorted(p.name for p in out.iterdir()) == names and all(str(out / n) in text for n in names)
    fc, truth = lapse.open_dataset(out / "forecast.nc"), lapse.open_dataset(out / "truth.zarr").isel(trajectory=0)
    assert np.array_equal(fc["vorticity"], lapse.open_dataset(out / "forecast.zarr")["vorticity"])
    assert truth.attrs["lapse_seed"] == demo.SEED and truth.sizes["time"] == 2 + 6
    assert np.allclose(fc["init_time"], truth["time"][1])
    wanted = tiny_model.forecast(truth.isel(time=[0, 1]), 6, 5, progress=False)
    assert np.array_equal(fc["vorticity"], wanted["vorticity"])
    assert (out / "report.html").read_text().count("Random weights.") == 1


def test_figures(shown: tuple[str, Path]) -> None:
    text, out = shown
    fc, truth = lapse.open_dataset(out / "forecast.nc"), lapse.open_dataset(out / "truth.zarr").isel(trajectory=0)
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]
    rows = {row[0]: row[1:] for row in cells if len(row) > 3}
    last = truth["vorticity"].sel(time=fc["valid_time"].values[0, -1], method="nearest")
    ratio = float((fc["vorticity"][0, :, -1] ** 2).mean() / (last**2).mean())
    assert float(rows["enstrophy: members / truth"][-1]) == pytest.approx(ratio, abs=2e-3)
    assert rows["finite members, of 5"] == ["5"] * 5
    assert all(float(x) < 1e-6 for x in rows["area mean of vorticity: largest drift / std"])
    assert any(name.startswith("power of vorticity, k ") for name in rows) and "energy: members / truth" in rows
    crps = lapse.score(fc, truth)["crps"].values[0]
    assert float(rows["vorticity"][1]) == pytest.approx(crps[-1], rel=5e-3)


def test_without_a_model(capsys: pytest.CaptureFixture[str], make_model: Callable[..., Model], tmp_path: Path) -> None:
    assert demo.main(["--model", "nothing", "--out", str(tmp_path)]) == 1
    assert "no model 'nothing'" in capsys.readouterr().err
    make_model(equation=None).save(tmp_path / "model")
    assert demo.main(["--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) == 1
    assert "names no equation" in capsys.readouterr().err and not (tmp_path / "out").exists()
