"""The certificate as a stopping rule of a design: no further than forecasts obey their equation.

An optimiser leaves the states that a surrogate was trained on, and the surrogate's forecasts then break the equation
more than they did in training. The audit of a forecast sees that without a truth: at every step of the search the
forecast from the state that was found is audited, and the search ends where fewer of its frames are certified than of
19 in 20 starts of the calibration (`Certificate.share`), or than of the forecast from the start, if that has fewer.
"""

import numpy as np
import torch
from torch import Tensor

from .case import Case
from .verdict import Verdict

__all__ = ["CertifiedShare"]


class CertifiedShare:
    """The share of the frames of a case's forecasts that its model's certificate holds for.

    Arguments:
        case: a start and an objective.
        members, seed: of the forecasts.

    Attributes:
        limit: below which a search ends.

    Raises ValueError for a model without a certificate of the case's mode.
    """

    def __init__(self, case: Case, members: int, seed: int) -> None:
        self.case, self.members, self.seed = case, members, seed
        self.verdict = Verdict(case.model, case.frames.attrs, case.mode, True)
        leads = self.verdict.certificate.leads
        if case.steps > leads:
            wanted = f"at most the {leads} that the certificate covers"
            raise ValueError(f"certify: found {case.steps} steps, wanted {wanted}. Usual fix: a new calibration")
        self.limit = self.verdict.certificate.share

    def begin(self, share: float) -> None:
        """Judge by the ``share`` of the search's start, too. Raises ValueError where nothing of it is certified."""
        self.limit = min(self.limit, share)
        if not self.limit > 0:
            raise ValueError(
                "certify: found no certified frame in the forecast from the start, or none to be expected, wanted some "
                "to fall below. Usual fix: look at model.forecast(ds, steps, certify=True); analyses that say they "
                "obey the equation at other parameters are audited by those, so use model.at(…) for them"
            )

    @property
    def doubts(self) -> list[str]:
        """That the start is worse than usual, and the rule as lax as that."""
        usual = self.verdict.certificate.share
        if self.limit == usual:
            return []
        return [f"{self.limit:.0%} of the frames from the start are certified, usually {usual:.0%}: the rule is lax"]

    @torch.no_grad()
    def __call__(self, u: Tensor) -> float:
        """Of the forecast from context frames ``u (history, C, *space)`` in physical units."""
        case = self.case
        view, _ = case.roll(u, self.members, self.seed, case.mode, errors=True, checkpointed=False)
        frames = torch.stack([view.frame(k) for k in range(1, case.steps + 1)], dim=1).cpu().numpy()
        start = u[-1:].expand(self.members, *u.shape[1:]).cpu().numpy()
        found = self.verdict.of(start, frames, np.arange(self.members))
        return float(found["certified"].mean())
