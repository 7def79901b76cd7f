"""The wheel ships what the tree holds, and the files that state the same fact agree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
from typing import Any

import pytest

import lapse

FOLDERS = ("autoencoder", "configs", "datasets", "physics", "surrogate")
OUTSIDE = {"tests", "benchmarks", "docs", "build", "dist", "demo", "runs", "outputs", "data"}


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def pins(root: Path) -> dict[str, str]:
    lines = (root / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel that was built offline from a copy of the tree.

    From a copy, because setuptools leaves a `build` folder behind, whose stale files the next wheel ships.
    """
    copy = tmp_path_factory.mktemp("tree")
    out = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "py.typed"):
        shutil.copy(root / name, copy)
    for name in FOLDERS:
        shutil.copytree(root / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "-w", str(out), str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    assert built.name.startswith(f"lapse-{lapse.__version__}-py3-none-any")
    with zipfile.ZipFile(built) as archive:
        return set(archive.namelist())


def test_every_package_is_listed(root: Path, project: dict[str, Any]) -> None:
    folders = [init.parent.relative_to(root).parts for init in root.glob("**/__init__.py")]
    found = {
        ".".join(("lapse", *parts))
        for parts in folders
        if not OUTSIDE & set(parts) and not any(part.startswith(".") for part in parts)
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found


def test_the_root_holds_one_module(root: Path) -> None:
    """Any other would be shipped as part of the package."""
    assert [file.name for file in root.glob("*.py")] == ["__init__.py"]


def test_tests_and_benchmarks_are_no_packages(root: Path) -> None:
    assert not (root / "tests" / "__init__.py").exists()
    assert not (root / "benchmarks" / "__init__.py").exists()


def test_benchmarks_hide_no_standard_module(root: Path) -> None:
    """`python benchmarks/NAME.py` looks there first: `compression` would break Python 3.14."""
    stems = {file.stem for file in (root / "benchmarks").glob("*.py")}
    assert not stems & (sys.stdlib_module_names | {"annotationlib", "compression"})


def test_wheel_holds_code_configs_and_models(root: Path, wheel: set[str]) -> None:
    wanted = {"lapse/__init__.py", "lapse/py.typed"}
    for folder in FOLDERS:
        for file in (root / folder).rglob("*"):
            shipped = file.suffix == ".py" or folder == "configs" or "models" in file.parts
            if file.is_file() and "__pycache__" not in file.parts and shipped:
                wanted.add("lapse/" + file.relative_to(root).as_posix())
    assert wanted <= wheel, sorted(wanted - wheel)


def test_wheel_holds_nothing_else(wheel: set[str]) -> None:
    own = {name for name in wheel if not re.match(r"lapse-[^/]+\.dist-info/", name)}
    folders = {name.split("/")[1] for name in own if name.count("/") > 1}
    assert {name.split("/")[0] for name in own} == {"lapse"}
    assert folders <= set(FOLDERS)
    assert any(name.endswith("licenses/LICENSE") for name in wheel)


def test_every_third_party_import_is_declared(root: Path, project: dict[str, Any]) -> None:
    """A module that comes only through another library disappears with that library's next release."""
    extras = project["project"]["optional-dependencies"]
    declared = names([*project["project"]["dependencies"], *extras["verify"], *extras["units"], *extras["hpc"]])
    owners = packages_distributions()
    undeclared = {}
    for file in (file for folder in FOLDERS for file in (root / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module or ""]
            else:
                continue
            for module in (module.split(".")[0] for module in modules):
                if module == "lapse" or module in sys.stdlib_module_names:
                    continue
                if not declared & {normal(owner) for owner in owners.get(module, [module])}:
                    undeclared[module] = file.relative_to(root).as_posix()
    assert not undeclared


def test_constraints_are_sorted_and_exact(pins: dict[str, str]) -> None:
    assert list(pins) == sorted(pins)
    assert all(re.fullmatch(r"[0-9][\w.]*", version) for version in pins.values())
    assert "+" not in pins["torch"], "a local suffix would refuse every other build of the same torch"


def test_constraints_cover_every_extra(project: dict[str, Any], pins: dict[str, str]) -> None:
    wanted = names([*project["project"]["dependencies"], "uv"])
    for extra in project["project"]["optional-dependencies"].values():
        wanted |= names(extra)
    assert wanted - {"lapse"} <= set(pins)


def test_the_environment_is_the_constraints(pins: dict[str, str]) -> None:
    """Every pinned distribution that is installed has its pinned version: the tests speak of these alone."""
    installed = {normal(d.name): d.version.split("+")[0] for d in distributions()}
    wrong = {name: (installed[name], pin) for name, pin in pins.items() if installed.get(name, pin) != pin}
    if wrong and "CI" not in os.environ:
        pytest.skip(f"this environment was not made by `make setup`: {wrong}")
    assert not wrong


def test_statements_of_the_same_fact_agree(root: Path, pins: dict[str, str]) -> None:
    assert f"\nversion: {lapse.__version__}\n" in (root / "CITATION.cff").read_text()
    newest = re.search(r"^## \[(.+?)\]", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest[1] in (lapse.__version__, "Unreleased")
    hooks = (root / ".pre-commit-config.yaml").read_text()
    assert re.search(rf"ruff-pre-commit\n\s+rev: v{re.escape(pins['ruff'])}\n", hooks)
    assert "Apache License" in (root / "LICENSE").read_text()[:200]


def names(requirements: list[str]) -> set[str]:
    """The distributions that a list of requirements names."""
    return {normal(re.split(r"[<>=!~\[ ;]", requirement)[0]) for requirement in requirements}


def normal(name: str) -> str:
    """A distribution's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()
