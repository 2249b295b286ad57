"""From a checkpoint to files for other programs, each read back from disk and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints import metadata, safetensors_file
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.errors import RunError
from lpss_cli.report.flops import Savings
from lpss_cli.report.latency import Latency
from lpss_cli.report.report import exponents_of, weights_of
from lpss_cli.utils.files import atomic_write


@dataclass(frozen=True)
class Exported:
    """A written file and the proof that it holds the model.

    Attributes:
        path: the file.
        kind: one of ``options.FORMATS``.
        bytes: its size on disk.
        checked: what was compared, for people.
        largest_difference: of the outputs, relative to the largest |logit|; 0 for exact copies.
        compared: inputs whose outputs were compared.
        changed: how many of them are classified otherwise; None where nothing is classified.
        metrics: of the task on these inputs, computed with onnxruntime; None where not measured.
        savings: what removing dead units saved; None where that was not tried.
        latency: of the file, and of the network as it was where units were removed.
        measured: of a pack, on the test split, where it was at hand: name -> (before, in the file).
        values: type of the kept values in it.
    """

    path: str
    kind: str
    bytes: int
    checked: str
    largest_difference: float
    compared: int = 0
    changed: int | None = None
    metrics: Mapping[str, float] | None = None
    savings: Savings | None = None
    latency: tuple[Latency, ...] = ()
    measured: dict[str, tuple[float, float]] | None = None
    values: str = "fp32"

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        savings = self.savings.to_dict() if self.savings else None
        return {**asdict(self), "savings": savings}


def export_safetensors(checkpoint: Checkpoint, path: Path) -> Exported:
    """Write all tensors, masked weights as zeros, and read them back with NumPy.

    Raises:
        RunError: a tensor reads back with other bits; no file is left.
    """
    state = {n: t.detach().clone().contiguous() for n, t in checkpoint.state_dict.items()}
    described = metadata.exported(checkpoint.meta)
    with atomic_write(path) as temporary:
        facts = {"lpss": json.dumps(described), "format": "pt", **provenance(checkpoint)}
        safetensors_file.write(temporary, state, facts)
        _compare_tensors(state, temporary, path)
    return Exported(str(path), "safetensors", path.stat().st_size, "every tensor, bit for bit", 0.0)


def provenance(checkpoint: Checkpoint) -> dict[str, str]:
    """Return texts for programs that look at an exported file alone.

    ``sparsity`` is counted, zeros / prunable weights; ``method`` and ``p`` (JSON, by weight) are
    there if the checkpoint knows them; ``source_sha256`` is of the file it was read from.
    """
    weights = weights_of(checkpoint)
    total = sum(weight.tensor.numel() for weight in weights.values())
    zeros = sum(int((weight.tensor == 0).sum()) for weight in weights.values())
    facts = {"sparsity": f"{zeros / total:.10g}"} if total else {}
    if isinstance(checkpoint.meta.get("method"), str):
        facts["method"] = checkpoint.meta["method"]
    exponents = exponents_of(checkpoint)
    if exponents:
        facts["p"] = json.dumps(exponents)
    if checkpoint.sha256:
        facts["source_sha256"] = checkpoint.sha256
    return facts


def _compare_tensors(state: dict[str, Tensor], written: Path, path: Path) -> None:
    from safetensors import safe_open

    with safe_open(written, framework="pt") as file:
        names = set(file.keys())
        if names != set(state):
            raise RunError(f"{path} reads back with other tensors", "nothing was left on disk")
        for name, tensor in state.items():
            back = file.get_tensor(name)
            kind = back.dtype, back.shape
            if kind != (tensor.dtype, tensor.shape) or _bits(back) != _bits(tensor):
                raise RunError(f"{path} reads back differently at {name}", "no file was left")


def _bits(tensor: Tensor) -> bytes:
    flat = tensor.detach().contiguous().flatten()
    return hashlib.sha256(flat.view(torch.uint8).numpy().tobytes()).digest()
