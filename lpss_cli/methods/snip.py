"""SNIP: connections are chosen once, before training, by their effect on the loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.training.method import RANKINGS, Method, MethodConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.training.run import MethodContext


class SNIP(Method):
    """Keep the weights with the largest ``|w · ∂L/∂w|`` at the start, over all layers.

    The mask is fixed from then on. The same is done to the weights of a checkpoint.
    """

    name: ClassVar[str] = "snip"
    paper: ClassVar[str] = "Lee et al. 2019, arXiv:1810.02340"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Plain momentum SGD after the choice."""

        ranking: str = option(
            "magnitude", "how scores of different layers are compared", choices=RANKINGS
        )
        snip_batches: int = option(1, "number of batches to score connections on", low=1)

    def prepare(self, run: MethodContext) -> None:
        """Score every connection on the first batches and set the final mask."""
        if run.sparsity > 0:
            run.prune_to_sparsity(run.sparsity, self._sensitivity(run), self.config.ranking)

    def _sensitivity(self, run: MethodContext) -> Mapping[str, Tensor]:
        """Return ``log|w · Σg|``, equation 4 of the paper without its normalizing constant."""
        import torch

        from lpss_cli.sparsity.masks import to_float32
        from lpss_cli.utils import torch_utils

        names, weights = zip(*run.weights.items(), strict=True)
        total = [torch.zeros_like(w) for w in weights]
        buffers = {name: b.clone() for name, b in run.model.named_buffers()}
        with torch_utils.preserve_training_mode(run.model):
            run.model.train()
            for x, y in islice(run.batches(0), self.config.snip_batches):
                loss = run.loss_scale * run.loss(run.model(x), y)
                gradients = torch.autograd.grad(
                    loss, weights, allow_unused=True, materialize_grads=True
                )
                for sum_, gradient in zip(total, gradients, strict=True):
                    sum_ += gradient
        run.average(total)
        with torch.no_grad():
            for name, buffer in run.model.named_buffers():
                buffer.copy_(buffers[name])  # scoring must not change BatchNorm statistics
        tiny = torch.finfo(torch.float32).tiny
        return {
            # A score of 0 (in a dead unit) ranks last, but may be needed for the exact count.
            name: (to_float32(w.detach()) * g)
            .abs()
            .clamp_min(tiny)
            .log()
            .masked_fill(~run.masks[name], -torch.inf)
            for name, w, g in zip(names, weights, total, strict=True)
        }
