"""What is wrong with a Dataset, said so that it can be put right.

A check never stops at the first finding: every `Problem` carries the place, the value found, the value
wanted and the usual fix, and one `SpecError` carries them all. What does not stand in the way of a
forecast is a `SpecWarning`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["Findings", "Problem", "SpecError", "SpecWarning"]


@dataclass(frozen=True)
class Problem:
    """One finding: `where` it is, what was `found`, what was `wanted`, and the usual `fix`."""

    where: str
    found: str
    wanted: str
    fix: str

    def __str__(self) -> str:
        return f"{self.where}: found {self.found}; wanted {self.wanted}. Usual fix: {self.fix}"


class SpecError(ValueError):
    """A Dataset or a spec that cannot be used as it is; `problems` lists everything that is wrong with it.

    >>> print(SpecError([Problem("air", "units 'Pa'", "units 'K'", "open the temperature file")]))
    1 problem:
      1. air: found units 'Pa'; wanted units 'K'. Usual fix: open the temperature file
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = list(problems)
        count = f"{len(self.problems)} problem{'' if len(self.problems) == 1 else 's'}:"
        super().__init__("\n".join([count, *(f"  {i}. {p}" for i, p in enumerate(self.problems, start=1))]))

    def __reduce__(self) -> tuple[type["SpecError"], tuple[list[Problem]]]:
        # The default would hand the finished text to __init__ when a data-loading worker sends the error
        # home.
        return type(self), (self.problems,)


class SpecWarning(UserWarning):
    """Something a reader should look at, but that does not forbid to go on."""


@dataclass
class Findings:
    """What a check has found so far: problems, warnings, and notes on what was put right."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, where: str, found: str, wanted: str, fix: str) -> None:
        """Keep something that forbids to go on."""
        self.problems.append(Problem(where, found, wanted, fix))

    def warn(self, where: str, found: str, wanted: str, fix: str) -> None:
        """Keep something that a reader should look at."""
        self.warnings.append(Problem(where, found, wanted, fix))

    def note(self, text: str) -> None:
        """Keep what was changed without loss."""
        if text not in self.notes:
            self.notes.append(text)
