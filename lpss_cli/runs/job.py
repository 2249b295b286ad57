"""One training job: measure the start, train, measure the result, write and record it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli import engine, histograms
from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.entries import HISTOGRAMS
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.evaluation import evaluate
from lpss_cli.method import Method
from lpss_cli.processes.distributed import World
from lpss_cli.reporting import report
from lpss_cli.runs import recording, resuming, trial
from lpss_cli.runs.generations import Generations
from lpss_cli.runs.jobrecord import identity, record_of
from lpss_cli.runs.outcome import Outcome
from lpss_cli.runs.request import Request, device_of
from lpss_cli.runs.resolving import preprocessing_notes
from lpss_cli.runs.stopping import measured, stoppable
from lpss_cli.starting import Settings
from lpss_cli.state import RunState
from lpss_cli.utils import seeds, torch_utils
from lpss_cli.utils.files import check_space
from lpss_cli.utils.signals import listening
from lpss_cli.watching import Relay, Watcher

# An accuracy this far below the checkpoint's own claim means other data or preprocessing.
_CLAIM_TOLERANCE = 0.02
# Saved with an unfinished run: once the cut is made it cannot be measured again.
_CUT = "before_cut"
_Measure = Callable[[], dict[str, float]]


class JobWatcher(Watcher):
    """A watcher that also sees what happens around the training loop."""

    def on_before(self, metrics: dict[str, float], primary: str) -> None:
        """The input's metrics, before anything is trained."""

    def on_measured(self, metrics: dict[str, float], primary: str) -> None:
        """The metrics after an epoch, before its ``on_epoch``."""


class _CutMeter(Relay):
    """Measures the network before a cut that ends the training."""

    def __init__(self, keeper: resuming.Keeper, measure: _Measure) -> None:
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
        count = self.request.threads or torch_utils.suitable_threads(flops)
        records: AbstractContextManager[Watcher] = nullcontext(self.watcher)
        if self.world.leads:
            records = recording.recorded(self.watcher, self.request)
        with torch_utils.limit_threads(count), records as watcher:
            return self._run(model, device, watcher)

    def _run(self, model: nn.Module, device: torch.device, watcher: Watcher) -> Outcome:
        """Do the work; ``watcher`` sees the training and keeps the records of it."""
        request, data, world = self.request, self.data, self.world
        # For data that draw numbers when they are read.
        seeds.seed_everything(world.seed(self.settings.seed))
        needed = artifact.size(model.state_dict()) * (1 + request.keep_init)
        world.first(lambda: check_space(request.out, needed))
        saved = Generations(request.out)
        record = resuming.Record(identity(self), resuming.circumstances(device, world.size))
        begun = self._begun(saved, record)
        self._introduce()
        measure = functools.partial(evaluate, model, data.test, data.task, device=device)
        before = self._before(measure)
        init = self._init(model)
        began = histograms.of_model(model)
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
            with stoppable(keeper, interrupts):
                state, seconds = self._train(model, device, keeper, begun, measure)
                after = measured(state, keeper, interrupts, measure, world)
                cut = record.measured.get(_CUT)
                part = "test" if request.holdout is None else "holdout"
                metrics = {"on": part, "before": before, _CUT: cut, "after": after}
                meta = {
                    **record_of(self, state),
                    HISTOGRAMS: began,
                    "metrics": metrics,
                    "seconds": seconds,
                }
                if world.leads:
                    artifact.save(request.out, dict(model.state_dict()), meta, init)
                    saved.remove()
        primary = data.task.primary
        return world.first(
            lambda: Outcome(report(request.out), primary, before, after, part, seconds, cut)
        )

    def _begun(self, saved: Generations, record: resuming.Record) -> dict[str, Any] | None:
        """Return the state that is gone on from, the same in all processes; None: the beginning."""
        self.world.agree("options, data or input", record.identity)
        tell, warn = self.watcher.on_note, self.watcher.on_warning
        return self.world.first(
            lambda: resuming.find(saved, record, self.request.resume, tell, warn)
        )

    def _introduce(self) -> None:
        """Say what is trained on what."""
        self.watcher.on_note(f"{self.arch} on {self.data.name}, {len(self.data.train):,} examples")
        for text in preprocessing_notes(self.data):
            self.watcher.on_note(text)

    def _before(self, measure: _Measure) -> dict[str, float] | None:
        """Measure the input as it is, where there is one."""
        if self.source is None:
            return None
        before = self.world.first(measure)
        self.watcher.on_before(before, self.data.task.primary)
        self._check_claim(before)
        return before

    def _train(
        self,
        model: nn.Module,
        device: torch.device,
        keeper: resuming.Keeper,
        begun: Mapping[str, Any] | None,
        measure: _Measure,
    ) -> tuple[RunState, float]:
        """Train; return the finished run and its seconds.

        Those before a resumption are in them, those of measuring on the way are not.
        """
        now = functools.partial(self.world.first, measure)
        meter = recording.Meter(
            _CutMeter(keeper, now),
            now,
            self.data.task.primary,
            self.request.eval_every,
            self.watcher.on_measured,
        )
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
            watcher=meter,
            resume=begun,
            world=self.world,
        )
        return state, earlier + time.perf_counter() - began - meter.seconds

    def _init(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return what the network began from, where it is to be kept: the source's own first."""
        if not self.request.keep_init:
            return None
        if self.source is not None and self.source.init is not None:
            return self.source.init
        return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}

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
