"""One training job: measure the start, train, measure the result, write and record it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli import (
    artifact,
    engine,
    histograms,
    manifest,
    randomness,
    recording,
    resuming,
    threads,
    trial,
)
from lpss_cli.data import Data
from lpss_cli.distributed import LostError, World
from lpss_cli.errors import StoppedError
from lpss_cli.evaluation import evaluate
from lpss_cli.files import check_space
from lpss_cli.generations import Generations
from lpss_cli.interrupts import Interrupts, SignalledError, kill_children, listening
from lpss_cli.loading import Checkpoint
from lpss_cli.method import Method
from lpss_cli.outcome import Outcome
from lpss_cli.reporting import report
from lpss_cli.request import Request, device_of
from lpss_cli.resolving import preprocessing_notes
from lpss_cli.starting import Settings
from lpss_cli.state import RunState
from lpss_cli.watching import Relay, Watcher

# An accuracy this far below the checkpoint's own claim means other data or preprocessing.
_CLAIM_TOLERANCE = 0.02
# Saved with an unfinished run: once the cut is made it cannot be measured again.
_CUT = "before_cut"


class JobWatcher(Watcher):
    """A watcher that also sees what happens around the training loop."""

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """The input's metrics, before anything is trained."""

    def on_measured(self, metrics: dict[str, float], primary: str) -> None:
        """The metrics after an epoch, before its ``on_epoch``."""


class _CutMeter(Relay):
    """Measures the network before a cut that ends the training."""

    def __init__(self, keeper: resuming.Keeper, measure: Callable[[], dict[str, float]]) -> None:
        super().__init__(keeper)
        self._measure, self._measured = measure, keeper.record.measured

    def on_cut(self, run: RunState) -> None:
        if 0 < run.step == run.total_steps and run.sparsity > run.start_sparsity:
            self._measured[_CUT] = self._measure()
        super().on_cut(run)


@dataclass(frozen=True)
class Job:
    """A resolved request: everything a training run and its record need.

    ``notes`` go into the record as they are. ``world`` are the processes that run it together: all
    train, and the first one measures and writes.
    """

    request: Request
    watcher: JobWatcher
    arch: str
    data: Data
    method: Method
    settings: Settings
    source: Checkpoint | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    world: World = field(default_factory=World)

    def run(self, model: nn.Module) -> Outcome:
        """Measure, train, measure again and write the artefact."""
        device = device_of(self.request.device)
        flops = trial.flops(model, self.data, self.arch) * self.settings.batch_size
        count = self.request.threads or threads.suitable(flops)
        records: AbstractContextManager[Watcher] = nullcontext(self.watcher)
        if self.world.leads:
            records = recording.recorded(self.watcher, self.request)
        with threads.limited(count), records as watcher:
            return self._run(model, device, watcher)

    def _run(self, model: nn.Module, device: torch.device, watcher: Watcher) -> Outcome:
        """Do the work; ``watcher`` sees the training and keeps the records of it."""
        data, world = self.data, self.world
        # For data that draw numbers when they are read.
        randomness.seed(world.seed(self.settings.seed))
        needed = artifact.size(model.state_dict()) * (1 + self.request.keep_init)
        world.first(lambda: check_space(self.request.out, needed))
        saved = Generations(self.request.out)
        record = resuming.Record(self._identity(), resuming.circumstances(device, world.size))
        world.agree("options, data or input", record.identity)
        begun = world.first(
            lambda: resuming.find(
                saved, record, self.request.resume, self.watcher.on_note, self.watcher.on_warning
            )
        )
        self.watcher.on_note(f"{self.arch} on {data.name}, {len(data.train):,} examples")
        for text in preprocessing_notes(data):
            self.watcher.on_note(text)

        def measure() -> dict[str, float]:
            return evaluate(model, data.test, data.task, device=device)

        before = None
        if self.source is not None:
            before = world.first(measure)
            self.watcher.on_before(before, data.task.primary)
            self._check_claim(before)
        init = self._init(model)
        began = histograms.of_model(model)
        request = self.request
        with listening(final=world.size > 1) as interrupts:
            keeper = resuming.Keeper(
                saved,
                record,
                watcher,
                interrupts,
                every=request.checkpoint_steps,
                command=request.command,
                world=world,
            )
            try:
                metrics_now = functools.partial(world.first, measure)
                meter = recording.Meter(
                    _CutMeter(keeper, metrics_now),
                    metrics_now,
                    data.task.primary,
                    request.eval_every,
                    self.watcher.on_measured,
                )
                state, seconds = self._train(model, device, meter, begun)
                seconds -= meter.seconds
                after = _measured(state, keeper, interrupts, measure, world)
                cut, part = (
                    record.measured.get(_CUT),
                    "test" if request.holdout is None else "holdout",
                )
                metrics = {"on": part, "before": before, _CUT: cut, "after": after}
                meta = {
                    **self._record(state),
                    histograms.KEY: began,
                    "metrics": metrics,
                    "seconds": seconds,
                }
                primary = data.task.primary
                if world.leads:
                    artifact.save(request.out, dict(model.state_dict()), meta, init)
                    saved.remove()
            except (SignalledError, StoppedError, LostError) as stop:
                interrupts.close()
                kill_children()  # a reader that hangs would keep the process from its end
                if isinstance(stop, StoppedError):
                    raise
                if isinstance(stop, LostError):
                    raise keeper.lost(stop) from stop
                raise keeper.at_once(stop.number) from None
        return world.first(
            lambda: Outcome(report(request.out), primary, before, after, part, seconds, cut)
        )

    def _train(
        self,
        model: nn.Module,
        device: torch.device,
        watcher: Watcher,
        begun: Mapping[str, Any] | None,
    ) -> tuple[RunState, float]:
        """Train; return the finished run and its seconds, those before a resumption included."""
        earlier = 0.0
        if begun is not None:
            earlier = begun["epoch_seconds"] + sum(e["seconds"] for e in begun["history"])
        began = time.perf_counter()
        state = engine.run(
            model,
            self.data,
            self.method,
            self.settings,
            device=device,
            watcher=watcher,
            resume=begun,
            world=self.world,
        )
        return state, earlier + time.perf_counter() - began

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
            **{f"notes.{k}": v for k, v in self.notes.items()},
            **{f"{group}{k}": v for group, vs in groups.items() for k, v in _plain(vs).items()},
        }

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


def _measured(
    state: RunState,
    keeper: resuming.Keeper,
    interrupts: Interrupts,
    measure: Callable[[], dict[str, float]],
    world: World,
) -> dict[str, float]:
    """Measure the finished run; a signal saves its state instead.

    Measuring may take long and changes nothing, so it is not waited for. What follows is short.
    """

    def measured() -> dict[str, float] | int:
        try:
            interrupts.release()
            found: dict[str, float] | int = measure()
            interrupts.defer()
        except SignalledError as signalled:
            interrupts.defer()
            found = signalled.number
        return found

    after = world.first(measured)
    if isinstance(after, int):
        keeper.stop(state, after)
    return after
