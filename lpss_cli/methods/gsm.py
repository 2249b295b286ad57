"""GSM: momentum SGD that lets redundant weights fade (Ding et al., arXiv:1909.12778)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.sparsity.schedules import warmup_step_decay
from lpss_cli.training.method import Method, MethodConfig, option

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from lpss_cli.training.context import MethodContext

# MERGED: How fast decay and momentum make a weight fade that sees no gradient: pure numbers.
# MERGED: Such a weight w and its momentum Z follow ``Z ← βZ + ηw, w ← w - αZ``, that is [Z; w] is
# MERGED: multiplied
# MERGED: by [[β, η], [-αβ, 1-αη]] at every step (β momentum, η decay, α learning rate).
#: Learning-rate factors of a run as stretches of equal ones: (factor, number of steps).
Rates = Sequence[tuple[float, int]]
Matrix = tuple[float, float, float, float]

#: What is to be left of a redundant weight; at a ten-thousandth a cut is lossless.
LEFT = 3e-5
#: The largest momentum and the least decay that are chosen: those of GSM's official recipe.
MOMENTUM, DECAY = 0.99, 5e-4


@dataclass(frozen=True)
class Solved:
    """Settings of a run, and the part of a redundant weight that they leave."""

    lr: float
    momentum: float
    decay: float
    left: float


def solve(
    rates: Rates,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    decay: float | None = None,
    nesterov: bool = False,
    speed: float = 1.0,
) -> Solved:
    """Choose what is None so that a redundant weight fades to ``LEFT`` within the run.

    Momentum is first: it keeps a weight from fading faster than √β per step, so the 18.4/(1-β)
    steps in which that is a factor of 1e-4 may take a third of the run; it is lowered further
    where that does not do. The decay is the smallest that does.

    Args:
        rates: factors on the learning rate, which is a peak.
        lr: the peak learning rate; None is ``speed·(1-β)``.
        momentum: β, respected where given, as are the others.
        decay: η.
        nesterov: whether steps look ahead.
        speed: the wished α/(1-β), the step that a lasting gradient makes in the end.
    """
    steps = sum(count for _, count in rates)
    beta = momentum
    if beta is None:
        beta = min(MOMENTUM, max(0.0, 1 - 3 * 18.4 / steps)) if steps else MOMENTUM
    while True:
        alpha = speed * (1 - beta) if lr is None else lr
        eta = least_decay(rates, alpha, beta, nesterov) if decay is None else decay
        left = remaining(rates, alpha, beta, eta, nesterov)
        fixed = momentum is not None or decay is not None
        if left <= LEFT or beta == 0 or fixed or steps == 0:
            return Solved(alpha, beta, eta, left)
        beta = max(0.0, 1 - 1.1 * (1 - beta))


def least_decay(rates: Rates, lr: float, beta: float, nesterov: bool = False) -> float:
    """Return the least decay from ``DECAY`` up that leaves ``LEFT``, or else the fastest one."""
    peak = lr * max((factor for factor, _ in rates), default=0.0)
    low, high = DECAY, max(DECAY, fastest(beta, nesterov) / peak if peak else 0.0)
    if remaining(rates, lr, beta, low, nesterov) <= LEFT:
        return low
    if remaining(rates, lr, beta, high, nesterov) > LEFT:
        return high
    for _ in range(40):
        middle = math.sqrt(low * high)
        if remaining(rates, lr, beta, middle, nesterov) > LEFT:
            low = middle
        else:
            high = middle
    return high


def fastest(beta: float, nesterov: bool = False) -> float:
    """Return the ``αη`` from which on a redundant weight swings instead of fading faster.

    The step's matrix has trace 1 + β - αη and determinant β: its eigenvalues are real, and the
    larger one falls with αη, up to αη = (1-√β)², where both are √β. With Nesterov's look-ahead
    the trace is (1+β)(1-αη) and the determinant β(1-αη).
    """
    return float(((1 - beta) / (1 + beta)) ** 2 if nesterov else (1 - math.sqrt(beta)) ** 2)


def remaining(rates: Rates, lr: float, beta: float, eta: float, nesterov: bool = False) -> float:
    """Return the part of a weight that is left after all steps, from zero momentum."""
    z, w = 0.0, 1.0
    for factor, count in rates:
        alpha = lr * factor
        # Z = βZ + ηw, then w = w - αZ; Nesterov: w = w - α(ηw + βZ).
        ahead = 1 + beta if nesterov else 1.0
        step = (beta, eta, -alpha * beta * (beta if nesterov else 1), 1 - alpha * eta * ahead)
        a, b, c, d = _power(step, count)
        z, w = a * z + b * w, c * z + d * w
    return abs(w)


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
    so that it fades to 3e-5 in time (see :func:`solve`); its peak learning rate is 2(1-β), held
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

    def prepare(self, run: MethodContext) -> None:
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
        run.method_state.update(
            lr=solved.lr, momentum=solved.momentum, weight_decay=solved.decay, peak=peak
        )
        if self._fades(run) and run.total_steps:
            run.notes.append(
                f"gsm: learning rate {solved.lr:.3g}, momentum {solved.momentum:.4g}, decay "
                f"{solved.decay:.3g}: a redundant weight fades to {solved.left:.1g} of its start"
            )

    def make_optimizer(self, run: MethodContext) -> Optimizer:
        """Return momentum SGD: its own update, with the decay before the momentum."""
        from torch.optim import SGD

        pruned, memory = list(run.weights.values()), run.method_state
        ordinary = min(memory["weight_decay"], DECAY)
        groups = [{"params": pruned, "weight_decay": memory["weight_decay"]}] if pruned else []
        return SGD(
            groups + run.decay_groups(ordinary, without=pruned),
            lr=memory["lr"],
            momentum=memory["momentum"],
            nesterov=self.config.nesterov and memory["momentum"] > 0,
        )

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor of a peak and three drops, equally long."""
        return self._factor((run.step + 0.5) / run.total_steps, run.method_state["peak"])

    def on_gradients(self, run: MethodContext) -> bool:
        """Zero the gradients of all but the Q most salient weights."""
        from lpss_cli.sparsity.masks import apply_mask_, to_float32

        if not self._fades(run) or run.step >= run.final_prune_step:
            return True
        if run.progress >= self.config.settle:
            self._settle(run)
            return True
        pairs = [(w.detach(), w.grad) for w in run.weights.values() if w.grad is not None]
        scores = [(to_float32(weight) * gradient).abs() for weight, gradient in pairs]
        if scores:
            threshold = self._threshold(run, scores)
            for (_, gradient), score in zip(pairs, scores, strict=True):
                apply_mask_(gradient, ~(score < threshold))
        return True

    def _settle(self, run: MethodContext) -> None:
        """Let the Q weights that are largest now see their gradients from here on, no others."""
        from lpss_cli.sparsity.masks import apply_mask_

        if "settled" not in run.method_state:
            best = run.select(run.sparsity, self.scores(run), self.config.ranking)
            run.method_state["settled"] = best
        for name, weight in run.weights.items():
            if weight.grad is not None:
                apply_mask_(weight.grad, run.method_state["settled"][name])

    def _factor(self, progress: float, peak: float) -> float:
        drops = [peak + part * (1 - peak) / 3 for part in range(3)]
        return warmup_step_decay(progress, self.config.warmup, drops)

    def _rates(self, run: MethodContext, peak: float) -> Rates:
        """Return the learning-rate factors of the steps before the cut."""
        steps = range(min(run.final_prune_step, run.total_steps))
        factors = [self._factor((k + 0.5) / run.total_steps, peak) for k in steps]
        return [(factor, len(list(same))) for factor, same in groupby(factors)]

    def _fades(self, run: MethodContext) -> bool:
        """Whether any weight is to go beside those that were zero from the start."""
        return run.sparsity > run.start_sparsity

    def _threshold(self, run: MethodContext, scores: Sequence[Tensor]) -> Tensor:
        """Return the score that about Q of all scores reach; exactly Q in a small network."""
        import torch

        from lpss_cli.sparsity.masks import allocate
        from lpss_cli.sparsity.targets import zero_count

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


def _places(run: MethodContext, size: int, count: int, device: torch.device) -> Tensor:
    """Draw so many places out of ``size``; out of pinned memory a GPU gets them without a wait."""
    import torch

    pinned = device.type == "cuda"
    drawn = torch.randint(size, (count,), generator=run.rng, pin_memory=pinned)
    return drawn.to(device, non_blocking=True)
