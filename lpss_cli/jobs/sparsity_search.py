"""The largest sparsity whose drop of the metric is allowed, found on held-out training data.

The search bisects between 50 % zeros and 128×, in the logarithm of the kept fraction, because the
metric depends on that. Every try starts from the sparsest network that was good enough (a warm
start). The test split is never used.

A network that has memorized the held-out examples looks better on them than it is, and whatever
sparse training makes it forget looks like a drop. The search therefore starts from one of these
networks, and counts drops from it:

- the input itself, if its record says that exactly these examples were held out in its training;
- for a network that ``lpss train`` made from these data, the same training without these examples;
- otherwise the input, trained further without new zeros, by the method and as long as every try. It
  remembers some of what it has seen, and the sparsity that is found is on the safe side.
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

#: The range of the search.
LOW, HIGH = 0.5, 1 - 2**-7
# The held-out fraction: a tenth; of small data up to a fifth, for enough examples to tell half a
# point.
_HOLDOUT, _MIN_EXAMPLES, _MAX_HOLDOUT = 0.1, 1000, 0.2
# Epochs of a try, as a fraction of those of the final run.
_TRY_EPOCHS = 0.5
# Most epochs of a repeated training, in multiples of those of the final run or the usual ones.
_MAX_REPEATED_EPOCHS = 4


@dataclass(frozen=True)
class Try:
    """One sparsity that was tried.

    Attributes:
        sparsity: zeros / prunable weights.
        metric: the primary metric on the held-out part; None: training diverged.
        drop: hundredths of the metric below the reference; None: training diverged.
        kept: whether the drop is within what is allowed.
    """

    sparsity: float
    metric: float | None
    drop: float | None
    kept: bool


@dataclass(frozen=True)
class Search:
    """The tries of a search, and its result.

    Attributes:
        allowed: drop, in hundredths of the metric.
        primary: name of the metric.
        examples: number of held-out examples.
        epochs: epochs of every try.
        given: metric of the input on the held-out examples.
        reference: metric that drops are counted from.
        curve: the tries, in order.
        sparsity: the largest one that was kept.
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
        return {**asdict(self), "curve": [asdict(tried) for tried in self.curve]}


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
        model: has the checkpoint's weights, which are restored at the end.
        info: what is known about the model.
        data: data of the final run; with ``request.holdout``, its test part is the held-out one.
        checkpoint: file of the weights.
        request: what was typed.
        settings: settings of the final run.
        note: called with the cost beforehand, with every try and with the result.

    Raises:
        InputError: the range is empty, or the data cannot be held out.
        RunError: even the smallest sparsity drops more, or the reference diverged.
        StoppedError: a signal came.
    """
    held = data
    if request.holdout is None:
        fraction = min(_MAX_HOLDOUT, max(_HOLDOUT, _MIN_EXAMPLES / len(data.train)))
        held = data.holdout(fraction, request.seed)
    recipe = training_recipe_of(checkpoint, data, held, settings)
    try_settings = replace(settings, epochs=math.ceil(_TRY_EPOCHS * settings.epochs))
    trials = WarmStartSearch(model, held, request, try_settings, note)
    low, high = _range(model, settings)
    tries = TRIES if request.tries is None else request.tries
    _announce(trials, tries, recipe, len(data.train), settings.epochs)
    flops = info.flops * settings.batch_size
    try:
        with (
            handle_signals(),
            torch_utils.limit_threads(request.threads or torch_utils.suitable_threads(flops)),
        ):
            trials.begin(recipe, info)
            _note_noise(trials)
            curve = bisect(trials.measure, trials.accept, tries, low, high)
    except SignalError as error:
        kill_children()
        raise StoppedError(
            f"interrupted by {signal.Signals(error.number).name} in the search for a sparsity: "
            "nothing was saved",
            f"start again with: {request.command}",
            error.number,
        ) from None
    result = _result(trials, curve)
    note(f"found {result.sparsity:.2%} zeros")
    load_into(model, checkpoint, info)
    return result


def bisect(
    measure: Callable[[float], Try], accept: Callable[[], None], tries: int, low: float, high: float
) -> list[Try]:
    """Try ``low``, then halve the range of log(kept fraction) between kept and rejected tries.

    Args:
        measure: sparsity → the try.
        accept: called if the next try is to start from the last one.
        tries: maximum number of tries, at least 1.
        low: the first sparsity.
        high: upper end of the range; not tried itself.

    Returns:
        The tries, in order; only the first one if it was not kept.
    """
    curve = [measure(low)]
    if not curve[0].kept:
        return curve
    accept()
    left, right = -math.log2(1 - low), -math.log2(1 - high)
    while len(curve) < tries:
        middle = (left + right) / 2
        curve.append(measure(round(1 - 2**-middle, 6)))
        if curve[-1].kept:
            accept()
            left = middle
        else:
            right = middle
    return curve


@dataclass(frozen=True)
class TrainingRecipe:
    """How to train a network that has not seen the held-out examples.

    Attributes:
        method: method of its training.
        settings: settings of its training; None: the input is such a network.
    """

    method: Method
    settings: TrainingSettings | None = None


def training_recipe_of(
    checkpoint: Checkpoint, data: Data, held: Data, settings: TrainingSettings
) -> TrainingRecipe | None:
    """Return how the input was trained, as far as another network can be trained like it.

    Args:
        checkpoint: the input.
        data: data of the final run.
        held: the same data, with examples held out.
        settings: settings of the final run, whose epochs limit those of the repeated training.

    Returns:
        None if the record does not tell, or the training started from another network.
    """
    meta = checkpoint.meta
    recorded: Mapping[str, Any] = meta.get("settings") or {}
    if meta.get("data_fingerprint") == held.fingerprint:
        return TrainingRecipe(make("dense"))
    if meta.get("data_fingerprint") != data.fingerprint or meta.get("source") or not recorded:
        return None
    try:
        budget = read_options({key: recorded.get(key) for key in ("epochs", "batch_size", "seed")})
        name = str(meta.get("method"))
        # Records of older versions hold options that the method ignores, too.
        ignored = get(name).ignores
        config = {
            k: v
            for k, v in (meta.get("config") or {}).items()
            if v is not None and k not in ignored
        }
        method = make(name, read_options(config))
        smallest = min(budget["epochs"], budget["batch_size"])
    except (InputError, TypeError, KeyError):
        return None
    if smallest < 1:
        return None
    most = _MAX_REPEATED_EPOCHS * max(settings.epochs, TRAIN_BUDGET.epochs)
    budget["epochs"] = min(budget["epochs"], most)
    return TrainingRecipe(
        method, replace(settings, **budget, keep_zeros=False, sparsity=0.0, distill=0.0)
    )


class WarmStartSearch:
    """Trains and measures one network after another, each from the last accepted one.

    Args:
        model: the first network; it keeps the weights that were trained last.
        data: training data; every network is measured on the test part.
        request: the method, its options, the device and the drop that is allowed.
        settings: settings of every training, except for the sparsity.
        note: called after every measurement.

    Attributes:
        given: metric of the input as it is; NaN before ``begin``.
        reference: metric that drops are counted from; NaN before ``begin``.
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
        self._accepted = _copy_state(model)
        # The teacher of distillation is the dense network, not the last accepted one.
        self._teacher = copy.deepcopy(model) if settings.distill else None

    def begin(self, recipe: TrainingRecipe | None, info: ModelInfo) -> None:
        """Train, if needed, and measure the network that drops are counted from.

        Args:
            recipe: how to train a network that has not seen the held-out examples; None: unknown.
            info: what is known about the model.

        Raises:
            RunError: training diverged.
        """
        self.given = self.reference = self._metric()
        if recipe is None:
            trained = self._train(present_zeros(self.model, self.settings)[0])
            if trained is None:
                raise RunError("the network diverged without new zeros", "lower --lr (and --eta)")
            self.reference = trained
            self.note(
                f"as it is: {self._shown(self.given)}, and it may have seen these examples; "
                f"trained on without new zeros: {self._shown(trained)}, which drops are counted "
                "from"
            )
        elif recipe.settings is None:
            self.note(f"held out in its own training too: {self._shown(self.given)}")
        else:
            self._repeat_training(recipe.method, recipe.settings, info)
            self.reference = self._metric()
            self.note(f"trained without the held-out examples: {self._shown(self.reference)}")

    def measure(self, sparsity: float) -> Try:
        """Sparse-train the last accepted network to this sparsity, and measure it."""
        metric = self._train(sparsity)
        if metric is None:
            self.note(f"{sparsity:.2%} zeros: diverged")
            return Try(sparsity, None, None, False)
        drop = 100 * self.sign * (self.reference - metric)
        kept = drop <= self.allowed + 1e-9  # a drop of exactly what is allowed may be rounded up
        verdict = "kept" if kept else "too much"
        self.note(f"{sparsity:.2%} zeros: {self._shown(metric)}, a drop of {drop:.2f}: {verdict}")
        return Try(sparsity, metric, drop, kept)

    def accept(self) -> None:
        """Start the next tries from the network that was measured last."""
        self._accepted = _copy_state(self.model)

    def _repeat_training(self, method: Method, settings: TrainingSettings, info: ModelInfo) -> None:
        torch.manual_seed(settings.seed)
        new = models.build(info.arch, self.data.input_shape, self.data.outputs)
        self.model.load_state_dict(new.state_dict())
        seeds.seed_everything(settings.seed)
        Trainer(self.model, self.data, method, settings, device=self.device).train()
        self.accept()
        if self._teacher is not None:
            self._teacher = copy.deepcopy(self.model)

    def _train(self, sparsity: float) -> float | None:
        """Train the last accepted network, and return its metric; None if training diverged."""
        self.model.load_state_dict(self._accepted)
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
                teacher=self._teacher,
            )
            trainer.train()
        except RunError:
            return None
        return self._metric()

    def _metric(self) -> float:
        data = self.data
        return evaluate(self.model, data.test, data.task, device=self.device)[self.primary]

    def _shown(self, metric: float) -> str:
        return f"{self.primary.replace('_', ' ')} {metric:.4f}"


