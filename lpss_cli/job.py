"""One training job: measure the start, train, measure the result, write and record it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli import artifact, engine, manifest, resuming, threads
from lpss_cli.data import Data
from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.evaluation import evaluate
from lpss_cli.files import check_space
from lpss_cli.loading import Checkpoint
from lpss_cli.method import Method
from lpss_cli.reporting import Report, report
from lpss_cli.request import Request, device_of, preprocessing_notes
from lpss_cli.state import RunState
from lpss_cli.watching import Relay, Watcher

# An accuracy this far below the checkpoint's own claim means other data or preprocessing.
_CLAIM_TOLERANCE = 0.02


@dataclass(frozen=True)
class Outcome:
    """What a training job gave.

    Attributes:
        report: the written artefact, read back and measured.
        primary: name of the metric that counts.
        before: metrics of the input on the same data; None when trained from scratch.
        before_cut: metrics just before an exact cut that ends the training (GSM's), after which
            nothing can recover; None where training goes on.
        after: metrics of the result.
        measured_on: ``test`` or ``holdout``.
        seconds: wall time of the training loop, earlier parts of a resumed run included.
    """

    report: Report
    primary: str
    before: dict[str, float] | None
    after: dict[str, float]
    measured_on: str
    seconds: float
    before_cut: dict[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {
            "out": self.report.path,
            "primary_metric": self.primary,
            "measured_on": self.measured_on,
            "before": self.before,
            "before_cut": self.before_cut,
            "after": self.after,
            "seconds": self.seconds,
            "report": self.report.to_dict(),
        }


class JobWatcher(Watcher):
    """A watcher that also sees what happens around the training loop."""

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """The input's metrics, before anything is trained."""


class _CutMeter(Relay):
    """Measures the network before a cut that ends the training."""

    def __init__(self, inner: Watcher, measure: Callable[[], dict[str, float]]) -> None:
        super().__init__(inner)
        self._measure = measure
        self.metrics: dict[str, float] | None = None

    def on_cut(self, run: RunState) -> None:
        if 0 < run.step == run.total_steps and run.sparsity > run.start_sparsity:
            self.metrics = self._measure()
        super().on_cut(run)


@dataclass(frozen=True)
class Job:
    """A resolved request: everything a training run and its record need.

    ``notes`` go into the record as they are.
    """

    request: Request
    watcher: JobWatcher
    arch: str
    data: Data
    method: Method
    settings: engine.Settings
    source: Checkpoint | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)

    def run(self, model: nn.Module) -> Outcome:
        """Measure, train, measure again and write the artefact."""
        device = device_of(self.request.device)
        flops = self._try(model) * self.settings.batch_size
        count = self.request.threads or threads.suitable(flops)
        with threads.limited(count):
            return self._run(model, device)

    def _run(self, model: nn.Module, device: torch.device) -> Outcome:
        data = self.data
        needed = artifact.size(model.state_dict()) * (1 + self.request.keep_init)
        check_space(self.request.out, needed)
        partial, identity = resuming.partial_of(self.request.out), self._identity()
        saved = resuming.find(partial, identity, self.request.resume, self.watcher.on_note)
        self.watcher.on_note(f"{self.arch} on {data.name}, {len(data.train):,} examples")
        for text in preprocessing_notes(data):
            self.watcher.on_note(text)

        def measure() -> dict[str, float]:
            return evaluate(model, data.test, data.task, device=device)

        before = None
        if self.source is not None:
            before = measure()
            self.watcher.on_before(before, data.task.primary)
            self._check_claim(before)
        init = self._init(model)
        earlier = sum(epoch["seconds"] for epoch in saved["history"]) if saved else 0.0
        keeper = resuming.Keeper(partial, identity, self.watcher)
        began = time.perf_counter()
        meter = _CutMeter(keeper, measure)
        state = engine.run(
            model, data, self.method, self.settings, device=device, watcher=meter, resume=saved
        )
        seconds = earlier + time.perf_counter() - began
        after = measure()
        part = "test" if self.request.holdout is None else "holdout"
        measured = {"on": part, "before": before, "before_cut": meter.metrics, "after": after}
        meta = {**self._record(state), "metrics": measured, "seconds": seconds}
        artifact.save(self.request.out, dict(model.state_dict()), meta, init)
        partial.unlink(missing_ok=True)
        written, primary = report(self.request.out), data.task.primary
        return Outcome(written, primary, before, after, part, seconds, meter.metrics)

    def _init(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return what the network began from, where it is to be kept: the source's own first."""
        if not self.request.keep_init:
            return None
        if self.source is not None and self.source.init is not None:
            return self.source.init
        return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}

    def _identity(self) -> dict[str, Any]:
        """Return what decides the run's bits; where data lie and what reads them does not."""
        places = ("data_dir", "workers", "name")
        spec = {k: v for k, v in self.data.spec.to_dict().items() if k not in places}
        groups = {"": asdict(self.settings), "method.": asdict(self.method.config), "data.": spec}
        return {
            "lpss format": manifest.FORMAT,
            "arch": self.arch,
            "method": self.method.name,
            "data": self.data.name,
            "data fingerprint": self.data.fingerprint,
            "source": self.source and self.source.sha256,
            **{f"{group}{k}": v for group, vs in groups.items() for k, v in _plain(vs).items()},
        }

    def _try(self, model: nn.Module) -> float:
        """Try two examples, and return the work of one.

        Raises:
            InputError: the network does not take the data.
        """
        x, y = next(iter(self.data.train.batches(2)))
        try:
            flops = threads.forward_flops(model, x)
            with torch.no_grad():
                self.data.task.loss(model.eval()(x), y)
            self._check_outputs(model(x))
        except LpssError:
            raise
        except Exception as error:  # whatever a user's network raises
            raise InputError(
                f"{self.arch} does not take inputs of shape {tuple(x.shape[1:])}: "
                f"{one_line(error)}",
                "give an --arch and --data that fit",
            ) from error
        finally:
            model.train()
        return flops

    def _check_outputs(self, outputs: Tensor) -> None:
        if self.data.task.name == "classification" and outputs.shape[-1] < self.data.outputs:
            raise InputError(
                f"{self.arch} has {outputs.shape[-1]} outputs for {self.data.outputs} classes",
                "give the last layer one output per class",
            )

    def _check_claim(self, before: Mapping[str, float]) -> None:
        """Call out an input that measures far below what its own record says."""
        if self.source is None or self.request.holdout or not self.data.task.higher_is_better:
            return
        primary = self.data.task.primary
        # A record of unknown origin: its kinds were checked, and any of it may be None.
        claims = (self.source.meta.get("metrics") or {}).get("after") or {}
        claimed = claims.get(primary)
        if isinstance(claimed, float) and before[primary] < claimed - _CLAIM_TOLERANCE:
            self.watcher.on_warning(
                f"{primary} is {before[primary]:.4f} where the checkpoint claims {claimed:.4f}: "
                "are these the data and the preprocessing it was trained with?"
            )

    def _record(self, state: RunState) -> dict[str, Any]:
        """Return everything the run used, in plain containers."""
        data, source = self.data, self.source
        return {
            "arch": self.arch,
            "input_shape": list(data.input_shape),
            "outputs": data.outputs,
            "task": data.task.name,
            "primary_metric": data.task.primary,
            "higher_is_better": data.task.higher_is_better,
            "data": data.spec.to_dict(),
            "data_name": data.name,
            "data_fingerprint": data.fingerprint,
            "classes": list(data.classes),
            "preprocessing": data.preprocessing,
            "method": self.method.name,
            "config": _plain(asdict(self.method.config)),
            "notes": state.notes,
            "settings": _plain(asdict(self.settings)),
            "sparsity": self.settings.sparsity,
            "weights": {
                name: {"row_dim": state.row_dims[name], **state.facts[name]}
                for name in state.weights
            },
            "history": state.history,
            "versions": artifact.versions(),
            "device": str(next(state.model.parameters()).device),
            "command": self.request.command,
            **self.notes,
            "source": source and {"file": source.path.name, "sha256": source.sha256},
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
