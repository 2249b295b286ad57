"""The weights that are pruned, their masks, and the zeros they are to end with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.errors import RunError
from lpss_cli.sparsity import layer_targets
from lpss_cli.sparsity.activity import Activity
from lpss_cli.sparsity.layer_targets import LayerBudgets, layer_budgets
from lpss_cli.sparsity.lp_geometry import hoyer
from lpss_cli.sparsity.masks import Masks, apply_mask_, select_masks
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import (
    Weight,
    prunable_weights,
    reparametrized_weights,
    trainable_weights,
)
from lpss_cli.sparsity.targets import check_sparsity, zero_count

# Log-saliency below that of every other weight, for a weight that was initialized to zero.
_LOWEST_SCORE = -100_000.0


def choose_weights(
    model: nn.Module, sparsity: float, skip: Sequence[str], warn: Callable[[str], None]
) -> tuple[dict[str, Weight], list[str]]:
    """Return the trainable Linear, Conv and attention weights, and the names of those to skip.

    Args:
        model: any network.
        sparsity: target, zeros / prunable weights.
        skip: globs of weights that are not pruned.
        warn: called with a line about weights that cannot be pruned.

    Raises:
        InputError: a pattern matches nothing, or the target leaves no weight.
    """
    candidates = trainable_weights(model)
    frozen = [name for name in prunable_weights(model) if name not in candidates]
    if frozen:
        warn(f"frozen weights are not pruned: {', '.join(frozen)}")
    parametrized = reparametrized_weights(model)
    if parametrized:
        warn(f"weights made from other parameters are not pruned: {', '.join(parametrized)}")
    skipped = resolve_patterns(skip, list(candidates), "--skip")
    total = sum(w.tensor.numel() for name, w in candidates.items() if name not in skipped)
    check_sparsity(sparsity, total)
    return candidates, skipped


class SparseWeights:
    """The weights of a network that are pruned, with their masks and their targets.

    Args:
        candidates: name → trainable Linear, Conv or attention weight, in module order.
        skipped: names of candidates that are not pruned.
        sparsity: target, zeros / prunable weights, in [0, 1).
        layers: ``PATTERN=SPARSITY`` for layers with a target of their own.

    Attributes:
        candidates: name → trainable Linear, Conv or attention weight, in module order.
        weights: name → weight that is pruned, a subset of the candidates; every count is over
            these.
        row_dims: name → dimension that counts neurons; None if rows are not simple slices.
        fan_ins: name → entries of one row; None if rows are not simple slices.
        masks: name → bool tensor, True = kept; a masked weight is exactly 0.
        sparsity: target, zeros / prunable weights; at least the sparsity of a checkpoint's zeros.
        start_sparsity: sparsity at the start of training.
        budgets: target number of zeros, overall and for layers with a target of their own.
        start: number of zeros at the start of training, counted like ``budgets``.
        activity: which neurons and inputs had a gradient since the last pruning.

    Raises:
        InputError: a pattern of ``layers`` matches nothing, or its target cannot be met.
    """

    def __init__(
        self,
        candidates: Mapping[str, Weight],
        skipped: Collection[str],
        sparsity: float,
        layers: Sequence[str] = (),
    ) -> None:
        self.candidates: dict[str, Tensor] = {n: w.tensor for n, w in candidates.items()}
        self.weights = {n: w for n, w in self.candidates.items() if n not in skipped}
        self.row_dims = {n: w.row_dim for n, w in candidates.items()}
        self.fan_ins = {n: w.fan_in for n, w in candidates.items()}
        self.masks: Masks = {
            n: torch.ones_like(w, dtype=torch.bool) for n, w in self.weights.items()
        }
        self.sparsity = sparsity
        self.start_sparsity = 0.0
        self.budgets = layer_budgets(layers, self.sizes, sparsity)
        self.start = self.present
        self.activity = Activity()
        self._any_masked = False

    @property
    def total(self) -> int:
        """Number of prunable weights."""
        return sum(w.numel() for w in self.weights.values())

    @property
    def sizes(self) -> dict[str, int]:
        """Name → number of weights of each pruned layer."""
        return {name: w.numel() for name, w in self.weights.items()}

    @property
    def masked(self) -> int:
        """Number of masked weights."""
        return self.total - sum(int(m.sum()) for m in self.masks.values())

    @property
    def present(self) -> LayerBudgets:
        """Number of masked weights, counted like ``budgets``."""
        own = {name: int((~self.masks[name]).sum()) for name in self.budgets.layer_zeros}
        return LayerBudgets(self.masked, own, self.budgets.other_weights)

    @property
    def targets(self) -> dict[str, float]:
        """Name → target sparsity of each candidate, as far as it is known before training."""
        return dict.fromkeys(self.candidates, self.sparsity) | self.budgets.sparsities(self.sizes)

    def select(self, sparsity: float, scores: Mapping[str, Tensor], ranking: str) -> Masks:
        """Return the masks that keep the best ``N - round(s·N)`` weights.

        Layers with a target of their own have covered the same part of the way to it as all
        weights have to theirs. If too few scores are finite, weights that are zero but not masked
        are kept, too.

        Args:
            sparsity: s, zeros / prunable weights.
            scores: name → log-saliency, of the weight's shape.
            ranking: one of ``masks.RANKINGS``.
        """
        zeros = zero_count(self.total, sparsity)
        own = self.budgets.kept_weights(self.sizes, zeros, self.start)
        masks = select_masks(scores, self.total - zeros, ranking, own)
        if sum(int(mask.sum()) for mask in masks.values()) < self.total - zeros:
            scores = {
                n: s.where(~(self.masks[n] & s.isneginf()), _LOWEST_SCORE)
                for n, s in scores.items()
            }
            masks = select_masks(scores, self.total - zeros, ranking, own)
        return masks

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Take new masks, in place; layers that are not named keep theirs."""
        for name, mask in masks.items():
            self.masks[name].copy_(mask)
        self._any_masked = self.masked > 0

    def inherit_zeros(self) -> str | None:
        """Count the present masks as those that training starts with.

        Returns:
            A warning, if more weights are masked than the target asks for: they stay masked.

        Raises:
            InputError: a layer's own target asks for fewer zeros than the layer has.
        """
        self.start_sparsity = self.masked / self.total if self.total else 0.0
        self.start, asked = self.present, zero_count(self.total, self.sparsity)
        if self.budgets.layer_zeros:
            layer_targets.check_initial_zeros(self.start, self.budgets, self.sizes)
        elif self.masked > asked:
            self.sparsity, self.budgets = self.start_sparsity, self.start
            return (
                f"the input already has {self.masked:,} zeros, more than the {asked:,} asked for; "
                "they are kept"
            )
        return None

    def restore(
        self,
        masks: Mapping[str, Tensor],
        sparsity: float,
        start_sparsity: float,
        start: LayerBudgets | None,
    ) -> None:
        """Take the masks and targets of a saved run; older runs did not save ``start``."""
        self.set_masks(masks)
        self.sparsity, self.start_sparsity = sparsity, start_sparsity
        self.start = start or self.start
        self.budgets = replace(self.budgets, zeros=zero_count(self.total, sparsity))

    def mask_gradients(self) -> None:
        """Zero the gradients of masked weights."""
        if self._any_masked:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    apply_mask_(weight.grad, self.masks[name])

    def mask_weights(self) -> None:
        """Zero the masked weights."""
        if self._any_masked:
            for name, weight in self.weights.items():
                apply_mask_(weight, self.masks[name])

    @torch.no_grad()
    def apply_masks(self, optimizer: Optimizer) -> None:
        """Zero the masked weights and their optimizer state, except state declared dormant."""
        self.mask_weights()
        if not self._any_masked:
            return
        dormant = getattr(optimizer, "dormant", ())
        for name, weight in self.weights.items():
            for key, value in optimizer.state.get(weight, {}).items():
                per_weight = isinstance(value, Tensor) and value.shape == weight.shape
                if per_weight and key not in dormant:
                    apply_mask_(value, self.masks[name])

    @torch.no_grad()
    def finalize(self) -> None:
        """Check that exactly the masked weights are zero, and exactly as many as asked for.

        A kept weight that training left at zero would count as pruned: it gets the smallest
        positive value.

        Raises:
            RunError: a weight is not finite, or a count of zeros is not the one asked for.
        """
        for name, weight in self.weights.items():
            if not bool(weight.isfinite().all()):
                raise RunError(
                    f"{name} holds weights that are not finite", "lower --lr and try again"
                )
            if self.sparsity > 0:
                tiny = torch.finfo(weight.dtype).tiny
                weight.masked_fill_(self.masks[name] & (weight == 0), tiny)
        if self.sparsity > 0:
            self._check_zeros()

    def _check_zeros(self) -> None:
        """Compare the number of zeros with the targets; see :meth:`finalize`."""
        zeros = {name: int((weight == 0).sum()) for name, weight in self.weights.items()}
        total, asked = sum(zeros.values()), zero_count(self.total, self.sparsity)
        if total != asked:
            raise RunError(
                f"{total:,} weights are zero where {asked:,} were asked for",
                "this is a defect of the method; please report it",
            )
        for name, asked in self.budgets.layer_zeros.items():
            if zeros[name] != asked:
                raise RunError(
                    f"{zeros[name]:,} weights of {name} are zero where --layer asked for {asked:,}",
                    "this is a defect of the method; please report it",
                )

    def mean_hoyer(self) -> float:
        """Return the mean Hoyer sparsity of all rows, averaged over layers by their size."""
        known, total = 0.0, 0
        for name, weight in self.weights.items():
            rows = hoyer(weight.detach(), self.row_dims[name] or 0)
            rows = rows[rows.isfinite()]
            if len(rows):
                known += float(rows.mean()) * weight.numel()
                total += weight.numel()
        return known / total if total else 0.0
