"""A law as a balance: what is in a volume changes by what crosses its faces and by what arises inside.

    ∂q/∂t + ∇·f = ∇²d + s

The diffusive part stands apart from the flux, so that the weak form can move both of its derivatives onto the test
function (see `weak.py`).
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Balance:
    """The terms of a balance at some states.

    Attributes:
        q: Density of what is balanced, (…, C, *space).
        flux: f, (…, d, C, *space); its components point along the axes from the last to the first.
        diffused: d, (…, C, *space); None: nothing diffuses.
        source: s, (…, C, *space); None: nothing arises.
    """

    q: Tensor
    flux: Tensor
    diffused: Tensor | None = None
    source: Tensor | None = None
