"""Renders `docs/results.md` from `benchmarks/results/*.json` and nothing else: no figure is typed by hand.

    python benchmarks/tables.py            # write (make results)
    python benchmarks/tables.py --check    # exit 1 if the page is out of date
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"
BEGIN = "<!-- results: begin (written by make results; edits are lost) -->"
END = "<!-- results: end -->"
MARK = {True: "met", False: "**missed**", None: "–"}


def number(value: Any) -> str:
    """Three significant digits, or what it is if it is not a number.

    >>> number(0.83456), number(12345.6), number(3.2e-7), number(True), number(None)
    ('0.835', '12,346', '3.2e-07', 'yes', 'none')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def table(name: str, content: dict[str, Any]) -> str:
    """One benchmark as a heading, the conditions it ran under, and a Markdown table."""
    judged = [row["met"] for row in content["rows"] if row["met"] is not None]
    machines = {_machine(stage["machine"]): None for stage in content["stages"].values()}
    commits = {stage["commit"]: None for stage in content["stages"].values()}
    libraries = ", ".join(f"{library} {v}" for library, v in content["versions"].items())
    lines = [
        f"### {name}",
        "",
        f"`make bench-{name.replace('_', '-')}`: {sum(judged)} of {len(judged)} targets met. "
        f"{number(content['minutes'])} minutes on {'; '.join(machines)}. "
        f"Commit {', '.join(commits)}; {libraries}.",
        "",
        "| check | value | range | unit | target | |",
        "|---|---|---|---|---|---|",
    ]
    for row in content["rows"]:
        span = "" if row["range"] is None else " to ".join(number(x) for x in row["range"])
        figure, target = number(row["value"]), row["target"] or ""
        cells = [row["check"], figure, span, row["unit"] or "", target, MARK[row["met"]]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    if content["notes"]:
        lines += ["", *(f"- {note}" for note in content["notes"])]
    return "\n".join(lines)


def _machine(facts: dict[str, Any]) -> str:
    parts = [facts["cpu"], f"{facts['cores']} cores"]
    if "memory_gib" in facts:
        parts.append(f"{facts['memory_gib']:g} GiB")
    if "gpu" in facts:
        parts.append(facts["gpu"])
    return ", ".join(parts)


def render(page: str, results: Path = RESULTS) -> str:
    """`page` with the text between its markers replaced by one table for each JSON file in `results`."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError(f"the page needs exactly one {BEGIN!r} and, after it, one {END!r}")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    files = sorted(results.glob("*.json"))
    tables = [table(file.stem, json.loads(file.read_text())) for file in files]
    tables = tables or ["No benchmark has been recorded yet."]
    return before + "\n\n".join([BEGIN, *tables, END]) + after


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if the page is stale")
    arguments = parser.parse_args()
    old = PAGE.read_text()
    new = render(old)
    if arguments.check:
        return int(old != new)
    PAGE.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
