"""Lottery tickets: rounds of training, cutting and rewinding (Frankle & Carbin 2019)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.sparsity.schedules import warmup_cosine
from lpss_cli.training.method import Method, MethodConfig, option

if TYPE_CHECKING:
    from lpss_cli.training.context import MethodContext


class Lottery(Method):
    """Train, cut the smallest weights, put the others back to their early values; again.

    The steps of a run are shared by all rounds alike, each with a learning rate of its own. A
    round but the last ends with a cut that leaves the same fraction of the weights that were
    left, and with a rewind of all parameters and buffers. The last round trains the final mask.
    """

    name: ClassVar[str] = "lottery"
    paper: ClassVar[str] = "Frankle & Carbin 2019, arXiv:1803.03635"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Plain momentum SGD in every round; ``rounds`` decides when cuts happen."""

        rounds: int = option(5, "trainings that share the epochs; all but the last cut", low=2)
        rewind: float = option(
            0.0,
            "part of the first round whose end weights go back to; 0 is the very start",
            low=0,
            high=0.99,
        )

    def prepare(self, run: MethodContext) -> None:
        """Move the exact cut to the start of the last round, and keep the start."""
        if run.total_steps:
            run.final_prune_step = max(1, self._ends(run)[-2])
        if self._rewind_step(run) == 0:
            self._keep(run)

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor of the present round's own warm-up and cosine."""
        ends = self._ends(run)
        index = bisect_right(ends, run.step)
        begin = ends[index - 1] if index else 0
        progress = (run.step - begin + 0.5) / (ends[index] - begin)
        return warmup_cosine(progress, self.config.warmup)

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity that a round ends with: densities fall by equal factors."""
        ends, cuts = self._ends(run), self.config.rounds - 1
        if run.step not in ends[:-1] or run.sparsity <= run.start_sparsity:
            return None
        # The last of equal ends, where there are fewer steps than rounds.
        done = bisect_right(ends, run.step)
        whole, kept = 1 - run.start_sparsity, 1 - run.sparsity
        return float(1 - whole * (kept / whole) ** (done / cuts))

    def on_weights(self, run: MethodContext) -> None:
        """Keep the weights to go back to, once they are reached."""
        if run.step == self._rewind_step(run):
            self._keep(run)

    def on_prune(self, run: MethodContext) -> None:
        """Rewind after a cut: the survivors' early values, no momentum, early statistics."""
        import torch

        if run.sparsity <= run.start_sparsity or not run.total_steps:
            return
        start = run.method_state["start"]
        with torch.no_grad():
            for name, tensor in run.model.state_dict().items():
                tensor.copy_(start[name])
        run.optimizer.state.clear()
        run.apply_masks()

    def _keep(self, run: MethodContext) -> None:
        run.method_state["start"] = {
            n: t.detach().clone() for n, t in run.model.state_dict().items()
        }

    def _ends(self, run: MethodContext) -> list[int]:
        """Return the steps that the rounds end with."""
        rounds = self.config.rounds
        return [round(r * run.total_steps / rounds) for r in range(1, rounds + 1)]

    def _rewind_step(self, run: MethodContext) -> int:
        return int(self.config.rewind * self._ends(run)[0])
