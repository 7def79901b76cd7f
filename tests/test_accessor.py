"""``ds.lapse``: there whichever of lapse and xarray comes first, and nothing but another way to say it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import lapse
from lapse.surrogate.model import Model


@pytest.mark.parametrize(
    "imports",
    [
        "import lapse, xarray as xr",
        "import xarray as xr, lapse",
        "import lapse; from xarray import Dataset; import xarray as xr",
        "import lapse, importlib.util; importlib.util.find_spec('xarray'); import xarray as xr",
        "import lapse, importlib, sys; del sys.modules['lapse']; import lapse, xarray as xr",
        "import xarray as xr; from lapse import SpecError",
    ],
)
def test_order_of_imports_does_not_matter(imports: str, tmp_path: Path) -> None:
    code = (
        f"import warnings, sys; warnings.simplefilter('error'); before = list(sys.meta_path); {imports}; "
        "print(type(xr.Dataset().lapse).__module__, [f for f in sys.meta_path if 'lapse' in type(f).__module__])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "lapse.surrogate.accessor []\n"), done.stderr


def test_it_says_the_same(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    fc = analyses.isel(time=slice(3)).lapse.forecast(tiny_model, steps=2, members=4, seed=1, progress=False)
    wanted = tiny_model.forecast(analyses.isel(time=slice(3)), 2, 4, seed=1, progress=False)
    assert np.array_equal(fc["vorticity"], wanted["vorticity"])
    xr.testing.assert_equal(fc.lapse.score(analyses), lapse.score(wanted, analyses))
    xr.testing.assert_equal(analyses.lapse.check(tiny_model), tiny_model.check(analyses))
    latents = analyses.lapse.encode(tiny_model)
    xr.testing.assert_equal(latents, tiny_model.encode(analyses))
    xr.testing.assert_equal(latents.lapse.decode(tiny_model), analyses.lapse.reconstruction(tiny_model))
    page = fc.lapse.report(analyses, tmp_path / "page.html")
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_path_will_do_for_a_model(tiny_model: Model, analyses: xr.Dataset, tmp_path: Path) -> None:
    path = tiny_model.save(tmp_path / "model")
    assert analyses.lapse.check(str(path)).sizes == analyses.sizes
    with pytest.raises(ValueError, match="no model 'nothing'"):
        analyses.lapse.check("nothing")


def test_problems_are_ours(tiny_model: Model, analyses: xr.Dataset) -> None:
    with pytest.raises(lapse.SpecError, match="vorticity"):
        analyses.rename(vorticity="w").lapse.forecast(tiny_model, 2)
