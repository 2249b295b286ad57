"""One training job: measure the start, train, measure the result, write and record it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.checkpoints.metadata import HISTOGRAMS
from lpss_cli.checkpoints.training_state import TrainingStateFiles
from lpss_cli.data import Data
from lpss_cli.distributed.context import DistributedContext, LostError
from lpss_cli.errors import StoppedError
from lpss_cli.jobs import loggers, resume
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request, device_of
from lpss_cli.jobs.resolve import preprocessing_notes
from lpss_cli.jobs.resume import TrainingCheckpointer
from lpss_cli.models import ModelInfo
from lpss_cli.report import histograms
from lpss_cli.report.report import Report, report
from lpss_cli.training import engine
from lpss_cli.training.callbacks import Callback, CallbackWrapper
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import Method, options_of
from lpss_cli.training.setup import Settings
from lpss_cli.training.state import RunState
from lpss_cli.utils import digest, seeds, torch_utils
from lpss_cli.utils.files import check_space
from lpss_cli.utils.signals import Interrupts, SignalError, handle_signals, kill_children


# MERGED: What of a job is written down.
# MERGED: Its identity goes beside an unfinished state, its record into the artefact.
def identity(job: Job) -> dict[str, Any]:
    """Return what decides the run's bits; where data lie and what reads them does not."""
    places = ("data_dir", "workers", "name")
    spec = {k: v for k, v in job.data.spec.to_dict().items() if k not in places}
    groups = {"": asdict(job.settings), "method.": asdict(job.method.config), "data.": spec}
    return {
        "lpss format": digest.RECORD_FORMAT,
        "arch": job.info.arch,
        "method": job.method.name,
        "data": job.data.name,
        "data fingerprint": job.data.fingerprint,
        "source": job.source and job.source.sha256,
        **{f"notes.{k}": v for k, v in job.notes.items()},
        **{f"{group}{k}": v for group, vs in groups.items() for k, v in _plain(vs).items()},
    }


def record_of(job: Job, state: RunState) -> dict[str, Any]:
    """Return everything the finished run used, in plain containers; its metrics are not in it."""
    data, source = job.data, job.source
    return {
        "arch": job.info.arch,
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
        "method": job.method.name,
        "config": _plain(_config(job.method)),
        "notes": state.notes,
        "settings": _plain(asdict(job.settings)),
        "sparsity": job.settings.sparsity,
        "weights": {
            name: {"row_dim": state.row_dims[name], **state.layer_info[name]}
            for name in state.weights
        },
        "history": state.history,
        "versions": artifact.versions(),
        "device": str(next(state.model.parameters()).device),
        "command": job.request.command,
        **job.notes,
        "source": source and {"file": source.path.name, "sha256": source.sha256},
    }


def _config(method: Method) -> dict[str, Any]:
    """Return the options of a method by name, as it has used them."""
    names = (item.name for item in options_of(type(method)))
    return {name: getattr(method.config, name) for name in names}


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a record holds them: no tuples."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


# MERGED: What a training job gave.
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


def outcome_of(path: Path) -> Outcome:
    """Return the outcome of a finished job from the artefact that it wrote.

    Raises:
        InputError: the file is damaged.
    """
    written = report(path)
    meta, metrics = written.meta, written.meta["metrics"]
    return Outcome(
        written,
        meta["primary_metric"],
        metrics["before"],
        metrics["after"],
        metrics["on"],
        meta["seconds"],
        metrics["before_cut"],
    )


# MERGED: How a job ends when a signal comes, or when another of its processes is lost.
@contextmanager
def stoppable(keeper: TrainingCheckpointer, interrupts: Interrupts) -> Iterator[None]:
    """End the job's readers when the block is stopped, and say how to go on.

    Raises:
        StoppedError: a signal ended the block.
        LostError: another process of the job is gone.
    """
    try:
        yield
    except (SignalError, StoppedError, LostError) as stop:
        interrupts.close()
        kill_children()  # a reader that hangs would keep the process from its end
        if isinstance(stop, StoppedError):
            raise
        if isinstance(stop, LostError):
            raise keeper.lost(stop) from stop
        raise keeper.at_once(stop.number) from None


def measured(
    state: RunState,
    keeper: TrainingCheckpointer,
    interrupts: Interrupts,
    measure: Callable[[], dict[str, float]],
    distributed: DistributedContext,
) -> dict[str, float]:
    """Measure the finished run; a signal saves its state instead.

    Measuring may take long and changes nothing, so it is not waited for. What follows is short.

    Raises:
        StoppedError: a signal came.
    """
    after = distributed.run_on_main(lambda: _metrics_or_signal(interrupts, measure))
    if isinstance(after, int):
        keeper.stop(state, after)
    return after


def _metrics_or_signal(
    interrupts: Interrupts, measure: Callable[[], dict[str, float]]
) -> dict[str, float] | int:
    """Return the metrics, or the number of the signal that came before they were known."""
    try:
        interrupts.release()
        found: dict[str, float] | int = measure()
        interrupts.defer()
    except SignalError as signalled:
        interrupts.defer()
        found = signalled.number
    return found


# An accuracy this far below the checkpoint's own claim means other data or preprocessing.
_CLAIM_TOLERANCE = 0.02
# Saved with an unfinished run: once the cut is made it cannot be measured again.
_CUT = "before_cut"
_Measure = Callable[[], dict[str, float]]


