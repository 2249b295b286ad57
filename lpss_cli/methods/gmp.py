"""Gradual magnitude pruning (Zhu & Gupta, arXiv:1710.01878)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lpss_cli.sparsity.schedules import cubic_sparsity
from lpss_cli.training.method import Method

if TYPE_CHECKING:
    from lpss_cli.training.run import MethodContext


class GMP(Method):
    """Prune the smallest weights along a cubic path; pruned weights stay zero."""

    name: ClassVar[str] = "gmp"
    paper: ClassVar[str] = "Zhu & Gupta 2017, arXiv:1710.01878"

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the cubic path's sparsity at the steps of updates."""
        config = self.config
        if not run.is_update_step(config.begin, config.frequency):
            return None
        return cubic_sparsity(
            run.progress, config.begin, config.end, run.start_sparsity, run.sparsity
        )
