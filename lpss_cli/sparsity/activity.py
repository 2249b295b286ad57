"""Active rows and columns of a weight: without a gradient, a neuron or input has no effect.

A weight into a neuron that nothing reads, or whose activation is always on its flat side, changes
no output. Such a weight keeps its magnitude while others compete for the budget, and a network at
1 % density can lose a tenth of its weights to them. The gradient shows this without any knowledge
of the network's graph: it is exactly zero over the whole row. In the same way it is zero over the
whole column of an input that is always zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lpss_cli.sparsity.masks import RANK_OFFSET

#: Number of steps before a pruning step whose gradients are examined.
ACTIVITY_WINDOW = 10


class Activity:
    """Which rows and columns of weights have had a gradient since the last pruning step.

    Attributes:
        seen: name → bool tensors (R, 1, …) and (1, C, 1, …), True where there was a gradient; only
            weights whose gradients were examined.
    """

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Record the present gradients, which must not be masked yet."""
        for name, weight in weights.items():
            if weight.grad is None:
                continue
            magnitude = weight.grad.abs()
            rows, columns = _any_nonzero(magnitude, 0), _any_nonzero(magnitude, 1)
            if name in self.seen:
                self.seen[name][0].logical_or_(rows)
                self.seen[name][1].logical_or_(columns)
            else:
                self.seen[name] = rows, columns

    def demote(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scores in which inactive weights rank behind all others, in their own order."""
        demoted = dict(scores)
        for name, (rows, columns) in self.seen.items():
            if name in demoted:
                s = demoted[name]
                demoted[name] = torch.where(rows & columns, s, s - RANK_OFFSET)
        return demoted

    def reset(self) -> None:
        """Forget all gradients, after a pruning step."""
        self.seen.clear()


def _any_nonzero(magnitude: Tensor, dim: int) -> Tensor:
    """Whether any entry is positive, for every index along one dimension; the others are kept."""
    return magnitude.amax([d for d in range(magnitude.dim()) if d != dim], keepdim=True) > 0
