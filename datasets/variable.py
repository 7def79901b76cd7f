"""One variable of a field.

Kinds of variables:
    scalar     any real number
    positive   non-negative by nature (depth, density, rain); stays in its linear scale
    vector     one component of a vector, along the grid axis `component`; components of one `group` share
    one scale
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["KINDS", "Kind", "Variable"]

Kind = Literal["scalar", "positive", "vector"]
KINDS = ("scalar", "positive", "vector")


@dataclass(frozen=True)
class Variable:
    """One variable of a field. The last four are its range over the training data, in `units`; None = not
    measured.

    `component` is the name of the grid axis that a vector component points along, `group` ties components
    together.
    """

    name: str
    units: str | None = None
    kind: Kind = "scalar"
    component: str | None = None
    standard_name: str | None = None
    long_name: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None
    std: float | None = None
    group: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is known of it, JSON-safe; unknown entries are left out."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}
