"""``lpss sparsify``: sparse training of a checkpoint, or one-shot pruning of a bare file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lpss_cli.jobs import oneshot
from lpss_cli.jobs.callbacks import JobCallback
from lpss_cli.jobs.config import Request

if TYPE_CHECKING:
    from lpss_cli.jobs.oneshot import OneShotResult
    from lpss_cli.jobs.training_job import Outcome


def sparsify(
    path: Path, request: Request, callback: JobCallback | None = None
) -> Outcome | OneShotResult:
    """Make a checkpoint sparse: by training, or at once where only its tensors are known.

    Without epochs, network and data, a safetensors file of other origin is pruned in blocks, which
    does not need PyTorch.

    Args:
        path: The checkpoint.
        request: What was asked for; without a file to write, it is named after the checkpoint.
        callback: Sees the training.

    Raises:
        InputError: The file, or something asked for, does not exist or fit.
        RunError: Training diverged, or the number of zeros is not the one asked for.
    """
    if oneshot.applies(path, request):
        return oneshot.prune_file(path, request, callback or JobCallback())
    from lpss_cli.jobs import sparse_training

    return sparse_training.sparsify_checkpoint(path, request, callback)
