"""What a certified forecast carries beside its fields: the audit of every frame, and its verdict.

    residual        (init_time, member, lead_time)   r of the audited frames, NaN where none was measured
    certified       (init_time, member, lead_time)   1 where the certificate holds, else 0
    residual_bound  (lead_time)                      a coordinate: the 90 % bound; NaN beyond the calibrated leads

The law is that of the model at its parameters. Where the analyses say in their attributes (`equation`, `parameters`)
that they obey it at others, and the forecast was not asked for any, theirs are the ones to audit by.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from ..datasets.layout import blank
from ..datasets.spec import FieldSpec
from .audit import Audit
from .certificate import mode_key

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Verdict", "doubts"]

_DIMS = ("init_time", "member", "lead_time")


class Verdict:
    """Audits the members of a forecast, and judges them by the model's certificate.

    Arguments:
        told: attributes of the analyses.
        mode: of the forecast.
        share: of the frames that are audited; True for all.

    Raises ValueError as `Audit` does, and for a model without a certificate of that mode.
    """

    def __init__(self, model: "Model", told: Mapping[str, Any], mode: str, share: bool | float) -> None:
        self.parameters = _parameters(model, told)
        sigma = model.emulator.autoencoder.normaliser.std
        self.audit = Audit(model.spec, sigma, self.parameters, float(share))
        key = mode_key(model.emulator, mode)
        found = model.certificates.get(key)
        if found is None:
            has = ", ".join(map(repr, model.certificates)) or "none"
            raise ValueError(
                f"certify: {model.name} has no certificate of mode {key!r}; found {has}. Usual fix: "
                f"model.calibrate(held_out_data, mode={mode!r}), then model.save(…) to keep it"
            )
        self.certificate = found

    @property
    def identity(self) -> dict[str, Any]:
        """What a resume must agree with."""
        return {"certify": self.audit.share, "audited_by": self.parameters}

    def coordinates(self, steps: int) -> dict[str, Any]:
        """The coordinate ``residual_bound``."""
        about = {"units": "1", "long_name": "90 % bound of the residual of frames like the training data's"}
        return {"residual_bound": ("lead_time", self.certificate.of(self.certificate.bounds, steps), about)}

    def variables(self, sizes: tuple[int, int, int]) -> dict[str, Any]:
        """``residual`` and ``certified`` without their numbers."""
        measured = {
            "units": "1", "long_name": "relative defect of the decoded frame, given the frame before",
            "comment": "rms(u1 - advance(u0)) / rms(u1 - mean(u1)); how well the law is obeyed, not how far from the "
                       "truth",
        }  # fmt: skip
        judged = {
            "long_name": "residual within its bounds, of the frame and of the member so far",
            "flag_values": np.array([0, 1], dtype="int8"), "flag_meanings": "not_certified certified",
        }  # fmt: skip
        return {
            "residual": (_DIMS, blank(sizes, np.float32), measured),
            "certified": (_DIMS, blank(sizes, np.int8), judged),
        }

    @property
    def attrs(self) -> dict[str, Any]:
        """What the certificate is, for the Dataset's attributes."""
        c = self.certificate
        told = {
            "bound": "split conformal, 90 %, by lead", "calibrated_on": f"{c.starts} starts of the {c.split} split",
            "leads": c.leads, "share_audited": self.audit.share, "floor": c.floor, "equation": self.audit.law.name,
            "parameters": self.parameters, "usual_share": c.share,
            "speaks_of": "the residual only, not the error of the trajectory",
        }  # fmt: skip
        return {"lapse_certificate": json.dumps(told)}

    def of(self, u0: NDArray[Any], fields: NDArray[Any], members: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Arrays ``(1, members, steps)`` of ``fields (members, steps, C, *space)`` that start from ``u0 (members, C,
        *space)``, all in physical units."""
        steps = fields.shape[1]
        audited = self.audit.audited(members, steps)
        residual = np.full(audited.shape, np.nan, np.float32)
        for k in range(steps):
            rows = np.flatnonzero(audited[:, k])
            if len(rows):
                before = (u0 if k == 0 else fields[:, k - 1])[rows]
                pair = (torch.from_numpy(np.ascontiguousarray(x)) for x in (before, fields[rows, k]))
                residual[rows, k] = self.audit.residual(*pair).numpy()
        return {"residual": residual[None], "certified": self.certificate.judge(residual, audited)[None]}


def doubts(fc: xr.Dataset) -> list[str]:
    """Starts of which fewer frames are certified than of 19 in 20 starts within the calibration's climate."""
    expected = json.loads(fc.attrs["lapse_certificate"])["usual_share"]
    found = fc["certified"].mean(("member", "lead_time"))
    return [
        f"{float(x):.0%} of the frames from the start {t}"
        for t, x in zip(fc["init_time"].values, found.values, strict=True)
        if x < expected
    ]


def _parameters(model: "Model", told: Mapping[str, Any]) -> dict[str, float]:
    """Parameters of the law to audit by."""
    spec: FieldSpec = model.spec
    own = {k: float(v) for k, v in spec.parameters.items()}
    if model.emulator.laws is not None or told.get("equation") != spec.equation:
        return own
    try:
        given = json.loads(told.get("parameters", "{}"))
    except (TypeError, json.JSONDecodeError):
        return own
    return own | {k: float(v) for k, v in given.items() if k in own} if isinstance(given, dict) else own
