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
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from lpss_cli import models
from lpss_cli.checkpoints.load_weights import load_into
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError, StoppedError
from lpss_cli.jobs.config import TRIES, Request, device_of, read_options
from lpss_cli.models import ModelInfo
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.prunable import trainable_weights
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import Method, get, make
from lpss_cli.training.options import TRAIN_BUDGET
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils import seeds, torch_utils
from lpss_cli.utils.signals import SignalError, handle_signals, kill_children


# MERGED: Bisection over sparsities, and what it walked through: plain numbers, no networks.
@dataclass(frozen=True)
class Try:
    """One sparsity that was tried.

    Attributes:
        sparsity: zeros / prunable weights.
        metric: the primary metric on the held-out part; None: training diverged.
        drop: hundredths of the metric that it lies below the reference; None if it diverged.
        kept: whether that is within what is allowed.
    """

    sparsity: float
    metric: float | None
    drop: float | None
    kept: bool


@dataclass(frozen=True)
class Search:
    """What a search walked through, and what it found.

    Attributes:
        allowed: drop, in hundredths of the metric.
        primary: the metric's name.
        examples: held-out examples that it was measured on.
        epochs: of every try.
        given: the input's own metric on them.
        reference: what drops are counted from.
        curve: the tries, in their order.
        sparsity: the largest that was kept.
    """

    allowed: float
    primary: str
    examples: int
    epochs: int
    given: float
    reference: float
    curve: tuple[Try, ...]
    sparsity: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for the record."""
        return {**asdict(self), "curve": [asdict(one) for one in self.curve]}


def bisect(
    measure: Callable[[float], Try], accept: Callable[[], None], tries: int, low: float, high: float
) -> list[Try]:
    """Try ``low``, then halve the range of log(kept part) between what was kept and what was not.

    Args:
        measure: sparsity → what it gave.
        accept: told that the last one measured is where the next one starts.
        tries: measurements at most, from 1 up.
        low: the first sparsity.
        high: another; it is not tried itself.

    Returns:
        The tries in their order; only the first one if even that was not kept.
    """
    walked = [measure(low)]
    if not walked[0].kept:
        return walked
    accept()
    left, right = -math.log2(1 - low), -math.log2(1 - high)
    while len(walked) < tries:
        middle = (left + right) / 2
        walked.append(measure(round(1 - 2**-middle, 6)))
        if walked[-1].kept:
            accept()
            left = middle
        else:
            right = middle
    return walked


# MERGED: Trainings one after another, each from the last network that was good enough: a warm
# MERGED: start.
class WarmStartSearch:
    """Trains and measures one network after another, each from the last one that was accepted.

    Args:
        model: where the walk begins; it is left with the weights that were trained last.
        data: to train on; every network is measured on its test part.
        request: the method, its options, the device and the drop that is allowed.
        settings: of every training; the sparsity is that of the try.
        note: told of every measurement.

    Attributes:
        given: the metric of the input as it is; NaN before ``begin``.
        reference: the metric that drops are counted from; NaN before ``begin``.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        request: Request,
        settings: TrainingSettings,
        note: Callable[[str], None],
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

    def begin(self, origin: TrainingRecipe | None, info: ModelInfo) -> None:
        """Find what the search starts from, and what drops are counted from.

        Raises:
            RunError: training diverged.
        """
        self.given = self.reference = self._metric()
        if origin is None:
            trained = self._train(present_zeros(self.model, self.settings)[0])
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
            self._again(origin.method, origin.settings, info)
            self.reference = self._metric()
            self.note(f"trained without the held-out examples: {self._said(self.reference)}")

    def _again(self, method: Method, settings: TrainingSettings, info: ModelInfo) -> None:
        torch.manual_seed(settings.seed)
        data = self.data
        fresh = models.build(info.arch, data.input_shape, data.outputs).state_dict()
        self.model.load_state_dict(fresh)
        seeds.seed_everything(settings.seed)
        Trainer(self.model, self.data, method, settings, device=self.device).train()
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
        seeds.seed_everything(self.settings.seed)
        settings = replace(self.settings, sparsity=sparsity)
        method = make(self.request.method_name(), self.request.options)
        try:
            trainer = Trainer(
                self.model,
                self.data,
                method,
                settings,
                device=self.device,
                teacher=self._dense,
            )
            trainer.train()
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


def present_zeros(model: nn.Module, settings: TrainingSettings) -> tuple[float, int]:
    """Return zeros / prunable weights as they are, and the number of prunable weights.

    Raises:
        InputError: a pattern of ``--skip`` matches nothing.
    """
    weights = trainable_weights(model)
    skipped = resolve_patterns(settings.skip, list(weights), "--skip")
    tensors = [w.tensor for name, w in weights.items() if name not in skipped]
    total = max(1, sum(tensor.numel() for tensor in tensors))
    return sum(int((tensor == 0).sum()) for tensor in tensors) / total, total


#: The range of the search, and the number of tries in it.
LOW, HIGH = 0.5, 1 - 2**-7
# The held-out part: a tenth, but in small data enough examples to tell half a point, up to a fifth.
_PART, _EXAMPLES, _LARGEST_PART = 0.1, 1000, 0.2
# A try trains for this part of the epochs of the final run.
_SHORTER = 0.5


