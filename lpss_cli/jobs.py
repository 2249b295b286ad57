"""What the commands do, without any printing: train, sparsify, plan, evaluate, export."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from lpss_cli import artifact, manifest, models
from lpss_cli.data.spec import SHAPES
from lpss_cli.errors import InputError, nearest, one_line
from lpss_cli.evaluation import evaluate
from lpss_cli.exporting import FORMATS, Exported, export_onnx, export_safetensors
from lpss_cli.files import check_space, output
from lpss_cli.job import Job, JobWatcher, Outcome
from lpss_cli.loading import Checkpoint, read, refuse_not_finite
from lpss_cli.masks import check_sparsity
from lpss_cli.method import make
from lpss_cli.planning import Plan, plan
from lpss_cli.reporting import weights_of
from lpss_cli.request import (
    SPARSIFY_BUDGET,
    TRAIN_BUDGET,
    Request,
    check,
    device_of,
    load_data,
    restore,
    settings_for,
)
from lpss_cli.resuming import partial_of
from lpss_cli.weights import prunable

# Real inputs whose outputs an exported network must reproduce.
_COMPARED = 256
# What a program that runs the ONNX file needs beside the network.
_ONNX_METADATA = ("arch", "classes", "preprocessing", "sparsity", "method")


def train(request: Request, watcher: JobWatcher | None = None) -> Outcome:
    """Train a network from scratch and write its artefact.

    Raises:
        InputError: something asked for does not exist or fit; found before training.
        RunError: training diverged.
    """
    check(request)
    sparsity = check_sparsity(request.sparsity or 0.0)
    method = make(request.method or ("lpss" if sparsity else "dense"), request.options)
    with output(request.out, partial_of(request.out), force=request.force):
        data = load_data(request)
        arch = models.resolve(request.arch, data.input_shape, data.outputs)
        torch.manual_seed(request.seed)
        model = models.build(arch, data.input_shape, data.outputs)
        settings = settings_for(request, data, sparsity, TRAIN_BUDGET)
        job = Job(request, watcher or JobWatcher(), arch, data, method, settings)
        return job.run(model)


def sparsify(path: Path, request: Request, watcher: JobWatcher | None = None) -> Outcome:
    """Sparse-train a checkpoint to the target and write the sparse artefact.

    The run starts from exactly the function in the file; its metrics are measured first.

    Raises:
        InputError: the file, or something asked for, does not exist or fit.
        RunError: training diverged, or the count of zeros is not the one asked for.
    """
    watcher = watcher or JobWatcher()
    check(request)
    sparsity = check_sparsity(0.9 if request.sparsity is None else request.sparsity)
    method = make(request.method or "lpss", request.options)
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    with output(request.out, partial_of(request.out), force=request.force):
        model, arch, data = restore(checkpoint, request)
        for note in checkpoint.notes:
            watcher.on_note(note)
        settings = settings_for(request, data, sparsity, SPARSIFY_BUDGET, keep_zeros=True)
        job = Job(request, watcher, arch, data, method, settings, checkpoint)
        return job.run(model)


def plan_for(path: Path | None, request: Request, hoyer: float | None = None) -> Plan:
    """Plan a sparse training of a checkpoint, or of the network ``request.arch``.

    Neither the data nor, for a checkpoint, the network's code is needed.

    Raises:
        InputError: something asked for does not exist or fit.
    """
    if path is not None:
        source, weights = str(path), weights_of(read(path, trust_pickle=request.trust_pickle))
        refuse_not_finite({name: weight.tensor for name, weight in weights.items()}, path)
    else:
        source, network = _untrained(request)
        weights = prunable(network)
    return plan(
        source,
        weights,
        sparsity=0.9 if request.sparsity is None else request.sparsity,
        options=request.options,
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
    path: Path, request: Request, watcher: JobWatcher | None = None
) -> tuple[str, dict[str, float]]:
    """Return the primary metric's name and the metrics of a checkpoint on the test split.

    Raises:
        InputError: the file or the data do not exist or fit.
    """
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        (watcher or JobWatcher()).on_note(note)
    model, _, data = restore(checkpoint, request)
    metrics = evaluate(model, data.test, data.task, device=device_of(request.device))
    return data.task.primary, metrics


def export_file(
    path: Path,
    request: Request,
    formats: tuple[str, ...] = FORMATS,
    directory: Path | None = None,
    watcher: JobWatcher | None = None,
) -> list[Exported]:
    """Write a checkpoint in other formats beside it, each file read back and compared.

    Args:
        path: the checkpoint; ``model.pt`` becomes ``model.safetensors`` and ``model.onnx``.
        request: how to rebuild the network where the file does not say.
        formats: some of ``FORMATS``.
        directory: where to write instead.
        watcher: told what was folded or renamed on the way in.

    Raises:
        InputError: the file does not exist or fit, or an output exists.
        RunError: a written file is not the model; it has been removed.
    """
    for name in set(formats) - set(FORMATS):
        raise InputError(f"unknown format {name!r}", nearest(name, FORMATS))
    checkpoint = read(path, trust_pickle=request.trust_pickle)
    for note in checkpoint.notes:
        (watcher or JobWatcher()).on_note(note)
    directory = directory or path.parent
    targets = {name: directory / f"{path.stem}.{name}" for name in formats}
    targets = {name: to for name, to in targets.items() if to.resolve() != path.resolve()}
    if not targets:
        raise InputError(f"{path} is all that was asked for", f"pass --format {','.join(FORMATS)}")
    with contextlib.ExitStack() as held:
        for to in targets.values():
            held.enter_context(output(to, force=request.force, option="--out-dir"))
            check_space(to, artifact.size(checkpoint.state_dict), "--out-dir")
        written = _export(checkpoint, request, targets)
    return sorted(written, key=lambda file: formats.index(file.kind))


def _export(
    checkpoint: Checkpoint, request: Request, targets: Mapping[str, Path]
) -> list[Exported]:
    # Everything that can be refused is, before the first file is written.
    restored = restore(checkpoint, request) if "onnx" in targets else None
    written = []
    try:
        if restored is not None:
            model, _, data = restored
            x = next(iter(data.test.batches(_COMPARED)))[0]
            texts = {key: json.dumps(checkpoint.meta.get(key)) for key in _ONNX_METADATA}
            written.append(export_onnx(model, x, targets["onnx"], metadata=texts))
        if "safetensors" in targets:
            written.append(export_safetensors(_sealed(checkpoint), targets["safetensors"]))
    except (OSError, SafetensorError) as error:
        names = " and ".join(str(path) for path in targets.values())
        raise InputError(
            f"cannot write {names}: {one_line(error)}", "check space and permissions"
        ) from error
    return written


def _sealed(checkpoint: Checkpoint) -> Checkpoint:
    """Put the manifest into the record that a file of tensors alone will hold."""
    # The history stays in the artefact, and so do the weights that training began from.
    kept = {key: value for key, value in checkpoint.meta.items() if key != "history"}
    parts = {"state_dict": checkpoint.state_dict, "init": None}
    return replace(checkpoint, meta=manifest.seal(kept, parts))
