"""RigL: sparse from the first step; connections move to where the gradient is large."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lpss_cli.methods.set import SET

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.training.run import MethodContext


class RigL(SET):
    """SET that grows the connections with the largest dense gradients.

    An update replaces the gradient step of its iteration, as in the paper's algorithm 1. From a
    checkpoint, the first mask keeps the largest weights, within the same layer budgets.
    """

    name: ClassVar[str] = "rigl"
    paper: ClassVar[str] = "Evci et al. 2020, arXiv:1911.11134"

    def on_gradients(self, run: MethodContext) -> bool:
        """Move connections if an update is due, instead of the gradient step."""
        return not self.update(run)

    def growth(self, run: MethodContext, weight: Tensor) -> Tensor:
        """Return ``|∂L/∂w|`` of one layer, including inactive connections."""
        return weight.new_zeros(weight.shape) if weight.grad is None else weight.grad.abs()
