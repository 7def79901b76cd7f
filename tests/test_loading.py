"""The loading benchmark runs from end to end and writes a row for every figure that was asked for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from types import ModuleType

import pytest


def test_smoke(benchmark_module: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUICK", "1")
    loading = benchmark_module("loading")
    monkeypatch.setattr(loading, "FRAMES", 1024)
    monkeypatch.setattr(loading, "SAMPLES", 8)
    loading.main()
    rows = json.loads((loading.ROOT / "benchmarks" / "work" / "quick" / "loading.json").read_text())["rows"]
    found = {row["check"].split()[0] for row in rows if row["target"] is not None}
    assert found == {"5.2", "5.3"} | ({"5.1"} if importlib.util.find_spec("xbatcher") else set())
    assert all(row["value"] >= 0 for row in rows)
