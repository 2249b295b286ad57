"""LpSS as its authors publish it: the drop-and-grow controller, and a preset of all their settings.

It is the reference that the improved default is compared with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.methods.lpss import LpSS, SparsityPath
from lpss_cli.training.method import option

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.training.run import MethodContext

# Learning-rate factors of the published schedule at epochs 0, E/6, E/3, E-3 and E, relative to
# its peak: 0.04, 2, 0.5, 0.004 and 0.0002 on the summed loss of 256 examples.
_FACTORS = (0.02, 1.0, 0.25, 0.002, 0.0001)
# Target sparsity → p of the first four layers and of the others, in the official demo.
_EXPONENTS = {0.9: (1.2, 1.07), 0.8: (1.3, 1.15), 0.5: (1.4, 1.3)}


class ControllerPath(SparsityPath, name="controller"):
    """Drop connections by magnitude and grow others by the dense gradients, as in the paper.

    Training from scratch starts at a random mask. Rows drop their smallest connections, layers
    grow those of the largest gradients, and the adapted threshold steers the sparsity toward the
    target. The final pruning step makes the count exact.
    """

    def prepare(self, run: MethodContext) -> None:
        """Mask weights at random, if training starts from scratch."""
        # A random mask would destroy what a checkpoint has learned.
        if run.sparsity > 0 and not run.from_checkpoint:
            run.random_masks(min(self.config.initial_sparsity, run.sparsity), "uniform")

    def scores(self, run: MethodContext, scores: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Rank every active connection before every inactive one: the gradient grows, not the rank.

        Those without a latent come last: a layer with a target of its own may need them.
        """
        from lpss_cli.sparsity.masks import RANK_OFFSET

        ranked = {name: s.where(run.masks[name], s - RANK_OFFSET) for name, s in scores.items()}
        return {name: s.clamp_min(-2 * RANK_OFFSET) for name, s in ranked.items()}

    def on_gradients(self, run: MethodContext) -> None:
        """Drop and grow at updates."""
        config = self.config
        if run.sparsity > 0 and run.is_update_step(config.begin, config.frequency):
            self._drop_and_grow(run)

    def _drop_and_grow(self, run: MethodContext) -> None:
        from lpss_cli.sparsity import drop_grow
        from lpss_cli.sparsity.lp_geometry import row_dims

        config = self.config
        threshold = drop_grow.cosine_decay(
            config.drop_threshold, run.progress, config.begin, config.end
        )
        growth = drop_grow.growth_fraction(
            run.masked / run.total, run.sparsity, threshold, config.delta
        )
        masks = {}
        for name, weight in run.weights.items():
            if weight.grad is None:
                continue
            mask, dims = run.masks[name], row_dims(weight, run.row_dims[name] or 0)
            dropped = drop_grow.below_row_mean(weight, mask, threshold, dims)
            count = int(growth * int(dropped.sum()))
            gradient = drop_grow.row_normalized(weight.grad, dims)
            grown = drop_grow.top_candidates(gradient, ~mask, count)
            masks[name] = (mask & ~dropped) | grown
            self._seed_latents(run, weight, grown)
        run.set_masks(masks)

    def _seed_latents(self, run: MethodContext, weight: Tensor, grown: Tensor) -> None:
        """Give grown weights without a latent one of half the mean size, against the gradient.

        Under the signed-power rule, a latent of exactly zero has no gradient of its own; under both
        rules, a much smaller one would stay invisible: the weight is a high power of it.
        """
        latent = run.optimizer.state[weight].get("latent")
        if latent is not None and weight.grad is not None:
            empty = grown & (latent == 0)
            scale = 0.5 * latent.abs().mean()
            latent.copy_((-scale * weight.grad.sign()).to(latent.dtype).where(empty, latent))


class PublishedLpSS(LpSS):
    """Unit norms, the controller and the piecewise linear schedule of the authors.

    Without BatchNorm it may diverge, as the published code does: the unit norm rescales every
    layer. The exact count at the end is ours, and so is growth by the size of the gradient: the
    published code sorts gradients with their sign.
    """

    name: ClassVar[str] = "lpss-published"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2103.16013, as published"
    ignores: ClassVar[tuple[str, ...]] = ("warmup",)

    @dataclass(frozen=True)
    class Config(LpSS.Config):
        """Settings of the official demo."""

        lr: float = option(2.0, "peak learning rate of parameters off the sphere", low=0)
        eta: float | None = option(2 / 256, "peak step on the sphere", low=0, high=0.5)
        radius: str = option(
            "unit", "radius of each row", choices=("fixed", "learned", "unit"), aliases=("gain",)
        )
        path: str = option("controller", "path to the target", choices=("cubic", "controller"))
        begin: float = option(0.2, "fraction of training before the first update", low=0, high=1)
        end: float = option(
            0.8, "fraction of training before the final pruning step", low=0, high=0.85
        )
        clip: float = option(0.0, "maximum norm of the gradient; 0 turns clipping off", low=0)
        frequency: int = option(40, "number of steps between mask updates", low=1)

    def on_sphere(self, fan_ins: Mapping[str, int | None]) -> list[str]:
        """Leave the last layer off the sphere too."""
        return [name for name in super().on_sphere(fan_ins) if name != list(fan_ins)[-1]]

    def suitable_p(
        self, fan_ins: Mapping[str, int], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the p of the official demo for the nearest of its three targets."""
        by_name = {name: _nearest_exponents(targets[name]) for name in fan_ins}
        return {
            name: first if i < 4 else others
            for i, (name, (first, others)) in enumerate(by_name.items())
        }

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor of the published piecewise linear schedule at the present epoch."""
        epochs = run.epochs
        epoch = run.progress * epochs
        # Three epochs before the end, or half-way down where there are too few of them.
        knots = (0.0, epochs / 6, epochs / 3, max(epochs - 3, 2 * epochs / 3), float(epochs))
        for left, right, low, high in zip(knots, knots[1:], _FACTORS, _FACTORS[1:], strict=False):
            if epoch <= right:
                return low + (high - low) * (epoch - left) / (right - left)
        return _FACTORS[-1]


def _nearest_exponents(target: float) -> tuple[float, float]:
    return _EXPONENTS[min(_EXPONENTS, key=lambda s: abs(s - target))]
