"""The noise of a member is a function of (seed, init_time, member) and of nothing else.

Hence an ensemble that grows from 50 to 100 members keeps the first 50, and batch size, order, process and machine do
not matter. numpy's `SeedSequence` turns the three numbers into a well-mixed seed; the start enters as the first eight
bytes of the sha256 of its `spelling`, so that dates, cftime objects and plain numbers all work, and Python's salted
``hash`` is not involved. Numbers are drawn on the CPU, whatever the device, frame by frame, so a longer forecast begins
with the shorter one.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["draw", "member_generator", "sample_generator", "spelling"]


def member_generator(seed: int, init_time: Any, member: int) -> torch.Generator:
    """The generator of one member.

    Arguments:
        seed: of the ensemble, not negative.
        init_time: the start, as numpy or cftime gives it.
        member: index, not negative.
    """
    if seed < 0 or member < 0:
        raise ValueError(f"seed and member must not be negative, got seed={seed} and member={member}")
    start = int.from_bytes(hashlib.sha256(spelling(init_time).encode()).digest()[:8], "big")
    (state,) = np.random.SeedSequence([seed, start, member]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def sample_generator(seed: int, k: int) -> torch.Generator:
    """The generator of sample k of fields that have no start: alone or in a larger set it is the same sample."""
    (state,) = np.random.SeedSequence([seed, k]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


def draw(generators: Sequence[torch.Generator], size: int) -> Tensor:
    """Standard normal ``(len(generators), size)`` float32, a row from each generator."""
    return torch.stack([torch.randn(size, generator=g) for g in generators])


def spelling(time: Any) -> str:
    """One text for one instant, whatever type holds it: dates to the microsecond, numbers as Python's float.

    >>> spelling(np.datetime64("2001-02-03T06", "h")), spelling(3)
    ('2001-02-03T06:00:00.000000', '3.0')
    """
    value = np.asarray(time)
    if value.dtype.kind == "M":
        return str(value.astype("datetime64[us]"))
    if value.dtype.kind in "iuf":
        return repr(float(value) + 0.0)  # without the sign of -0.0
    t = value.item()
    if not hasattr(t, "microsecond"):
        return str(t)
    return f"{t.year:04d}-{t.month:02d}-{t.day:02d}T{t.hour:02d}:{t.minute:02d}:{t.second:02d}.{t.microsecond:06d}"
