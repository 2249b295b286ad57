"""LpSS as its authors publish it: a preset, so that the improved default has a reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.methods.lpss import LpSS
from lpss_cli.training.method import option

if TYPE_CHECKING:
    from lpss_cli.training.context import MethodContext

# Learning-rate factors of the published schedule at epochs 0, E/6, E/3, E-3 and E, relative to
# its peak: 0.04, 2, 0.5, 0.004 and 0.0002 on the summed loss of 256 examples.
_FACTORS = (0.02, 1.0, 0.25, 0.002, 0.0001)
# Target: p of the first four layers and of the others, in the official demo.
_EXPONENTS = {0.9: (1.2, 1.07), 0.8: (1.3, 1.15), 0.5: (1.4, 1.3)}


class PublishedLpSS(LpSS):
    """Unit norms, the drop-and-grow controller and the authors' piecewise linear schedule.

    Without BatchNorm it may diverge, as the published code does: the unit norm rescales every
    layer. The exact count at the end is ours, and so is growth by the size of the gradient: the
    published code sorts it with its sign.
    """

    name: ClassVar[str] = "lpss-published"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2103.16013, as published"
    ignores: ClassVar[tuple[str, ...]] = ("warmup",)

    @dataclass(frozen=True)
    class Config(LpSS.Config):
        """The official demo's settings."""

        lr: float = option(2.0, "peak learning rate of the parameters off the sphere", low=0)
        eta: float | None = option(2 / 256, "peak step on the sphere", low=0, high=0.5)
        gain: str = option("unit", "row radius", choices=("fixed", "learned", "unit"))
        path: str = option("controller", "way to the target", choices=("cubic", "controller"))
        begin: float = option(0.2, "part of training before the first update", low=0, high=1)
        end: float = option(0.8, "part of training at the exact cut", low=0, high=0.85)
        clip: float = option(0.0, "largest norm of the whole gradient; 0 for none", low=0)
        frequency: int = option(40, "steps between topology updates", low=1)

    def on_sphere(self, fan_ins: Mapping[str, int | None]) -> list[str]:
        """Leave the last layer off the sphere too."""
        return [name for name in super().on_sphere(fan_ins) if name != list(fan_ins)[-1]]

    def suitable_p(
        self, fan_ins: Mapping[str, int], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return the official demo's p for the nearest of its three targets."""
        by_name = {name: _nearest(targets[name]) for name in fan_ins}
        return {
            name: first if i < 4 else others
            for i, (name, (first, others)) in enumerate(by_name.items())
        }

    def lr_scale(self, run: MethodContext) -> float:
        """Return the published piecewise linear factor at the present epoch."""
        epochs = run.epochs
        epoch = run.progress * epochs
        # Three epochs before the end, or half-way down where there are too few of them.
        knots = (0.0, epochs / 6, epochs / 3, max(epochs - 3, 2 * epochs / 3), float(epochs))
        for left, right, low, high in zip(knots, knots[1:], _FACTORS, _FACTORS[1:], strict=False):
            if epoch <= right:
                return low + (high - low) * (epoch - left) / (right - left)
        return _FACTORS[-1]


def _nearest(target: float) -> tuple[float, float]:
    return _EXPONENTS[min(_EXPONENTS, key=lambda s: abs(s - target))]
