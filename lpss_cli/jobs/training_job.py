"""One training job: measure the start, train, measure the result, write and record it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.checkpoints import artifact
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.checkpoints.metadata import HISTOGRAMS
from lpss_cli.checkpoints.training_state import TrainingStateFiles, paths_of
from lpss_cli.data import Data
from lpss_cli.distributed.context import DistributedContext, LostError, joined
from lpss_cli.errors import InputError, StoppedError
from lpss_cli.jobs import loggers, resume
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import MODEL, Request, check, device_of
from lpss_cli.jobs.resolve import (
    load_data,
    preprocessing_notes,
    settings_for,
    sparsity_of,
    untrained,
)
from lpss_cli.jobs.resume import TrainingCheckpointer
from lpss_cli.models import ModelInfo
from lpss_cli.reporting import histograms
from lpss_cli.reporting.report import Report, report
from lpss_cli.sparsity.prunable import trainable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.callbacks import Callback, CallbackList
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import Method, make, options_of
from lpss_cli.training.options import TRAIN_BUDGET
from lpss_cli.training.run import Run
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils import digest, seeds, torch_utils
from lpss_cli.utils.files import check_space, reserve_output
from lpss_cli.utils.signals import Interrupts, SignalError, handle_signals, kill_children

# An accuracy this far below the checkpoint's own claim means other data or preprocessing.
_CLAIM_TOLERANCE = 0.02
# Key of the metrics before a final pruning that ends the training. They are saved with an
# unfinished run: once the weights are pruned they cannot be measured again.
_BEFORE_CUT = "before_cut"
_Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """The result of a training job.

    Attributes:
        report: report on the artifact, read back from the file.
        primary: name of the primary metric.
        before: metrics of the input on the same data; None if trained from scratch.
        before_cut: metrics just before a final pruning that ends the training, after which
            nothing can recover; None if training continues after it.
        after: metrics of the result.
        measured_on: ``test`` or ``holdout``.
        seconds: wall time of the training loop, with the earlier parts of a resumed run.
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
    """Return the outcome of a finished job from the artifact that it wrote.

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
        metrics[_BEFORE_CUT],
    )


@dataclass(frozen=True)
class Job:
    """A resolved request: everything that a training run and its record need.

    Attributes:
        request: what was typed.
        callback: watches the job.
        info: what is known about the network.
        data: training and test examples.
        method: decides when which weights are pruned.
        settings: length, batch size, seed and target.
        source: the input; None if trained from scratch.
        notes: further entries of the record.
        distributed: the processes that run the job; all train, the first one measures and writes.
    """

    request: Request
    callback: JobCallback
    info: ModelInfo
    data: Data
    method: Method
    settings: TrainingSettings
    source: Checkpoint | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    distributed: DistributedContext = field(default_factory=DistributedContext)

    def run(self, model: nn.Module) -> Outcome:
        """Measure, train, measure again and write the artifact.

        Raises:
            InputError: an output cannot be written, or an unfinished run is of another job.
            RunError: training diverged.
            StoppedError: a signal came.
        """
        device = device_of(self.request.device)
        flops = self.info.flops * self.settings.batch_size
        count = self.request.threads or torch_utils.suitable_threads(flops)
        records: AbstractContextManager[list[Callback]] = nullcontext([])
        if self.distributed.is_main_process:
            records = loggers.epoch_loggers(self.request, self.callback.on_warning)
        with torch_utils.limit_threads(count), records as epoch_loggers:
            return self._run(model, device, epoch_loggers)

    def _run(
        self, model: nn.Module, device: torch.device, epoch_loggers: list[Callback]
    ) -> Outcome:
        request, data, distributed = self.request, self.data, self.distributed
        # For data that draw random numbers when they are read.
        seeds.seed_everything(distributed.seed(self.settings.seed))
        needed = artifact.estimated_bytes(model.state_dict()) * (1 + request.keep_init)
        distributed.run_on_main(lambda: check_space(request.output, needed))
        saved = TrainingStateFiles(request.output)
        record = resume.Record(identity(self), resume.circumstances(device, distributed.size))
        state = self._unfinished_state(saved, record)
        self._introduce()
        measure = functools.partial(evaluate, model, data.test, data.task, device=device)
        before = self._measure_input(measure)
        init = self._initial_weights(model)
        initial_histograms = histograms.of_model(model)
        with handle_signals(final=distributed.size > 1) as interrupts:
            checkpointer = TrainingCheckpointer(
                saved,
                record,
                interrupts,
                self.callback.on_warning,
                every=request.checkpoint_steps,
                command=request.command,
                distributed=distributed,
            )
            with _stoppable(checkpointer, interrupts):
                callbacks = [self.callback, *epoch_loggers, checkpointer]
                run, seconds = self._train(model, device, callbacks, state, record, measure)
                after = _measure_result(run, checkpointer, interrupts, measure, distributed)
                part = "test" if request.holdout is None else "holdout"
                before_cut = record.measured.get(_BEFORE_CUT)
                metrics = {"on": part, "before": before, _BEFORE_CUT: before_cut, "after": after}
                meta = {
                    **record_of(self, run),
                    HISTOGRAMS: initial_histograms,
                    "metrics": metrics,
                    "seconds": seconds,
                }
                if distributed.is_main_process:
                    artifact.save(request.output, dict(model.state_dict()), meta, init)
                    saved.remove()
        primary = data.task.primary
        return distributed.run_on_main(
            lambda: Outcome(
                report(request.output), primary, before, after, part, seconds, before_cut
            )
        )

    def _unfinished_state(
        self, saved: TrainingStateFiles, record: resume.Record
    ) -> dict[str, Any] | None:
        """Return the state to resume from, the same in all processes; None: the beginning."""
        self.distributed.check_equal("options, data or input", record.identity)
        note, warn = self.callback.on_note, self.callback.on_warning
        return self.distributed.run_on_main(
            lambda: resume.find(saved, record, self.request.resume, note, warn)
        )

    def _introduce(self) -> None:
        """Note which network is trained on which data."""
        arch, data = self.info.arch, self.data
        self.callback.on_note(f"{arch} on {data.name}, {len(data.train):,} examples")
        for text in preprocessing_notes(self.data):
            self.callback.on_note(text)

    def _measure_input(self, measure: _Measure) -> dict[str, float] | None:
        """Return the metrics of the input as it is, if there is one."""
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
        callbacks: list[Callback],
        state: Mapping[str, Any] | None,
        record: resume.Record,
        measure: _Measure,
    ) -> tuple[Run, float]:
        """Train; return the finished run and its duration in seconds.

        The time before a resumption counts, the time of measurements on the way does not.
        """
        measure_on_main = functools.partial(self.distributed.run_on_main, measure)
        meter = loggers.Meter(
            measure_on_main,
            self.data.task.primary,
            self.request.eval_every,
            self.callback.on_measured,
        )
        trainer_callbacks = [_BeforeCutMeter(measure_on_main, record.measured), meter, *callbacks]
        earlier = 0.0
        if state is not None:
            earlier = state["epoch_seconds"] + sum(e["seconds"] for e in state["history"])
        began = time.perf_counter()
        trainer = Trainer(
            model,
            self.data,
            self.method,
            self.settings,
            device=device,
            callback=CallbackList(trainer_callbacks),
            distributed=self.distributed,
        )
        run = trainer.train(state)
        return run, earlier + time.perf_counter() - began - meter.seconds

    def _initial_weights(self, model: nn.Module) -> dict[str, Tensor] | None:
        """Return the weights that training begins with, if they are to be kept.

        They are those of the source's own training, if it kept them.
        """
        if not self.request.keep_init:
            return None
        if self.source is not None and self.source.init is not None:
            return self.source.init
        return {name: t.detach().cpu().clone() for name, t in model.state_dict().items()}

    def _check_claim(self, before: Mapping[str, float]) -> None:
        """Warn of an input that measures far below what its own record says."""
        if self.source is None or self.request.holdout or not self.data.task.higher_is_better:
            return
        primary = self.data.task.primary
        # A record of unknown origin: its types were checked, and any entry may be None.
        claims = (self.source.meta.get("metrics") or {}).get("after") or {}
        claimed = claims.get(primary)
        if isinstance(claimed, float) and before[primary] < claimed - _CLAIM_TOLERANCE:
            self.callback.on_warning(
                f"{primary} is {before[primary]:.4f} where the checkpoint claims {claimed:.4f}: "
                "are these the data and the preprocessing it was trained with?"
            )


def identity(job: Job) -> dict[str, Any]:
    """Return what decides the bits of the run, saved with an unfinished one.

    Where the data lie and how many processes read them does not.
    """
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
        **{
            f"{group}{k}": v
            for group, values in groups.items()
            for k, v in _without_tuples(values).items()
        },
    }


def record_of(job: Job, run: Run) -> dict[str, Any]:
    """Return what the finished run used, as plain containers, for the artifact; no metrics."""
    data, source = job.data, job.source
    config = {
        item.name: getattr(job.method.config, item.name) for item in options_of(type(job.method))
    }
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
        "config": _without_tuples(config),
        "notes": run.notes,
        "settings": _without_tuples(asdict(job.settings)),
        "sparsity": job.settings.sparsity,
        "weights": {
            name: {"row_dim": run.row_dims[name], **run.layer_info[name]} for name in run.weights
        },
        "history": run.history,
        "versions": artifact.versions(),
        "device": str(run.device),
        "command": job.request.command,
        **job.notes,
        "source": source and {"file": source.path.name, "sha256": source.sha256},
    }


def _without_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with tuples as lists, as a record holds them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


class _BeforeCutMeter(Callback):
    """Measures the network before a final pruning that ends the training.

    Args:
        measure: returns the metrics of the network as it is.
        measured: receives them; saved with an unfinished run.
    """

    def __init__(self, measure: _Measure, measured: dict[str, Any]) -> None:
        self._measure, self._measured = measure, measured

    def before_final_prune(self, run: Run) -> None:
        if run.prunes_at_end:
            self._measured[_BEFORE_CUT] = self._measure()


@contextmanager
def _stoppable(checkpointer: TrainingCheckpointer, interrupts: Interrupts) -> Iterator[None]:
    """End the processes that read data if the block is stopped, and say how to resume.

    Raises:
        StoppedError: a signal ended the block.
        LostError: another process of the job is gone.
    """
    try:
        yield
    except (SignalError, StoppedError, LostError) as stop:
        interrupts.close()
        kill_children()  # a reader that hangs would keep the process from ending
        if isinstance(stop, StoppedError):
            raise
        if isinstance(stop, LostError):
            raise checkpointer.lost(stop) from stop
        raise checkpointer.stopped_at_once(stop.number) from None


def _measure_result(
    run: Run,
    checkpointer: TrainingCheckpointer,
    interrupts: Interrupts,
    measure: _Measure,
    distributed: DistributedContext,
) -> dict[str, float]:
    """Return the metrics of the finished run; a signal saves its state instead.

    Measuring may take long and changes nothing, so a signal does not wait for it.

    Raises:
        StoppedError: a signal came.
    """
    result = distributed.run_on_main(lambda: _metrics_or_signal(interrupts, measure))
    if isinstance(result, int):
        checkpointer.stop(run, result)
    return result


def _metrics_or_signal(interrupts: Interrupts, measure: _Measure) -> dict[str, float] | int:
    """Return the metrics, or the number of the signal that came before they were known."""
    try:
        interrupts.release()
        result: dict[str, float] | int = measure()
        interrupts.defer()
    except SignalError as signal:
        interrupts.defer()
        result = signal.number
    return result


def train(request: Request, callback: JobCallback | None = None) -> Outcome:
    """Train a network from scratch and write its artifact, by default to ``model.pt``.

    Raises:
        InputError: Something asked for does not exist or fit; found before training.
        RunError: Training diverged.
    """
    request = request.writing_to(MODEL)
    check(request)
    for flag, value in (("target-drop", request.target_drop), ("distill", request.distill)):
        if value is not None:
            raise InputError(
                f"--{flag} compares with a trained network, and there is none yet",
                f"lpss train, then lpss sparsify --{flag} {value:g}",
            )
    is_sparse = check_sparsity(request.sparsity or 0.0) > 0 or bool(request.layers)
    method = make(request.method_name(is_sparse), request.options)
    with share_output(request) as (request, distributed):
        data = distributed.local_main_first(lambda: load_data(request))
        model, info = untrained(request, data)
        sparsity = sparsity_of(request, trainable_weights(model), 0.0)
        settings = settings_for(request, data, sparsity, TRAIN_BUDGET)
        job = Job(
            request,
            callback or JobCallback(),
            info,
            data,
            method,
            settings,
            distributed=distributed,
        )
        return job.run(model)


@contextmanager
def share_output(request: Request) -> Iterator[tuple[Request, DistributedContext]]:
    """Join the other processes of this job, if there are any; the main one holds its output.

    Yields:
        The request with this process's own device, and the processes.
    """
    with joined(request.device) as distributed, ExitStack() as held:
        if distributed.is_main_process:
            names = paths_of(request.output)
            held.enter_context(reserve_output(request.output, *names, force=request.force))
        yield replace(request, device=distributed.device), distributed
