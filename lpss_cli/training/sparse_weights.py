"""The prunable weights of a network with their masks: what they add up to, and what they are to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from lpss_cli.sparsity.layer_targets import LayerBudgets, layer_budgets
from lpss_cli.sparsity.masks import Masks, select_masks
from lpss_cli.sparsity.prunable import Weight
from lpss_cli.sparsity.targets import zero_count

# A log-saliency below all others: of a weight that was initialised with zero.
_LAST = -100_000.0


class MaskedWeights:
    """Prunable weights, their masks, and the zeros that are asked for.

    Attributes:
        candidates: name → trainable Linear or Conv weight, in module order.
        weights: those of them that are pruned; every count is over these.
        row_dims: name → dimension that counts neurons (None: no simple rows).
        fan_ins: name → entries of one row (None: no simple rows).
        masks: name → bool tensor, True = kept; a masked weight is exactly 0.
        sparsity: the target, zeros / prunable weights; never below what a checkpoint brings.
        budgets: zeros that the target asks for, in all and in layers with a target of their own.
        start: the zeros that training begins with, counted as ``budgets``.
    """

    def __init__(
        self,
        candidates: Mapping[str, Weight],
        skipped: Collection[str],
        sparsity: float,
        layers: Sequence[str],
    ) -> None:
        self.candidates: dict[str, Tensor] = {n: w.tensor for n, w in candidates.items()}
        self.weights = {n: w for n, w in self.candidates.items() if n not in skipped}
        self.row_dims = {n: w.row_dim for n, w in candidates.items()}
        self.fan_ins = {n: w.fan_in for n, w in candidates.items()}
        self.masks: Masks = {
            n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()
        }
        self.sparsity = sparsity
        self.budgets = layer_budgets(layers, self.sizes, sparsity)
        self.start = self.present

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(w.numel() for w in self.weights.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Name → number of weights, of the pruned layers."""
        return {name: w.numel() for name, w in self.weights.items()}

    @property
    def targets(self) -> dict[str, float]:
        """Name → sparsity that a layer is to end with, as far as that is known before training."""
        return dict.fromkeys(self.candidates, self.sparsity) | self.budgets.sparsities(self.sizes)

    @property
    def present(self) -> LayerBudgets:
        """The masked weights, counted as ``budgets``."""
        own = {name: int((~self.masks[name]).sum()) for name in self.budgets.layer_zeros}
        return LayerBudgets(self.masked, own, self.budgets.other_weights)

    @property
    def masked(self) -> int:
        """Number of masked weights."""
        return self.total - sum(int(m.sum()) for m in self.masks.values())

    def select(self, sparsity: float, scores: Mapping[str, Tensor], ranking: str) -> Masks:
        """Return the masks that keep the best ``N - round(s·N)`` weights.

        Layers with a target of their own are as far on the way to it as all weights are to theirs.
        Where too few scores are finite, weights that are zero without a mask are kept, too.
        """
        zeros = zero_count(self.total, sparsity)
        own = self.budgets.kept_weights(self.sizes, zeros, self.start)
        masks = select_masks(scores, self.total - zeros, ranking, own)
        if sum(int(mask.sum()) for mask in masks.values()) < self.total - zeros:
            alive = {n: s.where(~(self.masks[n] & s.isneginf()), _LAST) for n, s in scores.items()}
            masks = select_masks(alive, self.total - zeros, ranking, own)
        return masks
