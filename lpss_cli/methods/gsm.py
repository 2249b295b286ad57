"""GSM: momentum SGD under which redundant weights fade (Ding et al., arXiv:1909.12778).

The second half of the file is about a weight without a gradient: how fast decay and momentum make
it fade, in plain numbers. With momentum β, decay η and learning rate α, the weight w and its
momentum Z follow ``Z ← βZ + ηw, w ← w - αZ``. Each step multiplies [Z; w] by
[[β, η], [-αβ, 1-αη]].
"""

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

    from lpss_cli.training.run import MethodContext

#: Learning-rate factors of a run, in stretches of equal ones: (factor, number of steps).
LrFactors = Sequence[tuple[float, int]]

#: Fraction of its start that a redundant weight fades to; at 1e-4, pruning is lossless already.
FADED = 3e-5
#: The largest momentum and the smallest decay that are chosen: those of GSM's official recipe.
MOMENTUM, DECAY = 0.99, 5e-4

# The official recipe for MNIST keeps its learning rate, 0.01 = 1·(1-β), for 160 of 280 epochs.
_PEAK, _SPEED = 160 / 280, 1.0
# A shorter run needs more decay, which biases the weights that stay. Longer and larger steps need
# less of it, until they diverge. Chosen among 0.57 to 0.92 and 1 to 4.5 on held-out parts of
# MNIST (LeNet-300, 4, 12 and 20 epochs) and digits.
_SHORT_PEAK, _SHORT_SPEED = 0.75, 2.0
# Number of scores that the threshold of a step is estimated from.
_SAMPLE = 20_000


