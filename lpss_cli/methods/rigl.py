"""RigL: sparse from the first step, connections moving to where the gradient wants them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lpss_cli.methods.set import SET

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.training.context import MethodContext


class RigL(SET):
    """SET that grows the connections of largest dense gradient.

    An update takes the place of that iteration's gradient step, as in the paper's algorithm 1.
    From a checkpoint the first mask holds the largest weights, within the same layer budgets.
    """

    name: ClassVar[str] = "rigl"
    paper: ClassVar[str] = "Evci et al. 2020, arXiv:1911.11134"

    def on_gradients(self, run: MethodContext) -> bool:
        """Move connections where an update is due, instead of the gradient step."""
        return not self.update(run)

    def growth(self, run: MethodContext, weight: Tensor) -> Tensor:
        """Return ``|∂L/∂w|`` of one layer, inactive connections included."""
        return weight.new_zeros(weight.shape) if weight.grad is None else weight.grad.abs()