def search(
    model: nn.Module,
    info: ModelInfo,
    data: Data,
    checkpoint: Checkpoint,
    request: Request,
    settings: TrainingSettings,
    note: Callable[[str], None],
) -> Search:
    """Find the largest sparsity whose drop is within ``request.target_drop``.

    Args:
        model: with the checkpoint's weights, which it has again at the end.
        info: what is known about the model.
        data: of the final run; with ``request.holdout`` its test part is the held-out one.
        checkpoint: where the weights come from.
        request: what was typed.
        settings: of the final run.
        note: told the cost beforehand, every try, and what was found.

    Raises:
        InputError: the range is empty, or the data cannot be held out.
        RunError: even the smallest sparsity drops more, or the reference diverged.
        StoppedError: a signal came.
    """
    held = data
    if request.holdout is None:
        part = min(_LARGEST_PART, max(_PART, _EXAMPLES / len(data.train)))
        held = data.holdout(part, request.seed)
    origin = training_recipe_of(checkpoint, data, held, settings)
    shorter = replace(settings, epochs=math.ceil(_SHORTER * settings.epochs))
    walk = WarmStartSearch(model, held, request, shorter, note)
    low, high = _range(model, settings)
    tries = TRIES if request.tries is None else request.tries
    _announce(walk, tries, origin, len(data.train), settings.epochs)
    flops = info.flops * settings.batch_size
    try:
        with (
            handle_signals(),
            torch_utils.limit_threads(request.threads or torch_utils.suitable_threads(flops)),
        ):
            walk.begin(origin, info)
            _warn_of_noise(walk)
            curve = bisect(walk.measure, walk.accept, tries, low, high)
    except SignalError as signalled:
        kill_children()
        raise StoppedError(
            f"interrupted by {signal.Signals(signalled.number).name} in the search for a sparsity: "
            "nothing was saved",
            f"start again with: {request.command}",
            signalled.number,
        ) from None
    found = _result(walk, curve)
    note(f"found {found.sparsity:.2%} zeros")
    load_into(model, checkpoint, info)
    return found


def _range(model: nn.Module, settings: TrainingSettings) -> tuple[float, float]:
    present, total = present_zeros(model, settings)
    low, high = max(LOW, present), min(HIGH, 1 - 1 / total)
    if low >= high:
        raise InputError(
            f"{present:.2%} of the {total:,} prunable weights are zero already: nothing is left "
            f"to search up to {high:.2%}",
            "give --sparsity in place of --target-drop",
        )
    return low, high


def _announce(
    walk: WarmStartSearch, tries: int, origin: TrainingRecipe | None, examples: int, final: int
) -> None:
    epochs, held = walk.settings.epochs, len(walk.data.test)
    first = epochs if origin is None else origin.settings.epochs if origin.settings else 0
    total = first + tries * epochs + final
    walk.note(
        f"search: {f'{first} epochs of dense training, ' if first else ''}at most {tries} tries of "
        f"{epochs} epochs on {len(walk.data.train):,} examples, measured on {held:,} held-out "
        f"ones; then {final} epochs on {examples:,}: {total} in all; --epochs and --tries change it"
    )


def _warn_of_noise(walk: WarmStartSearch) -> None:
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


def _result(walk: WarmStartSearch, curve: list[Try]) -> Search:
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


# MERGED: How a checkpoint was trained, as far as a network can be trained like it again.
# A training again takes so many times the epochs of the final run, or of a usual one, at most.
_LONGEST_AGAIN = 4


@dataclass(frozen=True)
class TrainingRecipe:
    """How a network that has not seen the held-out examples comes about.

    Attributes:
        method: of its training.
        settings: of its training; None: the input is one.
    """

    method: Method
    settings: TrainingSettings | None = None


def training_recipe_of(
    checkpoint: Checkpoint, data: Data, held: Data, settings: TrainingSettings
) -> TrainingRecipe | None:
    """Find out how the input was trained, as far as a network can be trained like it again.

    Args:
        checkpoint: the input.
        data: of the final run.
        held: the same, with examples held out.
        settings: of the final run: a training again takes no more than some times its epochs.

    Returns:
        None where its record does not tell, or it went on from another network.
    """
    meta = checkpoint.meta
    own: Mapping[str, Any] = meta.get("settings") or {}
    if meta.get("data_fingerprint") == held.fingerprint:
        return TrainingRecipe(make("dense"))
    if meta.get("data_fingerprint") != data.fingerprint or meta.get("source") or not own:
        return None
    try:
        # Of what a record says, these are taken; anything else in it is not asked for.
        known = read_options({key: own.get(key) for key in ("epochs", "batch_size", "seed")})
        name = str(meta.get("method"))
        # Older records hold what their method ignores, too.
        unwanted = get(name).ignores
        config = {
            k: v
            for k, v in (meta.get("config") or {}).items()
            if v is not None and k not in unwanted
        }
        method = make(name, read_options(config))
        least = min(known["epochs"], known["batch_size"])
    except (InputError, TypeError, KeyError):
        return None
    if least < 1:
        return None
    longest = _LONGEST_AGAIN * max(settings.epochs, TRAIN_BUDGET.epochs)
    known["epochs"] = min(known["epochs"], longest)
    return TrainingRecipe(
        method, replace(settings, **known, keep_zeros=False, sparsity=0.0, distill=0.0)
    )
