"""The benchmarks' records: targets are judged rightly, stages merge, and tables say what the records say."""

import doctest
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("record")


@pytest.fixture
def tables(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("tables")


@pytest.mark.parametrize(
    ("value", "target", "met"),
    [
        (0.85, "<= 0.85", True),
        (0.85, "< 0.85", False),
        (30, "≥ 30", True),
        (1e-7, "<= 1e-6", True),
        (0.8, "0.8–1.2", True),
        (1.21, "0.8..1.2", False),
        (-0.5, "[-1, 1]", True),
        (True, "true", True),
        (False, "true", False),
        (float("nan"), "<= 1", False),
        (None, "<= 1", False),
        (0.1, None, None),
        (0.1, "as small as can be", None),
    ],
)
def test_targets(bench: ModuleType, value: float | None, target: str | None, met: bool | None) -> None:
    assert bench.Row("a", value, target=target).met is met


def test_doctests(bench: ModuleType, tables: ModuleType) -> None:
    for module in (bench, tables):
        result = doctest.testmod(module)
        assert result.attempted and not result.failed


def test_stages_merge(bench: ModuleType, tmp_path: Path) -> None:
    def write(stage: str, minutes: float, notes: str | None = None, **values: float) -> dict:
        rows = [bench.Row(check.replace("_", "."), value) for check, value in values.items()]
        return json.loads(bench.record("x", rows, minutes, notes, stage=stage, folder=tmp_path).read_text())

    write("first", 2.0, "one seed", _10=1.0, _2=2.0)
    content = write("second", 3.0, "one seed", _3=3.0)
    assert [row["check"] for row in content["rows"]] == [".2", ".3", ".10"]  # natural order
    assert content["minutes"] == 5 and content["notes"] == ["one seed"]

    # A stage that is run again replaces what it wrote, what it no longer writes included, and its time.
    content = write("first", 4.0, _2=2.5)
    assert {row["check"]: row["value"] for row in content["rows"]} == {".2": 2.5, ".3": 3.0}
    assert content["minutes"] == 7

    # A check belongs to one stage: the last that wrote it.
    content = write("third", 1.0, _3=3.5)
    assert content["stages"]["second"]["checks"] == [] and len(content["rows"]) == 2
    with pytest.raises(ValueError, match="twice"):
        bench.record("x", [bench.Row("a", 1), bench.Row("a", 2)], 1, folder=tmp_path)


def test_a_record_is_strict_json_without_names_of_machines(bench: ModuleType, tmp_path: Path) -> None:
    path = bench.record("x", [bench.Row("a", float("inf"), (1.0, float("nan")), "< 1")], 0.5, folder=tmp_path)
    text = path.read_text()
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert content["rows"] == [
        {"check": "a", "value": None, "range": [1.0, None], "target": "< 1", "unit": None, "met": False}
    ]
    assert set(content) >= {"machine", "commit", "versions", "minutes", "rows"}
    assert content["machine"]["cores"] >= 1 and content["machine"]["cpu"]
    assert re.fullmatch(r"[0-9a-f]{12}(-dirty)?|unknown", content["commit"])
    assert str(Path.home()) not in text and str(bench.ROOT) not in text
    assert not list(tmp_path.glob("*.tmp"))


def test_quick_runs_are_kept_apart(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "1")
    assert bench.quick() and bench.results_folder().parts[-2:] == ("work", "quick")
    monkeypatch.setenv("QUICK", "0")
    assert not bench.quick() and bench.results_folder().parts[-2:] == ("benchmarks", "results")


def test_committed_records_judge_their_rows_as_the_code_does(bench: ModuleType) -> None:
    """Neither a figure nor its verdict was edited by hand into disagreement."""
    for path in (bench.ROOT / "benchmarks" / "results").glob("*.json"):
        for row in json.loads(path.read_text())["rows"]:
            assert bench.meets(row["value"], row["target"]) is row["met"], (path.name, row["check"])


def test_tables(bench: ModuleType, tables: ModuleType, tmp_path: Path) -> None:
    rows = [
        bench.Row("2.1 crps fast | latent-16", 0.8312, (0.8, 0.86), "<= 0.85", "ratio"),
        bench.Row("2.2 speed", 12.0, target=">= 30"),
        bench.Row("2.3 seconds", 1234.5),
    ]
    bench.record("forecast_64", rows, 1.5, "three seeds", folder=tmp_path)
    page = f"before\n\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    new = tables.render(page, tmp_path)
    assert new.startswith("before\n") and new.endswith("\nafter\n") and "old" not in new
    assert "`make bench-forecast-64`: 1 of 2 targets met." in new
    assert "| 2.1 crps fast \\| latent-16 | 0.831 | 0.8 to 0.86 | ratio | <= 0.85 | met |" in new
    assert "| 2.2 speed | 12 |  |  | >= 30 | **missed** |" in new
    assert "| 2.3 seconds | 1,234 |  |  |  | – |" in new
    assert tables.render(new, tmp_path) == new
    with pytest.raises(ValueError, match="exactly one"):
        tables.render("no markers", tmp_path)
