"""What the commands do, from a request to a result: train, sparsify, plan, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpss_cli import models
from lpss_cli.checkpoints import identify
from lpss_cli.checkpoints.load_weights import refuse_not_finite
from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.training_state import TrainingStateFiles, paths_of
from lpss_cli.data.spec import SHAPES
from lpss_cli.distributed.context import DistributedContext
from lpss_cli.distributed.process_group import joined
from lpss_cli.errors import InputError
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import MODEL, Request, check, device_of
from lpss_cli.jobs.plan import Plan, plan
from lpss_cli.jobs.resolve import (
    input_file,
    output_beside,
    preprocessing_notes,
    settings_for,
    sparsity_of,
)
from lpss_cli.jobs.restore import load_data, restore, untrained
from lpss_cli.jobs.sparsity_search import search
from lpss_cli.jobs.training_job import Job, Outcome
from lpss_cli.report.report import weights_of
from lpss_cli.sparsity.prunable import prunable_weights, trainable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import make
from lpss_cli.training.options import SPARSIFY_BUDGET, SPARSITY, TRAIN_BUDGET
from lpss_cli.utils.files import reserve_output


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
    with _sharing(request) as (request, distributed):
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


def sparsify(path: Path, request: Request, callback: JobCallback | None = None) -> Outcome:
    """Sparse-train a checkpoint to the target and write the sparse artifact.

    The run starts from exactly the function in the file; its metrics are measured first.

    Args:
        path: The checkpoint.
        request: What was asked for; without a file to write, ``weights.pt`` becomes
            ``weights.sparse.pt``.
        callback: Sees the run.

    Raises:
        InputError: The file, or something asked for, does not exist or fit.
        RunError: Training diverged, or the number of zeros is not the one asked for.
    """
    callback = callback or JobCallback()
    request = request.writing_to(output_beside(path, ".sparse.pt"))
    check(request)
    check_sparsity(SPARSITY if request.sparsity is None else request.sparsity)
    method = make(request.method_name(), request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    with _sharing(request) as (request, distributed):
        for note in checkpoint.notes:
            callback.on_note(note)
        model, info, data = distributed.local_main_first(
            lambda: restore(checkpoint, request, callback.on_note)
        )
        sparsity = sparsity_of(request, trainable_weights(model), SPARSITY)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET, keep_zeros=True)
        notes = {}
        if request.target_drop is not None:
            # The main process searches alone: each short run starts from the one before.
            found = distributed.run_on_main(
                lambda: (
                    _earlier_search(request)
                    or search(
                        model, info, data, checkpoint, request, settings, callback.on_note
                    ).to_dict()
                )
            )
            notes, settings = {"search": found}, replace(settings, sparsity=found["sparsity"])
        job = Job(request, callback, info, data, method, settings, checkpoint, notes, distributed)
        return job.run(model)


@contextmanager
def _sharing(request: Request) -> Iterator[tuple[Request, DistributedContext]]:
    """Join the other processes of this job, if there are any; the main one holds its output.

    Yields:
        The request with this process's own device, and the processes.
    """
    with joined(request.device) as distributed, ExitStack() as held:
        if distributed.is_main_process:
            names = paths_of(request.output)
            held.enter_context(reserve_output(request.output, *names, force=request.force))
        yield replace(request, device=distributed.device), distributed


def _earlier_search(request: Request) -> dict[str, Any] | None:
    """Return what the search of an interrupted run found, if that run is resumed."""
    saved = TrainingStateFiles(request.output)
    if not (request.resume and saved.found):
        return None
    found = saved.read(lambda _: None)[1].get("identity", {}).get("notes.search")
    fits = isinstance(found, dict) and isinstance(found.get("sparsity"), float)
    if not fits or found.get("allowed") != request.target_drop:
        raise InputError(
            f"{saved.newest} does not belong to a search for this drop",
            "give the options of the interrupted run, or leave --resume out to search again",
        )
    return dict(found)


def plan_for(
    path: Path | None,
    request: Request,
    hoyer: float | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a sparse training of a checkpoint, or of the network ``request.arch``.

    Neither the data nor, for a checkpoint, the network's code is needed.

    Args:
        path: The checkpoint; None: the network ``request.arch``, else the newest artifact here.
        request: What was asked for.
        hoyer: Hoyer sparsity wanted of every layer, in place of ``p``.
        note: Told what was found out about the file.

    Raises:
        InputError: Something asked for does not exist or fit.
    """
    if path is None and request.arch is not None:
        source, network = _untrained(request)
        weights = prunable_weights(network)
    else:
        path = input_file(path, note)
        checkpoint = read(path, trust_pickle=request.trust_pickle)
        for text in (*checkpoint.notes, *identify.introduce(checkpoint)):
            note(text)
        source, weights = str(path), weights_of(checkpoint)
        refuse_not_finite({name: weight.tensor for name, weight in weights.items()}, path)
    return plan(
        source,
        weights,
        sparsity=sparsity_of(request, weights, SPARSITY),
        options=request.options,
        layers=request.layers,
        skip=request.skip,
        hoyer=hoyer,
    )


def _untrained(request: Request) -> tuple[str, nn.Module]:
    """Build the network that was asked for; known data sets need not be there for it."""
    shape: tuple[int, ...]
    sizes = models.sizes_of(request.arch) if request.data is None else None
    if sizes is not None:
        shape, outputs, data = sizes[:1], sizes[1], None
    elif request.data is None or request.data in SHAPES:
        data = request.data or "digits"
        shape, outputs = SHAPES[data]
    else:
        loaded = load_data(request)
        data, shape, outputs = loaded.name, loaded.input_shape, loaded.outputs
    arch = models.resolve(request.arch, shape, outputs)
    torch.manual_seed(request.seed)
    return f"{arch} on {data}" if data else arch, models.build(arch, shape, outputs)


@dataclass(frozen=True)
class Evaluation:
    """The metrics of a checkpoint on its test split.

    Attributes:
        path: The checkpoint.
        primary: Name of the metric that counts.
        metrics: All metrics by name.
    """

    path: Path
    primary: str
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {"file": str(self.path), "primary_metric": self.primary, **self.metrics}


def evaluate_file(
    path: Path | None, request: Request, callback: JobCallback | None = None
) -> Evaluation:
    """Measure a checkpoint on its test split.

    Args:
        path: The checkpoint; None: the newest artifact in this folder.
        request: How to rebuild the network where the file does not say.
        callback: Told what was assumed.

    Raises:
        InputError: The file or the data do not exist or fit.
    """
    callback = callback or JobCallback()
    path = input_file(path, callback.on_note)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        callback.on_note(note)
    model, _, data = restore(checkpoint, request, callback.on_note)
    for note in preprocessing_notes(data):
        callback.on_note(note)
    metrics = evaluate(model, data.test, data.task, device=device_of(request.device))
    return Evaluation(path, data.task.primary, metrics)
