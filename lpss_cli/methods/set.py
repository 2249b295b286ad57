"""SET: sparse from the first step; connections move to random places (Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.training.method import RANKINGS, Method, MethodConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.training.run import MethodContext

# Steps between updates, and the number of updates in a run too short for them: with fewer, the
# topology hardly moves.
_INTERVAL, _UPDATES = 100, 20


class SET(Method):
    """Constant sparsity: every ΔT steps the smallest weights of each layer move elsewhere.

    An update drops the fraction ``α/2·(1 + cos(πt/T_end))`` of a layer's connections with the
    smallest |w|, and grows as many at random among the inactive ones, including those just dropped
    (a connection that is grown again at once has not changed). Grown weights start at 0 with zero
    momentum and take part in the step of the update.

    This is SET as in the comparison of Evci et al. (arXiv:1911.11134). In its own paper, a fixed
    fraction of the smallest positive and of the largest negative weights moves after every epoch.

    From scratch, the first mask is random. From a checkpoint, it keeps the largest weights, within
    the same layer budgets: a random mask would destroy what was learned.
    """

    name: ClassVar[str] = "set"
    paper: ClassVar[str] = "Mocanu et al. 2018, doi:10.1038/s41467-018-04316-3"

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Plain momentum SGD; updates during the first 75 % of training."""

        begin: float = option(
            0.0, "fraction of training before the first mask update", low=0, high=1
        )
        end: float = option(0.75, "fraction of training with mask updates", low=0, high=0.85)
        frequency: int | None = option(  # type: ignore[assignment]  # None: fits the run's length
            None,
            "number of steps between mask updates; default 100, in a short run as few as give 20 "
            "updates",
            low=1,
        )
        ranking: str = option("erk", "how the layers share the budget", choices=RANKINGS)
        drop_fraction: float = option(
            0.3,
            "fraction of the connections that the first update moves, annealed to 0",
            low=0,
            high=1,
        )

    def prepare(self, run: MethodContext) -> None:
        """Set the initial masks; the layer budgets stay the same in the whole run."""
        if run.from_checkpoint:
            run.prune_to_sparsity(run.sparsity, self.scores(run), self.config.ranking)
        else:
            run.random_masks(run.sparsity, self.config.ranking)

    def on_gradients(self, run: MethodContext) -> bool:
        """Move connections if an update is due; the step is taken all the same."""
        self.update(run)
        return True

    def update(self, run: MethodContext) -> bool:
        """Move connections if an update is due, and return whether it was."""
        frequency = self.config.frequency or min(
            _INTERVAL, max(1, run.final_prune_step // _UPDATES)
        )
        if not run.is_update_step(self.config.begin, frequency) or run.masked == 0:
            return False
        from lpss_cli.sparsity.drop_grow import cosine_decay, drop_and_grow

        fraction = cosine_decay(self.config.drop_fraction, run.progress, 0.0, self.config.end)
        masks = {}
        for name, weight in run.weights.items():
            mask = run.masks[name]
            count = int(fraction * int(mask.sum()))
            masks[name] = drop_and_grow(weight, mask, count, self.growth(run, weight))
        run.set_masks(masks)
        return True

    def growth(self, run: MethodContext, weight: Tensor) -> Tensor:
        """Return the scores by which connections of one layer are grown: random numbers."""
        return run.random_like(weight)