class GSM(Method):
    """Only the Q weights with the largest ``|w·∂L/∂w|`` see their gradient in a step; all decay.

    With Q the number of weights to keep, B = 1 at those Q weights and 0 elsewhere (equation 8):

        Z ← βZ + ηw + B∘g,   w ← w - αZ.

    Weights that are never among the Q fade to nothing, so the final pruning at the very end removes
    nothing. In practice, more than Q weights are among the Q now and then and stay alive (on
    LeNet-300 at 60×, the official budget lost four points in the final pruning). From ``settle``
    on, the Q are therefore the largest |w| of that moment, and everything else fades while they
    adapt.

    If a run is too short for the official β = 0.99 and η = 5e-4, momentum and decay are chosen so
    that redundant weights fade to 3e-5 in time (see :func:`choose_decay`). Its peak learning rate
    is 2(1-β), kept for 3/4 of training.

    The threshold of a step is the quantile of a random sample of 20,000 scores. It meets a density
    d with a standard deviation of √(d(1-d)/20000): 2 % of Q at 90 % sparsity and 7 % of it at
    99 %, independently in every step. The final choice of the Q largest |w| is exact.

    Clipping scales B∘g but not the decay. It matters in the first steps, in which networks without
    BatchNorm would diverge; later, B∘g balances ηw, whose norm is far below the default of 1.
    Parameters that are not pruned take ordinary steps, with at most the official decay.
    """

    name: ClassVar[str] = "gsm"
    paper: ClassVar[str] = "Ding et al. 2019, arXiv:1909.12778"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """The official schedule; options that are None are chosen by the length of the run."""

        lr: float | None = option(  # type: ignore[assignment]  # None: follows the momentum
            None, "peak learning rate; by default it follows the momentum", low=0
        )
        momentum: float | None = option(  # type: ignore[assignment]  # None: chosen
            None, "momentum; by default chosen so that redundant weights fade", low=0, high=0.999
        )
        weight_decay: float | None = option(  # type: ignore[assignment]  # None: chosen
            None, "L2 decay of the weights; by default chosen so that redundant weights fade", low=0
        )
        clip: float = option(1.0, "maximum norm of the gradient; 0 turns clipping off", low=0)
        warmup: float = option(
            0.02, "fraction of training with a rising learning rate", low=0, high=1
        )
        end: float = option(
            1.0, "fraction of training before the final pruning step", low=0, high=1
        )
        ranking: str = option("magnitude", "weights are compared globally", choices=("magnitude",))
        nesterov: bool = option(False, "use Nesterov momentum")
        settle: float = option(
            0.4,
            "fraction of training after which only the Q largest weights see gradients; 1 for "
            "never, as in the paper",
            low=0,
            high=1,
        )
        peak: float | None = option(
            None,
            "fraction of training before three drops of the learning rate; default 4/7, in a short "
            "run 3/4",
            low=0,
            high=1,
        )

    def prepare(self, run: MethodContext) -> None:
        """Choose momentum, decay and learning rate for the steps before the final pruning."""
        config, official = self.config, self._lr_factors(run, _PEAK)
        too_short = remaining_fraction(official, _SPEED * (1 - MOMENTUM), MOMENTUM, DECAY) > FADED
        peak, speed = (_SHORT_PEAK, _SHORT_SPEED) if too_short else (_PEAK, _SPEED)
        peak = peak if config.peak is None else config.peak
        decay = config.weight_decay
        if decay is None and not self._prunes(run):
            decay = DECAY  # nothing is to fade
        chosen = choose_decay(
            self._lr_factors(run, peak),
            lr=config.lr,
            momentum=config.momentum,
            decay=decay,
            nesterov=config.nesterov,
            speed=speed,
        )
        run.method_state.update(
            lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.decay, peak=peak
        )
        if self._prunes(run) and run.total_steps:
            run.notes.append(
                f"gsm: learning rate {chosen.lr:.3g}, momentum {chosen.momentum:.4g}, decay "
                f"{chosen.decay:.3g}: a redundant weight fades to {chosen.remaining:.1g} of its "
                "start"
            )

    def make_optimizer(self, run: MethodContext) -> Optimizer:
        """Return momentum SGD, whose update is GSM's: the decay comes before the momentum."""
        from torch.optim import SGD

        pruned, state = list(run.weights.values()), run.method_state
        groups = [{"params": pruned, "weight_decay": state["weight_decay"]}] if pruned else []
        others = run.decay_groups(min(state["weight_decay"], DECAY), without=pruned)
        return SGD(
            groups + others,
            lr=state["lr"],
            momentum=state["momentum"],
            nesterov=self.config.nesterov and state["momentum"] > 0,
        )

    def lr_scale(self, run: MethodContext) -> float:
        """Return the factor of a peak and three drops of equal length."""
        return self._lr_factor((run.step + 0.5) / run.total_steps, run.method_state["peak"])

    def on_gradients(self, run: MethodContext) -> bool:
        """Zero the gradients of all but the Q most salient weights."""
        from lpss_cli.sparsity.masks import apply_mask_, to_float32

        if not self._prunes(run) or run.step >= run.final_prune_step:
            return True
        if run.progress >= self.config.settle:
            self._keep_settled_gradients(run)
            return True
        pairs = [(w.detach(), w.grad) for w in run.weights.values() if w.grad is not None]
        scores = [(to_float32(weight) * gradient).abs() for weight, gradient in pairs]
        if scores:
            threshold = self._threshold(run, scores)
            for (_, gradient), score in zip(pairs, scores, strict=True):
                apply_mask_(gradient, ~(score < threshold))
        return True

    def _keep_settled_gradients(self, run: MethodContext) -> None:
        """Zero the gradients of all but the Q weights that were largest at ``settle``."""
        from lpss_cli.sparsity.masks import apply_mask_

        if "settled" not in run.method_state:
            largest = run.select(run.sparsity, self.scores(run), self.config.ranking)
            run.method_state["settled"] = largest
        for name, weight in run.weights.items():
            if weight.grad is not None:
                apply_mask_(weight.grad, run.method_state["settled"][name])

    def _lr_factor(self, progress: float, peak: float) -> float:
        drops = [peak + part * (1 - peak) / 3 for part in range(3)]
        return warmup_step_decay(progress, self.config.warmup, drops)

    def _lr_factors(self, run: MethodContext, peak: float) -> LrFactors:
        """Return the learning-rate factors of the steps before the final pruning."""
        steps = range(min(run.final_prune_step, run.total_steps))
        factors = [self._lr_factor((k + 0.5) / run.total_steps, peak) for k in steps]
        return [(factor, len(list(equal))) for factor, equal in groupby(factors)]

    def _prunes(self, run: MethodContext) -> bool:
        """Return whether any weight is to be pruned that is not zero at the start."""
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
            counts = allocate(_SAMPLE, sizes, sizes)  # each layer by its size: less variance
            parts = [
                part[_random_indices(run, size, count, part.device)]
                for part, size, count in zip(parts, sizes, counts, strict=True)
            ]
        sample = torch.cat(parts)
        rank = max(1, round(sample.numel() * kept))
        return sample.kthvalue(sample.numel() - rank + 1).values


def _random_indices(run: MethodContext, size: int, count: int, device: torch.device) -> Tensor:
    """Return ``count`` random indices below ``size``; a GPU gets them without waiting."""
    import torch

    pinned = device.type == "cuda"
    drawn = torch.randint(size, (count,), generator=run.rng, pin_memory=pinned)
    return drawn.to(device, non_blocking=True)


