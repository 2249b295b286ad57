"""Sparse training of a checkpoint: from a request to a written artifact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.training_state import TrainingStateFiles
from lpss_cli.errors import InputError
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request, check
from lpss_cli.jobs.resolve import (
    output_beside,
    restore,
    settings_for,
    sparsity_of,
)
from lpss_cli.jobs.sparsity_search import search
from lpss_cli.jobs.training_job import Job, Outcome, share_output
from lpss_cli.sparsity.prunable import trainable_weights
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.method import make
from lpss_cli.training.options import SPARSIFY_BUDGET, SPARSITY


def sparsify_checkpoint(
    path: Path, request: Request, callback: JobCallback | None = None
) -> Outcome:
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
    with share_output(request) as (request, distributed):
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
