"""The record of a benchmark: one JSON file a benchmark, one row for every figure that was asked for.

    {"machine": {"cpu": …, "cores": …, "memory_gib": …}, "commit": …, "versions": {…}, "minutes": …,
     "rows": [{"check": "2.1 crps fast / latent-16", "value": 0.83, "range": [0.80, 0.86],
               "target": "<= 0.85", "unit": "ratio", "met": true}, …],
     "stages": {"all": {"minutes": …, "commit": …, "machine": …, "checks": […]}}, "notes": […]}

A benchmark runs in stages that can be resumed: every call of `record` replaces what its stage wrote before
and keeps the rows of the others, so that the file is complete after the last stage, in whatever order they
ran. `met` follows from `target` and `value` alone. The machine is described without its name or paths.
"""

import json
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("lapse", "torch", "numpy", "xarray", "zarr", "lightning")
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"


def quick() -> bool:
    """True under QUICK=1: a smoke test of minutes, whose figures mean nothing and are kept apart."""
    return os.environ.get("QUICK", "0") not in ("", "0")


def results_folder() -> Path:
    """Where records go: `benchmarks/results`, or an ignored folder under QUICK=1."""
    return ROOT / "benchmarks" / ("work/quick" if quick() else "results")


def meets(value: float | str | bool | None, target: str | None) -> bool | None:
    """Whether `value` satisfies `target`; None where there is no target, or none that a program can judge.

    Understood are `<= 0.85`, `< 3`, `>= 30`, `> 0`, `== 0`, `0.8..1.2` (both ends included) and `true`.
    A figure that is missing or not finite misses every target.

    >>> meets(0.83, "<= 0.85"), meets(1.3, "0.8..1.2"), meets(float("nan"), "> 0"), meets(2.0, "small")
    (True, False, False, None)
    """
    if target is None:
        return None
    text = target.strip().replace("≤", "<=").replace("≥", ">=").replace("–", "..")
    if text.lower() == "true":
        return value is True
    bound = re.fullmatch(rf"(<=|>=|==|<|>)\s*({NUMBER})", text, re.IGNORECASE)
    between = re.fullmatch(rf"\[?\s*({NUMBER})\s*(?:\.\.|,)\s*({NUMBER})\s*\]?", text, re.IGNORECASE)
    if bound is None and between is None:
        return None
    if value is None or isinstance(value, str) or not math.isfinite(value):
        return False
    if between is not None:
        return float(between[1]) <= value <= float(between[2])
    assert bound is not None
    limit = float(bound[2])
    return {
        "<=": value <= limit,
        ">=": value >= limit,
        "==": value == limit,
        "<": value < limit,
        ">": value > limit,
    }[bound[1]]


@dataclass(frozen=True)
class Row:
    """One figure: what was checked (the issue's item first), its value, range over seeds, target, unit."""

    check: str
    value: float | str | bool | None
    range: tuple[float, float] | None = None
    target: str | None = None
    unit: str | None = None

    @property
    def met(self) -> bool | None:
        return meets(self.value, self.target)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: a value that is not finite becomes null, which no target accepts."""
        value = self.value
        if isinstance(value, float) and not math.isfinite(value):
            value = None
        row = {**asdict(self), "value": value, "met": self.met}
        row["range"] = None if self.range is None else [x if math.isfinite(x) else None for x in self.range]
        return row


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and the accelerator if torch runs on one."""
    cpu = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE)
        cpu = names[0] if names else cpu
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found: dict[str, Any] = {"cpu": cpu, "cores": cores}
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def commit() -> str:
    """The commit's short hash; `-dirty` if tracked files differ from it (results and docs apart)."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        code = (".", ":!benchmarks/results", ":!docs")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", *code)
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a figure."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def record(
    name: str,
    rows: Iterable[Row],
    minutes: float,
    notes: str | Iterable[str] | None = None,
    *,
    stage: str = "all",
    folder: Path | None = None,
) -> Path:
    """Write the rows of one stage of benchmark `name` to `NAME.json` and return the file's path.

    `minutes` is what this stage took; the file's total is the sum over stages. A check belongs to the stage
    that wrote it last. Notes are collected over stages, each once.
    """
    path = (folder or results_folder()) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text()) if path.is_file() else {"rows": [], "stages": {}, "notes": []}
    new = [row.to_dict() for row in rows]
    checks = [row["check"] for row in new]
    if twice := sorted({check for check in checks if checks.count(check) > 1}):
        raise ValueError(f"{name}: the same check twice in one stage: {twice}")

    stages = {
        key: {**facts, "checks": [check for check in facts["checks"] if check not in checks]}
        for key, facts in old["stages"].items()
    }
    dropped = set(checks).union(old["stages"].get(stage, {}).get("checks", []))
    here = {"machine": machine(), "commit": commit()}
    stages[stage] = {"minutes": round(minutes, 3), **here, "checks": checks}
    kept = [row for row in old["rows"] if row["check"] not in dropped]
    added = [notes] if isinstance(notes, str) else list(notes or [])
    content = {
        **here,
        "versions": versions(),
        "minutes": round(sum(s["minutes"] for s in stages.values()), 3),
        "rows": sorted(kept + new, key=lambda row: _natural(row["check"])),
        "stages": stages,
        "notes": list(dict.fromkeys([*old["notes"], *added])),
    }
    # Renamed into place, so that a benchmark killed while writing leaves the last complete record.
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)
    return path


def show(rows: Iterable[Row], path: Path) -> None:
    """Print the rows with their verdicts, and where they were written."""
    for row in rows:
        value = f"{row.value:.4g}" if isinstance(row.value, float) else str(row.value)
        verdict = f" (target {row.target}, {'met' if row.met else 'missed'})" if row.target else ""
        print(f"{row.check}: {value} {row.unit or ''}{verdict}")
    print(f"wrote {path.relative_to(ROOT)}")


def _natural(text: str) -> list[tuple[bool, int | str]]:
    """Sort key that puts `2.2` before `2.10`."""
    parts = (part for part in re.split(r"(\d+)", text) if part)
    return [(part.isdecimal(), int(part) if part.isdecimal() else part) for part in parts]
