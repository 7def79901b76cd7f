"""The front door opens at once, imports run one way, and the linters are content."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "lightning", "neuralop", "xarray", "zarr", "dask", "matplotlib", "hydra")
PACKAGES = ("physics", "datasets", "autoencoder", "surrogate")


def run(*command: str, cwd: Path, timeout: float = 240) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_loads_no_heavy_library(tmp_path: Path) -> None:
    code = f"import sys, lapse; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(sys.executable, "-c", code, cwd=tmp_path) == "[]\n"


def test_import_takes_less_than_a_second(tmp_path: Path) -> None:
    """Start-up of the interpreter included; the best of three, since the machine may have other work."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        run(sys.executable, "-c", "import lapse", cwd=tmp_path)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


def test_every_public_name_resolves() -> None:
    import lapse

    assert sorted(dir(lapse)) == sorted(lapse.__all__)
    for name in lapse.__all__:
        assert getattr(lapse, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'forecst'"):
        _ = lapse.forecst


def test_layers(root: Path) -> None:
    command = Path(sys.executable).with_name("lint-imports")
    report = run(str(command), "--no-cache", "--config", str(root / "pyproject.toml"), cwd=root)
    assert "1 kept, 0 broken" in report


def test_ruff(root: Path) -> None:
    run(sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", cwd=root)


def test_types(root: Path, tmp_path: Path) -> None:
    """mypy --strict on the modules as users import them: through a link, whatever the clone is called."""
    (tmp_path / "lapse").symlink_to(root, target_is_directory=True)
    shutil.copy(root / "pyproject.toml", tmp_path)
    cache = root / ".mypy_cache" / "tests"
    arguments = [f for name in PACKAGES for f in ("-p", f"lapse.{name}")]
    command = (sys.executable, "-m", "mypy", "--cache-dir", str(cache), "-m", "lapse", *arguments)
    run(*command, cwd=tmp_path)
