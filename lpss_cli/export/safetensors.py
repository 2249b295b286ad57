"""Masked safetensors: written, read back from disk and compared bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from lpss_cli.checkpoints import metadata, safetensors_file
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.errors import RunError
from lpss_cli.export.result import ExportedFile
from lpss_cli.reporting.report import exported_facts, weights_of
from lpss_cli.utils.files import atomic_write


def export_safetensors(checkpoint: Checkpoint, path: Path) -> ExportedFile:
    """Write all tensors, pruned weights as zeros, and compare what is read back.

    Args:
        checkpoint: the network; its training history is left out.
        path: the file to write.

    Raises:
        RunError: a tensor reads back with other bits; no file is left.
    """
    state = {n: t.detach().clone().contiguous() for n, t in checkpoint.state_dict.items()}
    record = metadata.for_export(checkpoint.meta)
    texts = {"lpss": json.dumps(record), "format": "pt", **provenance(checkpoint)}
    with atomic_write(path) as temporary:
        safetensors_file.write(temporary, state, texts)
        _compare(state, temporary, path)
    checked = "every tensor, bit for bit"
    return ExportedFile(str(path), "safetensors", path.stat().st_size, checked, 0.0)


def provenance(checkpoint: Checkpoint) -> dict[str, str]:
    """Return texts for programs that see only an exported file.

    ``sparsity`` is counted: zeros / prunable weights. ``method`` and ``p`` (JSON, by weight) are
    there if the checkpoint has them. ``source_sha256`` is the hash of the file it was read from.
    """
    weights = weights_of(checkpoint)
    total = sum(weight.tensor.numel() for weight in weights.values())
    zeros = sum(int((weight.tensor == 0).sum()) for weight in weights.values())
    texts = {"sparsity": f"{zeros / total:.10g}"} if total else {}
    if isinstance(checkpoint.meta.get("method"), str):
        texts["method"] = checkpoint.meta["method"]
    texts |= {name: json.dumps(values) for name, values in exported_facts(checkpoint).items()}
    if checkpoint.sha256:
        texts["source_sha256"] = checkpoint.sha256
    return texts


def _compare(state: dict[str, Tensor], written: Path, path: Path) -> None:
    """Compare every tensor of the file ``written``, which will be called ``path``."""
    from safetensors import safe_open

    with safe_open(written, framework="pt") as file:
        if set(file.keys()) != set(state):
            raise RunError(f"{path} reads back with other tensors", "no file was left")
        for name, tensor in state.items():
            if not same_bits(file.get_tensor(name), tensor):
                raise RunError(f"{path} reads back differently at {name}", "no file was left")


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors on the CPU have the same dtype, shape and bytes."""
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    return torch.equal(_bytes(first), _bytes(second))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().flatten().view(torch.uint8)
