"""The notebooks of docs/notebooks run from top to bottom, on small settings, and draw what they say.

They are Python files in the percent format. Cell by cell they are executed as a notebook would; after the cell that is
tagged "parameters" its settings are overwritten by the small ones below. Figures are closed, and counted: each must
have finite data in it.
"""

import re
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SMALL = {
    "air_temperature": {"STARTS": 3, "MEMBERS": 4, "LEADS": 4},
    "design_a_burst": {"LEAD": 2, "RADII": [0.2], "ITERATIONS": 1, "RANDOM": 2, "SPIN_UP": 1.0, "FRAMES": 4,
                       "ROUNDS": 1},
    "sparse_sensors": {"WINDOW": 2, "LEADS": 2, "MEMBERS": 4, "ENSEMBLE": 16, "SPIN_UP": 1.0},
}
MARK = re.compile(r"^# %%(?P<kind> \[markdown\])?(?P<rest>.*)$", re.MULTILINE)


def cells(text):
    """``(first line, is it code, has it the tag "parameters", source)`` of every cell."""
    marks = list(MARK.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)]
    for m, end in zip(marks, ends, strict=True):
        line = text.count("\n", 0, m.end()) + 1
        yield line, m["kind"] is None, "parameters" in m["rest"], text[m.end() + 1 : end]


def execute(name, settings, folder, monkeypatch):
    """Run a notebook with ``settings`` in ``folder``; the figures that it showed are saved there as PNG."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)
    path, shown = FOLDER / f"{name}.py", []

    def show():
        for number in plt.get_fignums():
            figure = plt.figure(number)
            shown.append(sum(len(a.lines) + len(a.collections) + len(a.images) for a in figure.axes))
            figure.savefig(folder / f"{name}-{len(shown)}.png")
            plt.close(figure)

    monkeypatch.setattr(plt, "show", show)
    namespace = {"__name__": "__main__"}
    for line, code, parameters, source in cells(path.read_text()):
        if code:
            exec(compile("\n" * (line - 1) + source, str(path), "exec"), namespace)
        if parameters:
            assert settings.keys() <= namespace.keys(), "a setting that the notebook does not have"
            namespace.update(settings)
    return shown, namespace


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py")))
def test_notebook(name, tmp_path, monkeypatch, request):
    if name == "air_temperature":
        monkeypatch.setenv("LAPSE_DATA", str(request.getfixturevalue("lapse_data").resolve()))
    shown, _ = execute(name, SMALL[name], tmp_path, monkeypatch)
    assert len(shown) >= 3 and all(shown), "figures, and something in each"
