"""Trainings one after another, each from the last network that was good enough: a warm start."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from lpss_cli import engine, models
from lpss_cli.data import Data
from lpss_cli.errors import RunError
from lpss_cli.evaluation import evaluate
from lpss_cli.method import Method, make
from lpss_cli.patterns import resolve
from lpss_cli.runs.bisection import Try
from lpss_cli.runs.origins import Origin
from lpss_cli.runs.request import Request, device_of
from lpss_cli.starting import Settings
from lpss_cli.utils import seeds
from lpss_cli.weights import trainable


class Walk:
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
        settings: Settings,
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

    def begin(self, origin: Origin | None, arch: str) -> None:
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
            self._again(origin.method, origin.settings, arch)
            self.reference = self._metric()
            self.note(f"trained without the held-out examples: {self._said(self.reference)}")

    def _again(self, method: Method, settings: Settings, arch: str) -> None:
        torch.manual_seed(settings.seed)
        data = self.data
        fresh = models.build(arch, data.input_shape, data.outputs).state_dict()
        self.model.load_state_dict(fresh)
        seeds.seed_everything(settings.seed)
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
        seeds.seed_everything(self.settings.seed)
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


def present_zeros(model: nn.Module, settings: Settings) -> tuple[float, int]:
    """Return zeros / prunable weights as they are, and the number of prunable weights.

    Raises:
        InputError: a pattern of ``--skip`` matches nothing.
    """
    weights = trainable(model)
    skipped = resolve(settings.skip, list(weights), "--skip")
    tensors = [w.tensor for name, w in weights.items() if name not in skipped]
    total = max(1, sum(tensor.numel() for tensor in tensors))
    return sum(int((tensor == 0).sum()) for tensor in tensors) / total, total
