"""GSM: momentum SGD that lets redundant weights fade (Ding et al., arXiv:1909.12778)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.fading import DECAY, LEFT, MOMENTUM, Rates, remaining, solve
from lpss_cli.method import Method, MethodConfig, option
from lpss_cli.schedule import warmup_steps

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from lpss_cli.state import RunState

# The official recipe for MNIST holds its learning rate, 0.01 = 1·(1-β), for 160 of 280 epochs.
_PEAK, _SPEED = 160 / 280, 1.0
# A shorter run needs more decay, which biases the weights that stay. Longer and larger steps need
# less of it, until they diverge. Chosen among 0.57 to 0.92 and 1 to 4.5 on held-out parts of
# MNIST (LeNet-300, 4, 12 and 20 epochs) and digits.
_SHORT_PEAK, _SHORT_SPEED = 0.75, 2.0
# Scores that the threshold of a step is taken from.
_SAMPLE = 20_000


class GSM(Method):
    """Only the Q weights of largest ``|w·∂L/∂w|`` see their gradient in a step; all decay.

    With Q the number of weights to keep, B = 1 at those Q weights and 0 elsewhere (equation 8):

        Z ← βZ + ηw + B∘g,   w ← w - αZ.

    What is never among the Q fades to nothing, so the cut at the very end takes nothing away. In
    practice more than Q weights are among the Q now and then and stay alive (on LeNet-300 at 60×
    the official budget lost four points in its cut). So from ``settle`` on the Q are the largest
    |w| of that moment, and everything else fades while they adapt.

    A run that is too short for the official β = 0.99 and η = 5e-4 solves for momentum and decay,
    so that it fades to 3e-5 in time (``lpss_cli.fading``); its peak learning rate is 2(1-β), held
    for 3/4 of training.

    The threshold of a step is the quantile of a random sample of 20,000 scores: a density d is
    met with a standard deviation of √(d(1-d)/20000), 2 % of Q at 90 % sparsity and 7 % of it at
    99 %, anew in every step. The final choice of the Q largest |w| is exact.

    Clipping scales B∘g and not the decay. It bites in the first steps, where networks without
    BatchNorm would diverge; later B∘g balances ηw, whose norm is far below the default of 1.
    Parameters that are not pruned take ordinary steps, with the official decay at most.
    """

    name: ClassVar[str] = "gsm"
    paper: ClassVar[str] = "Ding et al. 2019, arXiv:1909.12778"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """The official schedule; what is None is chosen for the length of the run."""

        lr: float | None = option(  # type: ignore[assignment]  # None: follows the momentum
            None, "peak learning rate; follows the momentum", low=0
        )
        momentum: float | None = option(  # type: ignore[assignment]  # None: solved for
            None, "momentum; solved for", low=0, high=0.999
        )
        weight_decay: float | None = option(  # type: ignore[assignment]  # None: solved for
            None, "L2 decay of weights; solved for", low=0
        )
        clip: float = option(1.0, "largest norm of the whole gradient; 0 for none", low=0)
        warmup: float = option(0.02, "part of training with a rising learning rate", low=0, high=1)
        end: float = option(1.0, "part of training at the exact cut", low=0, high=1)
        ranking: str = option("magnitude", "weights compare globally", choices=("magnitude",))
        nesterov: bool = option(False, "Nesterov's momentum")
        settle: float = option(
            0.4,
            "part of training from which the Q largest weights alone see gradients; 1 for never, "
            "as in the paper",
            low=0,
            high=1,
        )
        peak: float | None = option(
            None,
            "part of training before three drops of the learning rate; default 4/7, in a short "
            "run 3/4",
            low=0,
            high=1,
        )

    def prepare(self, run: RunState) -> None:
        """Choose momentum, decay and learning rate for the steps there are before the cut."""
        config, official = self.config, self._rates(run, _PEAK)
        too_short = remaining(official, _SPEED * (1 - MOMENTUM), MOMENTUM, DECAY) > LEFT
        peak, speed = (_SHORT_PEAK, _SHORT_SPEED) if too_short else (_PEAK, _SPEED)
        peak = peak if config.peak is None else config.peak
        decay = config.weight_decay
        solved = solve(
            self._rates(run, peak),
            lr=config.lr,
            momentum=config.momentum,
            # With nothing that is to fade there is nothing to solve for.
            decay=DECAY if decay is None and not self._fades(run) else decay,
            nesterov=config.nesterov,
            speed=speed,
        )
        run.memory.update(
            lr=solved.lr, momentum=solved.momentum, weight_decay=solved.decay, peak=peak
        )
        if self._fades(run) and run.total_steps:
            run.notes.append(
                f"gsm: learning rate {solved.lr:.3g}, momentum {solved.momentum:.4g}, decay "
                f"{solved.decay:.3g}: a redundant weight fades to {solved.left:.1g} of its start"
            )

    def make_optimizer(self, run: RunState) -> Optimizer:
        """Return momentum SGD: its own update, with the decay before the momentum."""
        from torch.optim import SGD

        pruned, memory = list(run.weights.values()), run.memory
        ordinary = min(memory["weight_decay"], DECAY)
        groups = [{"params": pruned, "weight_decay": memory["weight_decay"]}] if pruned else []
        return SGD(
            groups + run.decay_groups(ordinary, without=pruned),
            lr=memory["lr"],
            momentum=memory["momentum"],
            nesterov=self.config.nesterov and memory["momentum"] > 0,
        )

    def lr_factor(self, run: RunState) -> float:
        """Return the factor of a peak and three drops, equally long."""
        return self._factor((run.step + 0.5) / run.total_steps, run.memory["peak"])

    def on_gradients(self, run: RunState) -> bool:
        """Zero the gradients of all but the Q most salient weights."""
        from lpss_cli.masking import keep_only
        from lpss_cli.masks import wide

        if not self._fades(run) or run.step >= run.cut_step:
            return True
        if run.progress >= self.config.settle:
            self._settle(run)
            return True
        pairs = [(w.detach(), w.grad) for w in run.weights.values() if w.grad is not None]
        scores = [(wide(weight) * gradient).abs() for weight, gradient in pairs]
        if scores:
            threshold = self._threshold(run, scores)
            for (_, gradient), score in zip(pairs, scores, strict=True):
                keep_only(gradient, ~(score < threshold))
        return True

    def _settle(self, run: RunState) -> None:
        """Let the Q weights that are largest now see their gradients from here on, no others."""
        from lpss_cli.masking import keep_only

        if "settled" not in run.memory:
            best = run.select(run.sparsity, self.scores(run), self.config.ranking)
            run.memory["settled"] = best
        for name, weight in run.weights.items():
            if weight.grad is not None:
                keep_only(weight.grad, run.memory["settled"][name])

    def _factor(self, progress: float, peak: float) -> float:
        drops = [peak + part * (1 - peak) / 3 for part in range(3)]
        return warmup_steps(progress, self.config.warmup, drops)

    def _rates(self, run: RunState, peak: float) -> Rates:
        """Return the learning-rate factors of the steps before the cut."""
        steps = range(min(run.cut_step, run.total_steps))
        factors = [self._factor((k + 0.5) / run.total_steps, peak) for k in steps]
        return [(factor, len(list(same))) for factor, same in groupby(factors)]

    def _fades(self, run: RunState) -> bool:
        """Whether any weight is to go beside those that were zero from the start."""
        return run.sparsity > run.start_sparsity

    def _threshold(self, run: RunState, scores: Sequence[Tensor]) -> Tensor:
        """Return the score that about Q of all scores reach; exactly Q in a small network."""
        import torch

        from lpss_cli.masks import allocate
        from lpss_cli.targets import zero_count

        sizes = [score.numel() for score in scores]
        kept = min(1.0, (run.total - zero_count(run.total, run.sparsity)) / sum(sizes))
        parts = [score.flatten() for score in scores]
        if sum(sizes) > _SAMPLE:
            counts = allocate(_SAMPLE, sizes, sizes)  # every layer by its size: less variance
            parts = [
                part[_places(run, size, count, part.device)]
                for part, size, count in zip(parts, sizes, counts, strict=True)
            ]
        sample = torch.cat(parts)
        rank = max(1, round(sample.numel() * kept))
        return sample.kthvalue(sample.numel() - rank + 1).values


def _places(run: RunState, size: int, count: int, device: torch.device) -> Tensor:
    """Draw so many places out of ``size``; out of pinned memory a GPU gets them without a wait."""
    import torch

    pinned = device.type == "cuda"
    drawn = torch.randint(size, (count,), generator=run.rng, pin_memory=pinned)
    return drawn.to(device, non_blocking=True)
