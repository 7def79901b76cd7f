"""Every snippet of the README and of docs/ runs, every link leads somewhere, every result has its record.

The blocks of one page are run from top to bottom in one temporary folder, as a reader would:

- ```` ```python ```` blocks share one namespace;
- of ```` ```bash ```` and ```` ```console ```` blocks, the lines that begin with `lapse` (or `$ lapse`) are
  run by the shell, continued lines included; other lines are set-up or output.

Comments, which a reader does not see, adapt a page to the test:

    <!-- setup: … -->              Python that is run first, wherever it stands; once a page
    <!-- skip-test: reason -->     the next block is not run
    <!-- test-with: A=1 B=2 -->    appended to every `lapse` line of the next block: small settings
"""

import doctest
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

import lapse

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
MINUTES = 3  # the longest that one command of a page may take

PIECE = re.compile(
    r"<!--\s*(?P<order>setup|skip-test|test-with):(?P<argument>.*?)-->"
    r"|^(?P<indent>[ ]*)```(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^[ ]*```[ ]*$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """One piece of code of a page: `language` python or shell, and the page's line on which `code` begins."""

    language: str
    code: str
    line: int
    extra: str = ""


def blocks(text: str) -> list[Block]:
    """What a page asks to be run, in order, the setup first."""
    languages = {"python": "python", "py": "python", "bash": "shell", "sh": "shell", "console": "shell"}
    setup: list[Block] = []
    found: list[Block] = []
    skip, extra = False, ""
    for piece in PIECE.finditer(text):
        order = piece["order"]
        if order == "setup":
            line = text.count("\n", 0, piece.start("argument")) + 1
            setup.append(Block("python", piece["argument"], line))
        elif order == "skip-test":
            assert piece["argument"].strip(), "skip-test needs a reason"
            skip = True
        elif order == "test-with":
            extra = " " + piece["argument"].strip()
        else:
            line = text.count("\n", 0, piece.start("body")) + 1
            code = "\n".join(row.removeprefix(piece["indent"]) for row in piece["body"].splitlines())
            if not skip and piece["language"] in languages:
                found.append(Block(languages[piece["language"]], code, line, extra))
            skip, extra = False, ""
    assert len(setup) <= 1, "a page has one setup"
    return setup + found


def commands(block: Block) -> list[str]:
    """The `lapse` lines of a shell block, continuations joined, comments dropped, `extra` appended."""
    rows = block.code.replace("\\\n", " ").splitlines()
    lines = (row.strip().removeprefix("$ ") for row in rows)
    return [line.split("  #")[0].rstrip() + block.extra for line in lines if re.match(r"lapse(\s|$)", line)]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUNNABLE = [page for page in PAGES if blocks(page.read_text())]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_snippets(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page.read_text()):
        if block.language == "python":
            # Padded, so that a traceback shows the page's own line numbers.
            code = compile("\n" * (block.line - 1) + block.code, str(page), "exec")
            exec(code, namespace)
            continue
        for command in commands(block):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60 * MINUTES,
            )
            where = f"{name(page)}, block at line {block.line}: {command}"
            assert done.returncode == 0, f"{where}\n{done.stdout}{done.stderr}"


def test_the_readme_runs() -> None:
    """The front page shows both ways in, and neither is skipped."""
    found = blocks((ROOT / "README.md").read_text())
    assert {block.language for block in found} == {"python", "shell"}
    assert any("train" in command for block in found for command in commands(block))


def test_blocks_are_found() -> None:
    page = (
        "<!-- setup:\na = 1\n-->\n```python\nb = a\n```\n"
        "<!-- skip-test: takes an hour -->\n```bash\nlapse train\n```\n"
        "1. item\n   ```python\n   if b:\n       c = 2\n   ```\n```text\nlapse\n```\n"
        "<!-- test-with: x=1 -->\n```console\n$ lapse check a.nc  # all of it\nno problem\n```\n"
    )
    setup, first, second, last = blocks(page)
    assert (setup.code.strip(), setup.line) == ("a = 1", 1)
    assert (first.code, first.line) == ("b = a", 5)
    assert second.code == "if b:\n    c = 2"
    assert commands(last) == ["lapse check a.nc x=1"]
    assert commands(Block("shell", "make demo\nlapse score \\\n  a\nfine", 1)) == ["lapse score    a"]


def modules() -> list[str]:
    """Every module of the package with a doctest in it."""
    found = []
    for folder in ("physics", "datasets", "autoencoder", "surrogate"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in file.read_text():
                found.append(".".join(("lapse", *file.relative_to(ROOT).with_suffix("").parts)))
    return [module.removesuffix(".__init__") for module in found]


@pytest.mark.parametrize("module", modules())
def test_doctests(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


def links(page: Path) -> list[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [link.split("#")[0] for link in found if not re.match(r"\w+:|#", link)]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = [link for link in links(page) if not (page.parent / link).exists()]
    assert not broken


def test_every_page_can_be_reached_from_the_index() -> None:
    reached: set[Path] = set()
    front = [ROOT / "docs" / "index.md"]
    while front:
        page = front.pop()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        front += [(page.parent / link).resolve() for link in links(page)]
    lost = {name(page) for page in PAGES if page not in reached and page.name != "README.md"}
    assert not lost


def test_every_make_target_in_the_docs_exists() -> None:
    texts = [page.read_text() for page in (*PAGES, ROOT / "CONTRIBUTING.md")]
    code = " ".join(span for text in texts for span in re.findall(r"```.*?```|`[^`]+`", text, re.DOTALL))
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z0-9-]+)?)(?![\w-])", code))
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE))
    benches = {"bench-" + file.stem.replace("_", "-") for file in (ROOT / "benchmarks").glob("*.py")}
    assert named - targets - benches == set()


def test_results_page_is_up_to_date(benchmark_module: Callable[[str], ModuleType]) -> None:
    tables = benchmark_module("tables")
    page = (ROOT / "docs" / "results.md").read_text()
    assert tables.render(page) == page, "run: make results"


def test_version_in_docs_is_current() -> None:
    """An installation command with an old version in it would install that old version."""
    pinned = {v for page in PAGES for v in re.findall(r"lapse==([\w.]+)", page.read_text())}
    assert pinned <= {lapse.__version__}
