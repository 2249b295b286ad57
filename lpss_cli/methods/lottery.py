"""Lottery tickets: rounds of training, pruning and rewinding (Frankle & Carbin 2019)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.sparsity.schedules import warmup_cosine
from lpss_cli.training.method import Method, MethodConfig, option

if TYPE_CHECKING:
    from lpss_cli.training.run import MethodContext


class Lottery(Method):
    """Train, prune the smallest weights, rewind the others to their early values, and repeat.

    The rounds have the same number of steps and each its own learning-rate schedule. Every round
    but the last ends with a pruning, which keeps the same fraction of the remaining weights in each
    round, and with a rewind of all parameters and buffers. The last round trains the final mask.
    """

    name: ClassVar[str] = "lottery"
    paper: ClassVar[str] = "Frankle & Carbin 2019, arXiv:1803.03635"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Plain momentum SGD in every round; ``rounds`` decides when to prune."""

        rounds: int = option(
            5, "number of rounds that share the epochs; all but the last end with a pruning", low=2
        )
        rewind: float = option(
            0.0,
            "fraction of the first round after which the weights are saved to rewind to; 0 for its "
            "start",
            low=0,
            high=0.99,
        )

    def prepare(self, run: MethodContext) -> None:
        """Move the final pruning to the start of the last round; save a start to rewind to."""
        if run.total_steps:
            run.final_prune_step = max(1, self._ends(run)[-2])
        if self._rewind_step(run) == 0:
            self._save_start(run)

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor of the warm-up and cosine of the current round."""
        ends = self._ends(run)
        index = bisect_right(ends, run.step)
        begin = ends[index - 1] if index else 0
        progress = (run.step - begin + 0.5) / (ends[index] - begin)
        return warmup_cosine(progress, self.config.warmup)

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity after a round: densities fall by equal factors."""
        ends, prunings = self._ends(run), self.config.rounds - 1
        if run.step not in ends[:-1] or run.sparsity <= run.start_sparsity:
            return None
        # The last of equal ends, where there are fewer steps than rounds.
        done = bisect_right(ends, run.step)
        first, last = 1 - run.start_sparsity, 1 - run.sparsity
        return float(1 - first * (last / first) ** (done / prunings))

    def on_weights(self, run: MethodContext) -> None:
        """Save the weights to rewind to, once they are reached."""
        if run.step == self._rewind_step(run):
            self._save_start(run)

    def on_prune(self, run: MethodContext) -> None:
        """Rewind parameters, buffers and optimizer state; the masks stay."""
        import torch

        if run.sparsity <= run.start_sparsity or not run.total_steps:
            return
        start = run.method_state["start"]
        with torch.no_grad():
            for name, tensor in run.model.state_dict().items():
                tensor.copy_(start[name])
        run.optimizer.state.clear()
        run.apply_masks()

    def _save_start(self, run: MethodContext) -> None:
        run.method_state["start"] = {
            n: t.detach().clone() for n, t in run.model.state_dict().items()
        }

    def _ends(self, run: MethodContext) -> list[int]:
        """Return the last step of every round."""
        rounds = self.config.rounds
        return [round(r * run.total_steps / rounds) for r in range(1, rounds + 1)]

    def _rewind_step(self, run: MethodContext) -> int:
        return int(self.config.rewind * self._ends(run)[0])