def present_zeros(model: nn.Module, settings: TrainingSettings) -> tuple[float, int]:
    """Return the present sparsity and the number of prunable weights.

    Raises:
        InputError: a pattern of ``--skip`` matches nothing.
    """
    weights = trainable_weights(model)
    skipped = resolve_patterns(settings.skip, list(weights), "--skip")
    tensors = [w.tensor for name, w in weights.items() if name not in skipped]
    total = max(1, sum(tensor.numel() for tensor in tensors))
    return sum(int((tensor == 0).sum()) for tensor in tensors) / total, total


def _copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _range(model: nn.Module, settings: TrainingSettings) -> tuple[float, float]:
    """Return the lowest and the highest sparsity of the search.

    Raises:
        InputError: there are none between the present zeros and the highest one.
    """
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
    trials: WarmStartSearch,
    tries: int,
    recipe: TrainingRecipe | None,
    examples: int,
    final_epochs: int,
) -> None:
    """Note how many epochs the search takes."""
    epochs, held = trials.settings.epochs, len(trials.data.test)
    first = epochs if recipe is None else recipe.settings.epochs if recipe.settings else 0
    total = first + tries * epochs + final_epochs
    trials.note(
        f"search: {f'{first} epochs of dense training, ' if first else ''}at most {tries} tries of "
        f"{epochs} epochs on {len(trials.data.train):,} examples, measured on {held:,} held-out "
        f"ones; then {final_epochs} epochs on {examples:,}: {total} in all; --epochs and --tries "
        "change it"
    )


