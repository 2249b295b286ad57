"""What the commands do, without any printing: train, sparsify, plan, evaluate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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
from lpss_cli.jobs.config import Request, check, device_of
from lpss_cli.jobs.plan import Plan, plan
from lpss_cli.jobs.resolve import (
    SPARSIFY_BUDGET,
    SPARSITY,
    TRAIN_BUDGET,
    load_data,
    preprocessing_notes,
    restore,
    settings_for,
    sparsity_of,
)
from lpss_cli.jobs.sparsity_search import search
from lpss_cli.jobs.training_job import Job, JobCallback, Outcome
from lpss_cli.report.report import weights_of
from lpss_cli.sparsity.prunable import prunable_weights, trainable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.evaluation import evaluate
from lpss_cli.training.method import make
from lpss_cli.utils.files import reserve_output


def train(request: Request, callback: JobCallback | None = None) -> Outcome:
    """Train a network from scratch and write its artefact.

    Raises:
        InputError: something asked for does not exist or fit; found before training.
        RunError: training diverged.
    """
    check(request)
    for flag, given in (("target-drop", request.target_drop), ("distill", request.distill)):
        if given is not None:
            raise InputError(
                f"--{flag} compares with a trained network, and there is none yet",
                f"lpss train, then lpss sparsify --{flag} {given:g}",
            )
    sparse = check_sparsity(request.sparsity or 0.0) > 0 or bool(request.layer)
    method = make(request.method or ("lpss" if sparse else "dense"), request.options)
    with _sharing(request) as (request, distributed):
        data = distributed.local_main_first(lambda: load_data(request))
        arch = models.resolve(request.arch, data.input_shape, data.outputs)
        torch.manual_seed(request.seed)
        model = models.build(arch, data.input_shape, data.outputs)
        sparsity = sparsity_of(request, trainable_weights(model), 0.0)
        settings = settings_for(request, data, sparsity, TRAIN_BUDGET)
        job = Job(
            request,
            callback or JobCallback(),
            arch,
            data,
            method,
            settings,
            distributed=distributed,
        )
        return job.run(model)


def sparsify(path: Path, request: Request, callback: JobCallback | None = None) -> Outcome:
    """Sparse-train a checkpoint to the target and write the sparse artefact.

    The run starts from exactly the function in the file; its metrics are measured first.

    Raises:
        InputError: the file, or something asked for, does not exist or fit.
        RunError: training diverged, or the count of zeros is not the one asked for.
    """
    callback = callback or JobCallback()
    check(request)
    check_sparsity(SPARSITY if request.sparsity is None else request.sparsity)
    method = make(request.method or "lpss", request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    with _sharing(request) as (request, distributed):
        for note in checkpoint.notes:
            callback.on_note(note)
        model, arch, data = distributed.local_main_first(
            lambda: restore(checkpoint, request, callback.on_note)
        )
        sparsity = sparsity_of(request, trainable_weights(model), SPARSITY)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET, keep_zeros=True)
        notes = {}
        if request.target_drop is not None:
            # By the first process alone: each of its short runs begins from the one before.
            found = distributed.run_on_main(
                lambda: (
                    _searched(request)
                    or search(
                        model, arch, data, checkpoint, request, settings, callback.on_note
                    ).to_dict()
                )
            )
            notes, settings = {"search": found}, replace(settings, sparsity=found["sparsity"])
        job = Job(request, callback, arch, data, method, settings, checkpoint, notes, distributed)
        return job.run(model)


@contextmanager
def _sharing(request: Request) -> Iterator[tuple[Request, DistributedContext]]:
    """Join the other processes of this job, if there are any; the first one holds its output.

    Returns:
        The request with this process's own device, and the processes.
    """
    with joined(request.device) as distributed, ExitStack() as held:
        if distributed.is_main_process:
            names = paths_of(request.out)
            held.enter_context(reserve_output(request.out, *names, force=request.force))
        yield replace(request, device=distributed.device), distributed


def _searched(request: Request) -> dict[str, Any] | None:
    """Return what the search of a run that is gone on with had found."""
    saved = TrainingStateFiles(request.out)
    if not (request.resume and saved.found):
        return None
    found = saved.read(lambda _: None)[1].get("identity", {}).get("notes.search")
    fits = isinstance(found, dict) and isinstance(found.get("sparsity"), float)
    if not fits or found.get("allowed") != request.target_drop:
        raise InputError(
            f"{saved.newest} is not of a search for this drop",
            "give the options of the killed run, or leave --resume out to search again",
        )
    return dict(found)


def plan_for(
    path: Path | None,
    request: Request,
    hoyer: float | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> Plan:
    """Plan a sparse training of a checkpoint, or of the network ``request.arch``.

    Neither the data nor, for a checkpoint, the network's code is needed. ``note`` is told what
    was found out about the file.

    Raises:
        InputError: something asked for does not exist or fit.
    """
    if path is not None:
        checkpoint = read(path, trust_pickle=request.trust_pickle)
        for text in (*checkpoint.notes, *identify.introduce(checkpoint)):
            note(text)
        source, weights = str(path), weights_of(checkpoint)
        refuse_not_finite({name: weight.tensor for name, weight in weights.items()}, path)
    else:
        source, network = _untrained(request)
        weights = prunable_weights(network)
    return plan(
        source,
        weights,
        sparsity=sparsity_of(request, weights, SPARSITY),
        options=request.options,
        layers=request.layer,
        skip=request.skip,
        hoyer=hoyer,
    )


def _untrained(request: Request) -> tuple[str, nn.Module]:
    """Build the network that was typed; known data sets need not be at hand for it."""
    shape: tuple[int, ...]
    if request.data is None and (request.arch or "").startswith("mlp:"):
        widths = models.mlp_widths(request.arch or "")
        shape, outputs, data = (widths[0],), widths[-1], None
    elif request.data is None or request.data in SHAPES:
        data = request.data or "digits"
        shape, outputs = SHAPES[data]
    else:
        loaded = load_data(request)
        data, shape, outputs = loaded.name, loaded.input_shape, loaded.outputs
    arch = models.resolve(request.arch, shape, outputs)
    torch.manual_seed(request.seed)
    return f"{arch} on {data}" if data else arch, models.build(arch, shape, outputs)


def evaluate_file(
    path: Path, request: Request, callback: JobCallback | None = None
) -> tuple[str, dict[str, float]]:
    """Return the primary metric's name and the metrics of a checkpoint on the test split.

    Raises:
        InputError: the file or the data do not exist or fit.
    """
    callback = callback or JobCallback()
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        callback.on_note(note)
    model, _, data = restore(checkpoint, request, callback.on_note)
    for note in preprocessing_notes(data):
        callback.on_note(note)
    metrics = evaluate(model, data.test, data.task, device=device_of(request.device))
    return data.task.primary, metrics