@dataclass(frozen=True)
class DecaySettings:
    """Settings of a run, and the fraction of a redundant weight that they leave."""

    lr: float
    momentum: float
    decay: float
    remaining: float


def choose_decay(
    factors: LrFactors,
    *,
    lr: float | None = None,
    momentum: float | None = None,
    decay: float | None = None,
    nesterov: bool = False,
    speed: float = 1.0,
) -> DecaySettings:
    """Choose the settings that are None so that a redundant weight fades to ``FADED`` in the run.

    The momentum comes first: a weight cannot fade faster than by √β per step, which makes a factor
    of 1e-4 in 18.4/(1-β) steps. These may take a third of the run; if that is not enough, the
    momentum is lowered further. The decay is the smallest one that suffices.

    Args:
        factors: factors on the peak learning rate.
        lr: peak learning rate; None: ``speed·(1-β)``.
        momentum: β; a value that is given is kept, like the others.
        decay: η.
        nesterov: whether the momentum is Nesterov's.
        speed: desired α/(1-β), the step that a constant gradient makes in the end.
    """
    steps = sum(count for _, count in factors)
    beta = momentum
    if beta is None:
        beta = min(MOMENTUM, max(0.0, 1 - 3 * 18.4 / steps)) if steps else MOMENTUM
    while True:
        alpha = speed * (1 - beta) if lr is None else lr
        eta = smallest_decay(factors, alpha, beta, nesterov) if decay is None else decay
        remaining = remaining_fraction(factors, alpha, beta, eta, nesterov)
        fixed = momentum is not None or decay is not None
        if remaining <= FADED or beta == 0 or fixed or steps == 0:
            return DecaySettings(alpha, beta, eta, remaining)
        beta = max(0.0, 1 - 1.1 * (1 - beta))


def smallest_decay(factors: LrFactors, lr: float, beta: float, nesterov: bool = False) -> float:
    """Return the smallest decay from ``DECAY`` up that leaves ``FADED``, or else the fastest."""
    peak = lr * max((factor for factor, _ in factors), default=0.0)
    low, high = DECAY, max(DECAY, critical_decay(beta, nesterov) / peak if peak else 0.0)
    if remaining_fraction(factors, lr, beta, low, nesterov) <= FADED:
        return low
    if remaining_fraction(factors, lr, beta, high, nesterov) > FADED:
        return high
    for _ in range(40):
        middle = math.sqrt(low * high)
        if remaining_fraction(factors, lr, beta, middle, nesterov) > FADED:
            low = middle
        else:
            high = middle
    return high


def critical_decay(beta: float, nesterov: bool = False) -> float:
    """Return the ``αη`` above which a redundant weight oscillates instead of fading faster.

    The matrix of a step has the trace 1 + β - αη and the determinant β. Its eigenvalues are real,
    and the larger one falls with αη, up to αη = (1-√β)², where both are √β. With Nesterov momentum
    the trace is (1+β)(1-αη) and the determinant β(1-αη).
    """
    return float(((1 - beta) / (1 + beta)) ** 2 if nesterov else (1 - math.sqrt(beta)) ** 2)


def remaining_fraction(
    factors: LrFactors, lr: float, beta: float, eta: float, nesterov: bool = False
) -> float:
    """Return the fraction of a weight that is left after all steps, from zero momentum."""
    z, w = 0.0, 1.0
    for factor, count in factors:
        alpha = lr * factor
        # Z = βZ + ηw, then w = w - αZ; Nesterov: w = w - α(ηw + βZ).
        ahead = 1 + beta if nesterov else 1.0
        step = (beta, eta, -alpha * beta * (beta if nesterov else 1), 1 - alpha * eta * ahead)
        a, b, c, d = _matrix_power(step, count)
        z, w = a * z + b * w, c * z + d * w
    return abs(w)


_Matrix = tuple[float, float, float, float]


def _matrix_power(matrix: _Matrix, exponent: int) -> _Matrix:
    """Return a power of [[a, b], [c, d]] by repeated squaring."""
    result: _Matrix = (1.0, 0.0, 0.0, 1.0)
    while exponent:
        if exponent % 2:
            result = _matrix_product(matrix, result)
        matrix, exponent = _matrix_product(matrix, matrix), exponent // 2
    return result


def _matrix_product(x: _Matrix, y: _Matrix) -> _Matrix:
    (a, b, c, d), (e, f, g, h) = x, y
    return a * e + b * g, a * f + b * h, c * e + d * g, c * f + d * h
