"""GSM: momentum SGD that lets redundant weights fade (Ding et al., arXiv:1909.12778)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.method import Method, MethodConfig, option
from lpss_cli.schedule import warmup_steps

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from lpss_cli.state import RunState

# The official recipe for MNIST: 280 epochs, momentum 0.99, decay 5e-4, learning rate 0.01.
_DROPS = (160 / 280, 200 / 280, 240 / 280)
_MOMENTUM, _DECAY, _LR = 0.99, 5e-4, 0.01
# What is to be left of a redundant weight; at a ten-thousandth a cut is lossless.
_LEFT = 3e-5
# Scores that the threshold of a step is taken from.
_SAMPLE = 20_000

Rates = Sequence[tuple[float, int]]


class GSM(Method):
    """Only the Q weights of largest ``|w·∂L/∂w|`` see their gradient in a step; all decay.

    With Q the number of weights to keep, B = 1 at those Q weights and 0 elsewhere (equation 8):

        Z ← βZ + ηw + B∘g,   w ← w - αZ.

    What is never among the Q fades to nothing, so the cut at the very end takes nothing away. In
    a run shorter than the official one the momentum β and the decay η are solved for, so that it
    fades in time (``solve``); the learning rate then keeps the official α/(1-β).

    The threshold of a step is the quantile of a random sample of 20,000 scores: a density d is
    met with a standard deviation of √(d(1-d)/20000), 2 % of Q at 90 % sparsity and 7 % of it at
    99 %, anew in every step. The final choice of the Q largest |w| is exact.

    The gradient is not clipped unless asked for: a clipped B∘g would lose against the decay.
    Parameters that are not pruned take ordinary steps, with the official decay at most.
    """

    name: ClassVar[str] = "gsm"
    paper: ClassVar[str] = "Ding et al. 2019, arXiv:1909.12778"

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """The official schedule; what is None is chosen for the length of the run."""

        lr: float | None = option(  # type: ignore[assignment]  # None: follows the momentum
            None, "peak learning rate; 0.01 at momentum 0.99", low=0
        )
        momentum: float | None = option(  # type: ignore[assignment]  # None: solved for
            None, "momentum; solved for", low=0, high=0.999
        )
        weight_decay: float | None = option(  # type: ignore[assignment]  # None: solved for
            None, "L2 decay of weights; solved for", low=0
        )
        clip: float = option(0.0, "largest norm of the whole gradient; 0 for none", low=0)
        warmup: float = option(0.02, "part of training with a rising learning rate", low=0, high=1)
        end: float = option(1.0, "part of training at the exact cut", low=0, high=1)
        ranking: str = option("magnitude", "weights compare globally", choices=("magnitude",))
        nesterov: bool = option(False, "Nesterov's momentum")

    def prepare(self, run: RunState) -> None:
        """Choose momentum, decay and learning rate for the steps there are before the cut."""
        steps = min(run.cut_step, run.total_steps)
        factors = [self._factor((k + 0.5) / run.total_steps) for k in range(steps)]
        rates = [(factor, len(list(same))) for factor, same in groupby(factors)]
        solved = solve(rates, self.config, fades=self._fades(run))
        run.memory.update(lr=solved.lr, momentum=solved.momentum, weight_decay=solved.decay)
        if self._fades(run) and steps:
            run.notes.append(
                f"gsm: learning rate {solved.lr:.3g}, momentum {solved.momentum:.4g}, decay "
                f"{solved.decay:.3g}: a redundant weight fades to {solved.left:.1g} of its start "
                f"in {steps:,} steps"
            )

    def make_optimizer(self, run: RunState) -> Optimizer:
        """Return momentum SGD: its own update, with the decay before the momentum."""
        from torch.optim import SGD

        pruned, memory = list(run.weights.values()), run.memory
        ordinary = min(memory["weight_decay"], _DECAY)
        groups = [{"params": pruned, "weight_decay": memory["weight_decay"]}] if pruned else []
        return SGD(
            groups + run.decay_groups(ordinary, without=pruned),
            lr=memory["lr"],
            momentum=memory["momentum"],
            nesterov=self.config.nesterov and memory["momentum"] > 0,
        )

    def lr_factor(self, run: RunState) -> float:
        """Return the official schedule's factor: three drops after 4/7 of training."""
        return self._factor((run.step + 0.5) / run.total_steps)

    def on_gradients(self, run: RunState) -> bool:
        """Zero the gradients of all but the Q most salient weights."""
        if not self._fades(run) or run.step >= run.cut_step:
            return True
        pairs = [(w.detach(), w.grad) for w in run.weights.values() if w.grad is not None]
        scores = [(weight * gradient).abs() for weight, gradient in pairs]
        if scores:
            threshold = self._threshold(run, scores)
            for (_, gradient), score in zip(pairs, scores, strict=True):
                gradient.masked_fill_(score < threshold, 0)
        return True

    def _factor(self, progress: float) -> float:
        return warmup_steps(progress, self.config.warmup, _DROPS)

    def _fades(self, run: RunState) -> bool:
        """Whether any weight is to go beside those that were zero from the start."""
        return run.sparsity > run.start_sparsity

    def _threshold(self, run: RunState, scores: Sequence[Tensor]) -> Tensor:
        """Return the score that about Q of all scores reach; exactly Q in a small network."""
        import torch

        from lpss_cli.masks import allocate, zero_count

        sizes = [score.numel() for score in scores]
        kept = min(1.0, (run.total - zero_count(run.total, run.sparsity)) / sum(sizes))
        parts = [score.flatten() for score in scores]
        if sum(sizes) > _SAMPLE:
            counts = allocate(_SAMPLE, sizes, sizes)  # every layer by its size: less variance
            parts = [
                part[torch.randint(size, (count,), generator=run.rng).to(part.device)]
                for part, size, count in zip(parts, sizes, counts, strict=True)
            ]
        sample = torch.cat(parts)
        rank = max(1, round(sample.numel() * kept))
        return sample.kthvalue(sample.numel() - rank + 1).values


