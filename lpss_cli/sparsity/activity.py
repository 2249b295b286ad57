"""Which neurons and inputs of a layer take part: what has no gradient has no effect.

A weight into a neuron that nothing reads, or whose activation is always on its flat side, changes
no output. Such a weight keeps its size while others compete for the budget, and a network of 1 %
can lose a tenth of its weights to it. The gradient tells without any knowledge of the network's
graph: it is exactly zero over the whole row. In the same way it is zero over the whole column of an
input that is always zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lpss_cli.sparsity.masks import RANK_OFFSET

# Steps before a cut whose gradients are looked at.
ACTIVITY_WINDOW = 10


class Activity:
    """Rows and columns of weights that have had a gradient, where looked at, since the last cut.

    Attributes:
        seen: name → bool tensors of shapes (R, 1, …) and (1, C, 1, …): had one.
    """

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take the present gradients into account; they must not be masked yet."""
        for name, weight in weights.items():
            if weight.grad is None:
                continue
            size = weight.grad.abs()
            rows, columns = _some(size, 0), _some(size, 1)
            if name in self.seen:
                self.seen[name][0].logical_or_(rows)
                self.seen[name][1].logical_or_(columns)
            else:
                self.seen[name] = rows, columns

    def demote(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Let what is idle rank behind all else, in its own order."""
        ranked = dict(scores)
        for name, (rows, columns) in self.seen.items():
            if name in ranked:
                s = ranked[name]
                ranked[name] = torch.where(rows & columns, s, s - RANK_OFFSET)
        return ranked

    def reset(self) -> None:
        """Begin anew: a cut has been made."""
        self.seen.clear()


def _some(size: Tensor, dim: int) -> Tensor:
    """Whether any entry is not zero, for every index along one dimension."""
    return size.amax([d for d in range(size.dim()) if d != dim], keepdim=True) > 0
