"""Exact heads: the decoder's last layer, in closed form.

A head maps a decoded field to the nearest one (in its own sense) that obeys a linear constraint to round-off, whatever
the network did. Heads are applied in a fixed order, each chosen so that it keeps what the ones before it made true:

    divergence_free   (u, v) on a periodic plane  ->  its part without divergence, as `physics.operators.div` has it
    positive          variables of kind "positive"  ->  softplus
    mass              variables of kind "positive"  ->  rescaled to the carried area mean
    mean              the other variables  ->  shifted to the carried area mean; "mean:NAME" for one of them alone

The carried quantities are area means of the encoded field, ``(B, C)``; a constraint that holds for the encoded field
therefore holds for every state that a sampler derives from it. Shifting the mean keeps the divergence, rescaling
keeps the sign, so the order above is consistent.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.spec import FieldSpec
from ..physics.constraints import solenoidal, weighted_mean, with_mass, with_mean
from .blocks import alike

__all__ = ["HEADS", "Heads", "solenoidal", "suggest_heads"]

HEADS = ("divergence_free", "positive", "mass", "mean")


class Heads(nn.Module):
    """The chosen heads, in their fixed order.

    Raises ValueError where a head does not fit the spec: ``divergence_free`` needs two vector components without masks
    on a grid that is periodic in both directions; ``positive`` and ``mass`` need a variable of kind "positive", and
    "mean:NAME" one that is not.
    """

    weights: Tensor

    def __init__(self, spec: FieldSpec, names: Sequence[str] = ()) -> None:
        super().__init__()
        self.positive = [i for i, v in enumerate(spec.variables) if v.kind == "positive"]
        self.others = [i for i, v in enumerate(spec.variables) if v.kind != "positive"]
        known = (*HEADS, *(f"mean:{spec.names[i]}" for i in self.others))
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"unknown heads {', '.join(unknown)}; known: {', '.join(known)}")
        self.names = tuple(name for name in known if name in names)
        self.shifted = [i for i in self.others if {"mean", f"mean:{spec.names[i]}"} & set(names)]
        self.grid = spec.grid
        self.vector = velocity_channels(spec)
        if {"positive", "mass"} & set(self.names) and not self.positive:
            raise ValueError("heads 'positive' and 'mass' need a variable of kind 'positive'; declare it in the spec")
        if "mass" in self.names and "positive" not in self.names:
            raise ValueError("head 'mass' rescales, which needs 'positive' before it; name both")
        if "divergence_free" in self.names and (self.vector is None or not all(spec.grid.periodic)):
            raise ValueError(
                "head 'divergence_free' needs one velocity with a component along each of two periodic axes; found "
                f"axes {spec.grid.names}, periodic {spec.grid.periodic}, vector components "
                f"{[v.name for v in spec.variables if v.kind == 'vector']}"
            )
        if "divergence_free" in self.names and _masked_velocity(spec):
            raise ValueError(
                "head 'divergence_free' needs the velocity in every cell; found a mask on "
                f"{', '.join(v.name for v in spec.variables if v.kind == 'vector' and v.name in spec.masks)}"
            )
        self.register_buffer("weights", spec.mask_tensor() * spec.grid.area_weights(), persistent=False)
        # softplus is bent where the field is small against this scale, and linear above
        self.bends = [0.05 * (v.std or 1.0) for v in spec.variables]

    def carried(self, u: Tensor) -> Tensor:
        """Area means of every variable over its valid cells, ``(B, C)`` float64, from ``u (B, C, *space)``."""
        return torch.stack([weighted_mean(u[:, i], w) for i, w in enumerate(self.weights)], dim=1)

    def forward(self, u: Tensor, carried: Tensor) -> Tensor:
        """``u (B, C, *space)`` and ``carried (B, C)``, both in physical units, to the constrained field."""
        fields = list(u.unbind(dim=1))
        if "divergence_free" in self.names and self.vector is not None:
            along_x, along_y = self.vector
            velocity = solenoidal(torch.stack([fields[along_x], fields[along_y]], dim=1), self.grid)
            fields[along_x], fields[along_y] = velocity.unbind(dim=1)
        for i in self.positive:
            if "mass" in self.names:
                fields[i] = with_mass(fields[i], carried[:, i], self.weights[i], self.bends[i])
            elif "positive" in self.names:
                # far below zero softplus itself rounds to nought, which is no longer positive
                tiny = torch.finfo(u.dtype).tiny
                fields[i] = (self.bends[i] * alike(F.softplus, fields[i] / self.bends[i])).clamp_min(tiny)
        for i in self.shifted:
            fields[i] = with_mean(fields[i], carried[:, i], self.weights[i])
        return torch.stack(fields, dim=1)


def velocity_channels(spec: FieldSpec) -> tuple[int, int] | None:
    """Channels of the one velocity, ordered (along the last axis, along the first), or None."""
    names = spec.grid.names
    if len(names) != 2:
        return None
    along = {v.component: i for i, v in enumerate(spec.variables) if v.kind == "vector"}
    if len(along) != 2 or set(along) != set(names):
        return None
    return along[names[1]], along[names[0]]


def _masked_velocity(spec: FieldSpec) -> bool:
    return any(v.kind == "vector" and v.name in spec.masks for v in spec.variables)


def suggest_heads(spec: FieldSpec, u: Tensor, tolerance: float = 1e-5) -> tuple[str, ...]:
    """Heads that the data ``u (T, C, *space)``, consecutive frames, obeys by itself.

    A mean is conserved if its drift over the frames is below ``tolerance`` of the variable's standard deviation; a
    velocity is divergence-free if its divergent part is. What the data does not obey must not be imposed, and a single
    frame does not tell what is conserved.
    """
    probe = Heads(spec)
    means = probe.carried(u)
    std = u.double().std(dim=(0, *range(2, u.ndim)))
    steady = (means - means[0]).abs().amax(dim=0) <= tolerance * std
    conserved = (steady & torch.tensor(len(u) > 1)).tolist()
    heads = []
    vector = probe.vector
    if vector is not None and all(spec.grid.periodic) and not _masked_velocity(spec):
        v = u[:, list(vector)].double()
        if (v - solenoidal(v, spec.grid)).square().mean().sqrt() <= 100 * tolerance * v.std():
            heads.append("divergence_free")
    if probe.positive:
        heads.append("positive")
        if all(conserved[i] for i in probe.positive):
            heads.append("mass")
    if probe.others and all(conserved[i] for i in probe.others):
        heads.append("mean")
    else:
        heads += [f"mean:{spec.names[i]}" for i in probe.others if conserved[i]]
    return tuple(heads)