@dataclass(frozen=True)
class Solved:
    """Settings of a run, and the part of a redundant weight that they leave."""

    lr: float
    momentum: float
    decay: float
    left: float


def solve(rates: Rates, config: GSM.Config, *, fades: bool = True) -> Solved:
    """Choose what the config leaves open so that a redundant weight fades to 3e-5 in time.

    Momentum is first: it keeps a weight from fading faster than √β per step, so 18.4/(1-β)
    steps, in which that is a factor 1e-4, may take a third of the run; it is lowered on where
    that does not do. The decay is the smallest that does, but not below the official one.

    Args:
        rates: the learning-rate factors as runs of equal ones: (factor, number of steps).
        config: values that are given there are respected.
        fades: whether there are redundant weights; without, the official decay does.
    """
    steps = sum(count for _, count in rates)
    beta = config.momentum
    if beta is None:
        beta = min(_MOMENTUM, max(0.0, 1 - 3 * 18.4 / steps)) if steps else _MOMENTUM
    while True:
        lr = _LR * (1 - beta) / (1 - _MOMENTUM) if config.lr is None else config.lr
        eta = config.weight_decay
        if eta is None:
            eta = _decay(rates, lr, beta, config.nesterov) if fades else _DECAY
        left = remaining(rates, lr, beta, eta, config.nesterov)
        fixed = config.momentum is not None or config.weight_decay is not None
        if fixed or left <= _LEFT or beta == 0 or not fades:
            return Solved(lr, beta, eta, left)
        beta = max(0.0, 1 - 1.1 * (1 - beta))


def _decay(rates: Rates, lr: float, beta: float, nesterov: bool) -> float:
    """Return the least decay from the official one up that leaves 3e-5, or the fastest one."""
    peak = lr * max((factor for factor, _ in rates), default=0.0)
    low, high = _DECAY, max(_DECAY, fastest(beta, nesterov) / peak if peak else 0.0)
    if remaining(rates, lr, beta, low, nesterov) <= _LEFT:
        return low
    if remaining(rates, lr, beta, high, nesterov) > _LEFT:
        return high
    for _ in range(40):
        middle = math.sqrt(low * high)
        if remaining(rates, lr, beta, middle, nesterov) > _LEFT:
            low = middle
        else:
            high = middle
    return high


def fastest(beta: float, nesterov: bool) -> float:
    """Return the ``αη`` beyond which a redundant weight swings instead of fading faster.

    Without a gradient [Z; w] is multiplied by [[β, η], [-αβ, 1-αη]], of trace 1 + β - αη and
    determinant β: its eigenvalues are real, and the larger one falls with αη, up to
    αη = (1-√β)², where both are √β. Nesterov: trace (1+β)(1-αη), determinant β(1-αη).
    """
    return float(((1 - beta) / (1 + beta)) ** 2 if nesterov else (1 - math.sqrt(beta)) ** 2)


def remaining(rates: Rates, lr: float, beta: float, eta: float, nesterov: bool) -> float:
    """Return the part of a weight that is left after all steps when it sees no gradient."""
    z, w = 0.0, 1.0
    for factor, count in rates:
        alpha = lr * factor
        # One step: z = βz + ηw, then w = w - α(ηw + βz) with Nesterov's look-ahead or w - αz.
        fade = 1 - alpha * eta * (1 + beta if nesterov else 1)
        step = (beta, eta, -alpha * beta * (beta if nesterov else 1), fade)
        a, b, c, d = _power(step, count)
        z, w = a * z + b * w, c * z + d * w
    return abs(w)


Matrix = tuple[float, float, float, float]


def _power(matrix: Matrix, count: int) -> Matrix:
    """Return a power of [[a, b], [c, d]] by repeated squaring."""
    result: Matrix = (1.0, 0.0, 0.0, 1.0)
    while count:
        if count % 2:
            result = _product(matrix, result)
        matrix, count = _product(matrix, matrix), count // 2
    return result


def _product(x: Matrix, y: Matrix) -> Matrix:
    (a, b, c, d), (e, f, g, h) = x, y
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
