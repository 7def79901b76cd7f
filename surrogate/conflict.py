"""Several losses, one update that lowers them all: conflict-free gradients.

With gᵢ the gradients of m losses and ĝᵢ = gᵢ/|gᵢ|, the update

    g = (Σᵢ gᵢ·u) u,      u = v/|v|,      ĝᵢ·v = 1 for all i,     v of least norm,

makes the same positive angle with every loss's gradient and is as long as they agree (ConFIG; Liu, Chu & Thuerey 2025,
arXiv:2408.11104, eq. 2 and 5). Where two losses pull in opposite directions there is no such v, and the update is the
mean of the gradients' directions, nought. Only the m × m matrix of products is solved.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["conflict_free", "conflict_free_loss"]


def conflict_free(gradients: Sequence[Tensor]) -> Tensor:
    """The update, from flat gradients ``(P,)`` each; those that are nought or not finite are left out."""
    known = [g for g in gradients if bool(torch.isfinite(g).all()) and bool(g.norm() > 0)]
    if not known:
        return torch.zeros_like(gradients[0])
    G = torch.stack(known)
    unit = G / G.norm(dim=1, keepdim=True)
    products = (unit @ unit.T).double()
    ones = torch.ones(len(known), dtype=torch.float64, device=G.device)
    v = torch.linalg.lstsq(products.cpu(), ones.cpu(), driver="gelsd").solution.to(G) @ unit
    length = v.norm()
    if not bool(length > 0):
        return torch.zeros_like(gradients[0])
    u = v / length
    update: Tensor = (G @ u).sum() * u
    return update


def conflict_free_loss(losses: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """A scalar with the value of the losses' sum and the conflict-free update as its gradient by ``parameters``.

    So it goes where any loss goes. It costs one backward pass a loss, and cannot be differentiated twice.
    """
    learned = [p for p in parameters if p.requires_grad]
    flat = []
    for i, loss in enumerate(losses):
        found = torch.autograd.grad(loss, learned, retain_graph=i + 1 < len(losses), allow_unused=True)
        known = [torch.zeros_like(p) if g is None else g for g, p in zip(found, learned, strict=True)]
        flat.append(torch.cat([g.flatten() for g in known]))
    pieces = torch.split(conflict_free(flat), [p.numel() for p in learned])
    linear = torch.stack([(g.reshape(p.shape) * p).sum() for g, p in zip(pieces, learned, strict=True)]).sum()
    return linear + (torch.stack([loss.detach() for loss in losses]).sum() - linear.detach())