def _note_noise(trials: WarmStartSearch) -> None:
    """Note the standard error of the accuracy, if it is larger than the drop that is allowed."""
    if trials.primary != "accuracy":
        return
    held, accuracy = len(trials.data.test), min(max(trials.reference, 0.0), 1.0)
    # Even an accuracy of 1 is known to one example at best.
    error = 100 * max(math.sqrt(accuracy * (1 - accuracy) / held), 1 / held)
    if error > trials.allowed:
        trials.note(
            f"{held:,} examples tell an accuracy to about {error:.2g} points (standard error): "
            "so small a drop may be chance"
        )


def _result(trials: WarmStartSearch, curve: list[Try]) -> Search:
    """Return the result of a search.

    Raises:
        RunError: no try was kept.
    """
    kept = [tried.sparsity for tried in curve if tried.kept]
    if not kept:
        first = curve[0]
        drop = "diverges" if first.drop is None else f"drops {first.drop:.2f} points"
        raise RunError(
            f"even {first.sparsity:.2%} zeros {drop}, and {trials.allowed:g} are allowed",
            "allow more, give more --epochs or another --method, or choose --sparsity yourself",
        )
    return Search(
        trials.allowed,
        trials.primary,
        len(trials.data.test),
        trials.settings.epochs,
        trials.given,
        trials.reference,
        tuple(curve),
        max(kept),
    )
