"""The largest sparsity that keeps a network within a drop, found on a part of the training data.

Bisection between 50 % zeros and 128×, in the logarithm of the kept part, because that is what a
network feels. Every try goes on from the sparsest network that was good enough (a warm start), and
the test split is never looked at.

A network that has learned the held-out examples by heart looks better on them than it is, and what
sparse training makes it forget looks like a drop. So the search begins, and counts, from one of

- the input itself, where its record says that just these examples were held out in its training;
- for what ``lpss train`` made of these data, the same training again without these examples;
- else the input, trained on without new zeros by the method and as long as every try. It remembers
  some of what it has seen, and what is found is on the safe side.
"""

from __future__ import annotations

import copy
import math
import signal
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from lpss_cli import engine, models, randomness, threads, trial
from lpss_cli.bisection import Search, Try, bisect
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError, StoppedError
from lpss_cli.evaluation import evaluate
from lpss_cli.interrupts import SignalledError, kill_children, listening
from lpss_cli.loading import Checkpoint
from lpss_cli.method import Method, make
from lpss_cli.origins import Origin, origin_of
from lpss_cli.patterns import resolve
from lpss_cli.request import Request, device_of
from lpss_cli.starting import Settings
from lpss_cli.weights import trainable

#: The range of the search, and the number of tries in it.
LOW, HIGH, TRIES = 0.5, 1 - 2**-7, 6
# The held-out part: a tenth, but in small data enough examples to tell half a point, up to a fifth.
_PART, _EXAMPLES, _LARGEST_PART = 0.1, 1000, 0.2
# A try trains for this part of the epochs of the final run.
_SHORTER = 0.5
_Note = Callable[[str], None]


def search(
    model: nn.Module,
    arch: str,
    data: Data,
    checkpoint: Checkpoint,
    request: Request,
    settings: Settings,
    note: _Note,
) -> Search:
    """Find the largest sparsity whose drop is within ``request.target_drop``.

    Args:
        model: with the checkpoint's weights; it is left with others.
        arch: names it in messages.
        data: of the final run; with ``request.holdout`` its test part is the held-out one.
        checkpoint: where the weights come from.
        request: what was typed.
        settings: of the final run.
        note: told the cost beforehand, and every try.

    Raises:
        InputError: the range is empty, or the data cannot be held out.
        RunError: even the smallest sparsity drops more, or the reference diverged.
        StoppedError: a signal came.
    """
    held = data
    if request.holdout is None:
        part = min(_LARGEST_PART, max(_PART, _EXAMPLES / len(data.train)))
        held = data.holdout(part, request.seed)
    origin = origin_of(checkpoint, data, held, settings)
    shorter = replace(settings, epochs=math.ceil(_SHORTER * settings.epochs))
    walk = _Walk(model, held, request, shorter, note)
    low, high = _range(model, settings)
    tries = TRIES if request.tries is None else request.tries
    _announce(walk, tries, origin, len(data.train), settings.epochs)
    flops = trial.flops(model, held, arch) * settings.batch_size
    try:
        with listening(), threads.limited(request.threads or threads.suitable(flops)):
            walk.begin(origin, arch)
            _warn_of_noise(walk)
            curve = bisect(walk.measure, walk.accept, tries, low, high)
    except SignalledError as signalled:
        kill_children()
        raise StoppedError(
            f"interrupted by {signal.Signals(signalled.number).name} in the search for a sparsity: "
            "nothing was saved",
            f"start again with: {request.command}",
            signalled.number,
        ) from None
    return _result(walk, curve)