class _CutMeter(CallbackWrapper):
    """Measures the network before a cut that ends the training."""

    def __init__(self, keeper: resume.TrainingCheckpointer, measure: _Measure) -> None:
        super().__init__(keeper)
        self._measure, self._measured = measure, keeper.record.measured

    def on_prune(self, run: RunState) -> None:
        if 0 < run.step == run.total_steps and run.sparsity > run.start_sparsity:
            self._measured[_CUT] = self._measure()
        super().on_prune(run)


@dataclass(frozen=True)
class Job:
    """A resolved request: everything a training run and its record need.

    ``notes`` go into the record as they are. ``distributed`` are the processes that run it: all
    train, and the first one measures and writes.
    """

    request: Request
    callback: JobCallback
    info: ModelInfo
    data: Data
    method: Method
    settings: Settings
    source: Checkpoint | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    distributed: DistributedContext = field(default_factory=DistributedContext)

    def run(self, model: nn.Module) -> Outcome:
        """Measure, train, measure again and write the artefact."""
        device = device_of(self.request.device)
        flops = self.info.flops * self.settings.batch_size
        count = self.request.threads or torch_utils.suitable_threads(flops)
        records: AbstractContextManager[Callback] = nullcontext(self.callback)
        if self.distributed.is_main_process:
            records = loggers.recorded(self.callback, self.request)
        with torch_utils.limit_threads(count), records as callback:
            return self._run(model, device, callback)

    def _run(self, model: nn.Module, device: torch.device, callback: Callback) -> Outcome:
        """Do the work; ``callback`` sees the training and keeps the records of it."""
        request, data, distributed = self.request, self.data, self.distributed
        # For data that draw numbers when they are read.
        seeds.seed_everything(distributed.seed(self.settings.seed))
        needed = artifact.estimated_bytes(model.state_dict()) * (1 + request.keep_init)
        distributed.run_on_main(lambda: check_space(request.output, needed))
        saved = TrainingStateFiles(request.output)
        record = resume.Record(identity(self), resume.circumstances(device, distributed.size))
        begun = self._begun(saved, record)
        self._introduce()
        measure = functools.partial(evaluate, model, data.test, data.task, device=device)
        before = self._before(measure)
        init = self._init(model)
        began = histograms.of_model(model)
        with handle_signals(final=distributed.size > 1) as interrupts:
            keeper = resume.TrainingCheckpointer(
                saved,
                record,
                callback,
                interrupts,
                every=request.checkpoint_steps,
                command=request.command,
                distributed=distributed,
            )
            with stoppable(keeper, interrupts):
                state, seconds = self._train(model, device, keeper, begun, measure)
                after = measured(state, keeper, interrupts, measure, distributed)
                cut = record.measured.get(_CUT)
                part = "test" if request.holdout is None else "holdout"
                metrics = {"on": part, "before": before, _CUT: cut, "after": after}
                meta = {
                    **record_of(self, state),
                    HISTOGRAMS: began,
                    "metrics": metrics,
                    "seconds": seconds,
                }
                if distributed.is_main_process:
                    artifact.save(request.output, dict(model.state_dict()), meta, init)
                    saved.remove()
        primary = data.task.primary
        return distributed.run_on_main(
            lambda: Outcome(report(request.output), primary, before, after, part, seconds, cut)
        )

    def _begun(self, saved: TrainingStateFiles, record: resume.Record) -> dict[str, Any] | None:
        """Return the state that is gone on from, the same in all processes; None: the beginning."""
        self.distributed.check_equal("options, data or input", record.identity)
        tell, warn = self.callback.on_note, self.callback.on_warning
        return self.distributed.run_on_main(
            lambda: resume.find(saved, record, self.request.resume, tell, warn)
        )

    def _introduce(self) -> None:
        """Say what is trained on what."""
        arch, data = self.info.arch, self.data
        self.callback.on_note(f"{arch} on {data.name}, {len(data.train):,} examples")
        for text in preprocessing_notes(self.data):
            self.callback.on_note(text)

    def _before(self, measure: _Measure) -> dict[str, float] | None:
        """Measure the input as it is, where there is one."""
        if self.source is None:
            return None
        before = self.distributed.run_on_main(measure)
        self.callback.on_before(before, self.data.task.primary)
        self._check_claim(before)
        return before

    def _train(
        self,
        model: nn.Module,
        device: torch.device,
        keeper: resume.TrainingCheckpointer,
        begun: Mapping[str, Any] | None,
        measure: _Measure,
    ) -> tuple[RunState, float]:
        """Train; return the finished run and its seconds.

        Those before a resumption are in them, those of measuring on the way are not.
        """
        now = functools.partial(self.distributed.run_on_main, measure)
        meter = loggers.Meter(
            _CutMeter(keeper, now),
            now,
            self.data.task.primary,
            self.request.eval_every,
            self.callback.on_measured,
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
            callback=meter,
            resume=begun,
            distributed=self.distributed,
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
            self.callback.on_warning(
                f"{primary} is {before[primary]:.4f} where the checkpoint claims {claimed:.4f}: "
                "are these the data and the preprocessing it was trained with?"
            )
