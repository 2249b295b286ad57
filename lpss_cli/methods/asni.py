"""ASNI-I: global magnitude pruning along a sigmoid of the epochs (Damadi et al.)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.sparsity.schedules import logistic_ramp
from lpss_cli.training.method import RANKINGS, Method, MethodConfig, option

if TYPE_CHECKING:
    from lpss_cli.training.run import MethodContext

# Updates of a run with fewer epochs than that: an epoch is too coarse a grid for its sigmoid.
_UPDATES = 100


class ASNI(Method):
    """Prune slowly, fast, slowly: the sparsity at the progress t is ``s·σ((t - τ)/c)``.

    The sigmoid is rescaled to start at the input's sparsity and to reach the target exactly at
    ``end``. Its width c is a fraction of training (the paper's 10 of 160 and 5 of 90 epochs are
    0.06), so it scales with the run. The paper prunes after every epoch; a run of few epochs prunes
    after every hundredth of its steps. Pruned weights stay zero.
    """

    name: ClassVar[str] = "asni"
    paper: ClassVar[str] = "Damadi et al. 2022, arXiv:2202.09284 (ASNI-I)"

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """The authors' settings for VGG on CIFAR-10, except for the learning rate.

        Theirs, 0.05 for batches of 128, is half of that of every other method here, and ASNI-I is
        to be compared with a dense network and with ASNI-II.
        """

        warmup: float = option(
            0.0, "fraction of training with a rising learning rate", low=0, high=1
        )
        begin: float = option(
            0.0, "fraction of training before the first mask update", low=0, high=1
        )
        end: float = option(
            0.85, "fraction of training before the final pruning step", low=0, high=0.85
        )
        frequency: int | None = option(  # type: ignore[assignment]  # None: fits the run's length
            None,
            "number of steps between mask updates; default an epoch, or a hundredth of a shorter "
            "run",
            low=1,
        )
        ranking: str = option(
            "magnitude", "how weights of different layers are compared", choices=RANKINGS
        )
        tau: float = option(
            0.5, "fraction of training at the midpoint of the sigmoid", low=0, high=1
        )
        width: float = option(
            0.06, "width of the sigmoid, as a fraction of training", low=0.01, high=1
        )
        second: float = option(
            0.0, "fraction of the sparsity that a second sigmoid adds", low=0, high=1
        )
        second_tau: float = option(0.78, "midpoint of the second sigmoid", low=0, high=1)
        second_width: float = option(0.022, "width of the second sigmoid", low=0.01, high=1)

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sum of the sigmoids at the steps of updates."""
        config = self.config
        frequency = config.frequency or min(
            run.steps_per_epoch, max(1, run.total_steps // _UPDATES)
        )
        if not run.is_update_step(config.begin, frequency):
            return None
        first = logistic_ramp(run.progress, config.end, config.tau, config.width)
        second = logistic_ramp(run.progress, config.end, config.second_tau, config.second_width)
        part = (1 - config.second) * first + config.second * second
        return float(run.start_sparsity + (run.sparsity - run.start_sparsity) * part)
