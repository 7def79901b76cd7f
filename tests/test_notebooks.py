"""The notebooks of docs/notebooks run from top to bottom, on small settings, and draw what they say.

They are Python files in the percent format. Cell by cell they are executed as a notebook would; after the cell that is
tagged "parameters" its settings are overwritten by the small ones below. Figures are closed, and counted: each must
have finite data in it.
"""

import re
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "notebooks"
SMALL = {
    "air_temperature": {"STARTS": 3, "MEMBERS": 4, "LEADS": 4},
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
