"""The noise of a member is a function of (seed, init_time, member) and of nothing else.

Hence an ensemble that grows from 50 to 100 members keeps the first 50, and batch size, order, process and machine do
not matter. numpy's `SeedSequence` turns the three numbers into a well-mixed seed; the start enters as its text, so that
dates, cftime objects and plain numbers all work, and Python's salted ``hash`` is not involved. Numbers are drawn on the CPU, whatever
the device, frame by frame, so a longer forecast begins with the shorter one.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw", "member_generator"]


def member_generator(seed: int, init_time: Any, member: int) -> torch.Generator:
    """The generator of one member.

    Arguments:
        seed: of the ensemble, not negative.
        init_time: the start, as numpy or cftime gives it.
        member: index, not negative.
    """
    if seed < 0 or member < 0:
        raise ValueError(f"seed and member must not be negative, got seed={seed} and member={member}")
    start = int.from_bytes(hashlib.sha256(_text(init_time).encode()).digest()[:8], "big")
    (state,) = np.random.SeedSequence([seed, start, member]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def draw(generators: Sequence[torch.Generator], size: int) -> Tensor:
    """Standard normal ``(len(generators), size)`` float32, a row from each generator."""
    return torch.stack([torch.randn(size, generator=g) for g in generators])


def _text(init_time: Any) -> str:
    """One spelling for one instant: datetimes to the microsecond, numbers through float."""
    value = np.asarray(init_time)
    if value.dtype.kind == "M":
        return str(value.astype("datetime64[us]"))
    if value.dtype.kind in "iuf":
        return repr(float(value))
    return str(value.item() if value.ndim == 0 else init_time)