class _Walk:
    """Trains and measures one network after another, each from the last one that was accepted."""

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        request: Request,
        settings: Settings,
        note: _Note,
    ) -> None:
        self.model, self.data, self.request = model, data, request
        self.settings, self.note = settings, note
        self.device = device_of(request.device)
        self.allowed = float(request.target_drop or 0.0)
        self.primary, self.sign = data.task.primary, 1 if data.task.higher_is_better else -1
        self.given = self.reference = math.nan
        self._best = _copy(model)
        # Where there is distillation, it is from the dense network, not from the last one.
        self._dense = copy.deepcopy(model) if settings.distill else None

    def begin(self, origin: Origin | None, arch: str) -> None:
        """Find what the search starts from, and what drops are counted from."""
        self.given = self.reference = self._metric()
        if origin is None:
            trained = self._train(_present(self.model, self.settings)[0])
            if trained is None:
                raise RunError("the network diverged without new zeros", "lower --lr (and --eta)")
            self.reference = trained
            self.note(
                f"as it is: {self._said(self.given)}, and it may have seen these examples; trained "
                f"on without new zeros: {self._said(trained)}, which drops are counted from"
            )
        elif origin.settings is None:
            self.note(f"held out in its own training too: {self._said(self.given)}")
        else:
            self._again(origin.method, origin.settings, arch)
            self.reference = self._metric()
            self.note(f"trained without the held-out examples: {self._said(self.reference)}")

    def _again(self, method: Method, settings: Settings, arch: str) -> None:
        torch.manual_seed(settings.seed)
        data = self.data
        fresh = models.build(arch, data.input_shape, data.outputs).state_dict()
        self.model.load_state_dict(fresh)
        randomness.seed(settings.seed)
        engine.run(self.model, self.data, method, settings, device=self.device)
        self.accept()
        if self._dense is not None:
            self._dense = copy.deepcopy(self.model)

    def measure(self, sparsity: float) -> Try:
        """Sparse-train the last accepted network to this sparsity, and measure it."""
        metric = self._train(sparsity)
        if metric is None:
            self.note(f"{sparsity:.2%} zeros: diverged")
            return Try(sparsity, None, None, False)
        drop = 100 * self.sign * (self.reference - metric)
        # A drop of exactly as much as is allowed is allowed, whatever the last bits say.
        kept = drop <= self.allowed + 1e-9
        verdict = "kept" if kept else "too much"
        self.note(f"{sparsity:.2%} zeros: {self._said(metric)}, a drop of {drop:.2f}: {verdict}")
        return Try(sparsity, metric, drop, kept)

    def accept(self) -> None:
        """Start the next tries from the network that was measured last."""
        self._best = _copy(self.model)

    def _train(self, sparsity: float) -> float | None:
        self.model.load_state_dict(self._best)
        randomness.seed(self.settings.seed)
        settings = replace(self.settings, sparsity=sparsity)
        method = make(self.request.method or "lpss", self.request.options)
        try:
            engine.run(
                self.model,
                self.data,
                method,
                settings,
                device=self.device,
                teacher=self._dense,
            )
        except RunError:
            return None
        return self._metric()

    def _metric(self) -> float:
        data = self.data
        return evaluate(self.model, data.test, data.task, device=self.device)[self.primary]

    def _said(self, metric: float) -> str:
        return f"{self.primary.replace('_', ' ')} {metric:.4f}"


def _copy(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _present(model: nn.Module, settings: Settings) -> tuple[float, int]:
    """Return zeros / prunable weights as they are, and the number of prunable weights."""
    weights = trainable(model)
    skipped = resolve(settings.skip, list(weights), "--skip")
    tensors = [w.tensor for name, w in weights.items() if name not in skipped]
    total = max(1, sum(tensor.numel() for tensor in tensors))
    return sum(int((tensor == 0).sum()) for tensor in tensors) / total, total


def _range(model: nn.Module, settings: Settings) -> tuple[float, float]:
    present, total = _present(model, settings)
    low, high = max(LOW, present), min(HIGH, 1 - 1 / total)
    if low >= high:
        raise InputError(
            f"{present:.2%} of the {total:,} prunable weights are zero already: nothing is left "
            f"to search up to {high:.2%}",
            "give --sparsity in place of --target-drop",
        )
    return low, high


def _announce(walk: _Walk, tries: int, origin: Origin | None, examples: int, final: int) -> None:
    epochs, held = walk.settings.epochs, len(walk.data.test)
    first = epochs if origin is None else origin.settings.epochs if origin.settings else 0
    total = first + tries * epochs + final
    walk.note(
        f"search: {f'{first} epochs of dense training, ' if first else ''}at most {tries} tries of "
        f"{epochs} epochs on {len(walk.data.train):,} examples, measured on {held:,} held-out "
        f"ones; then {final} epochs on {examples:,}: {total} in all; --epochs and --tries change it"
    )


def _warn_of_noise(walk: _Walk) -> None:
    """Say how well so many examples tell an accuracy, where that is worse than what is asked."""
    if walk.primary != "accuracy":
        return
    held, right = len(walk.data.test), min(max(walk.reference, 0.0), 1.0)
    # Of a fraction; an accuracy of 1 is known to one example at best.
    error = 100 * max(math.sqrt(right * (1 - right) / held), 1 / held)
    if error > walk.allowed:
        walk.note(
            f"{held:,} examples tell an accuracy to about {error:.2g} points (standard error): "
            "so small a drop may as well be chance"
        )


def _result(walk: _Walk, curve: list[Try]) -> Search:
    kept = [one.sparsity for one in curve if one.kept]
    if not kept:
        first = curve[0]
        drop = "diverges" if first.drop is None else f"drops {first.drop:.2f} points"
        raise RunError(
            f"even {first.sparsity:.2%} zeros {drop}, and {walk.allowed:g} are allowed",
            "allow more, give more --epochs or another --method, or choose --sparsity yourself",
        )
    task = walk.data.task
    return Search(
        walk.allowed,
        task.primary,
        len(walk.data.test),
        walk.settings.epochs,
        walk.given,
        walk.reference,
        tuple(curve),
        max(kept),
    )
