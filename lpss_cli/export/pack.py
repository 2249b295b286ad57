"""Packed files: written, read back from disk and compared; and back to safetensors.

The comparison computes what each tensor must be from the network, with PyTorch's rounding, and not
from what the encoder did.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lpss_cli.checkpoints import metadata
from lpss_cli.checkpoints.load_weights import load_into
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.checkpoints.packed import DEFAULT_VALUES, Entry, Unpacked, pack, unpack
from lpss_cli.data import Data
from lpss_cli.errors import InputError, RunError
from lpss_cli.export.safetensors import Exported, export_safetensors, provenance
from lpss_cli.report.report import weights_of
from lpss_cli.sparsity.patterns import bias_names
from lpss_cli.training.evaluation import evaluate
from lpss_cli.utils.files import atomic_write, check_writable

# Real inputs whose outputs are compared.
_COMPARED = 256


@dataclass(frozen=True)
class Trial:
    """What a packed network is tried on: the network before, its data, and where to compute."""

    model: nn.Module
    data: Data
    device: torch.device | str = "cpu"


def export_pack(
    checkpoint: Checkpoint,
    path: Path,
    *,
    values: str = DEFAULT_VALUES,
    trial: Trial | None = None,
) -> Exported:
    """Write a packed file and prove it.

    Args:
        checkpoint: finite; its history and its first weights stay behind.
        path: the file to write.
        values: type of the kept values: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        trial: the network and its data, where they are at hand.

    Raises:
        InputError: the checkpoint cannot be packed.
        RunError: the file reads back differently; no file is left.
    """
    prunable = list(weights_of(checkpoint))
    meta = metadata.exported(checkpoint.meta)
    about = {k: v for k, v in provenance(checkpoint).items() if k == "source_sha256"}
    biases = bias_names(checkpoint.state_dict, prunable)
    content = pack(checkpoint.state_dict, meta, prunable, values, biases=biases, about=about)
    difference, metrics = 0.0, None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        back = unpack(temporary.read_bytes())
        compare(checkpoint, back, path)
        if trial is not None:
            reread = read(temporary)
            difference, metrics = _try(trial, reread, exact=values == "fp32")
        if values == "fp32" and difference:
            raise RunError(f"{path} gives other outputs", "no file was left; please report it")
    codes = sorted({entry.values for entry in back.entries} - {"raw"})
    rounding = f"{', '.join(codes)} as rounded" if codes else "bit for bit"
    checked = f"every tensor, {rounding}, and every zero"
    size = path.stat().st_size
    return Exported(str(path), "pack", size, checked, difference, measured=metrics, values=values)


def _try(
    trial: Trial, packed: Checkpoint, exact: bool
) -> tuple[float, dict[str, tuple[float, float]] | None]:
    """Compare outputs on real inputs and, unless the weights are the same, all test metrics."""
    before = copy.deepcopy(trial.model).cpu().eval()
    after = copy.deepcopy(before)
    load_into(after, packed, str(packed.meta.get("arch")))
    x = next(iter(trial.data.test.batches(_COMPARED)))[0]
    with torch.no_grad():
        expected, got = before(x), after(x)
    scale = float(expected.abs().max()) or 1.0
    difference = float((expected - got).abs().max()) / scale
    if exact:
        return difference, None
    task = trial.data.task
    pairs = [evaluate(m, trial.data.test, task, device=trial.device) for m in (before, after)]
    return difference, {name: (value, pairs[1][name]) for name, value in pairs[0].items()}


def compare(checkpoint: Checkpoint, back: Unpacked, path: Path) -> None:
    """Check every tensor of a packed file against its source, bit for bit after rounding.

    Raises:
        RunError: names, order, types, shapes, zeros or values differ.
    """
    if list(back.state_dict) != list(checkpoint.state_dict):
        raise RunError(f"{path} reads back with other tensors", "no file was left")
    lines = {entry.name: _first(entry, back.entries) for entry in back.entries}
    pruned = {lines[name].name for name in weights_of(checkpoint)}
    for name, tensor in checkpoint.state_dict.items():
        got, line = back.state_dict[name], lines[name]
        wanted = rounded(tensor.detach().cpu(), line.values)
        if line.name in pruned:
            wanted = torch.where(wanted == 0, torch.zeros_like(wanted), wanted)
        same = got.dtype == wanted.dtype and got.shape == wanted.shape
        if not same or not torch.equal(_bits(got), _bits(wanted)):
            raise RunError(f"{path} reads back differently at {name}", "no file was left")
        if not torch.equal(got == 0, tensor.detach().cpu() == 0):
            raise RunError(f"{path} does not hold the zeros of {name}", "no file was left")


def _first(entry: Entry, entries: list[Entry]) -> Entry:
    return entry if entry.same is None else entries[entry.same]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def rounded(tensor: Tensor, code: str) -> Tensor:
    """Return what a tensor must be after it was stored under a code of docs/format.md.

    Args:
        tensor: of a floating type for every code but ``raw``.
        code: ``raw``, ``fp16``, ``bf16``, ``fp16-rows`` or ``int8-rows``.
    """
    if code == "raw" or not tensor.numel():
        return tensor
    values = tensor.float()
    if code == "fp16":
        return values.half().to(tensor.dtype)
    if code == "bf16":
        return values.bfloat16().to(tensor.dtype)
    rows = values.reshape(len(values), -1) if values.dim() else values.reshape(1, 1)
    largest = rows.abs().amax(dim=1, keepdim=True)
    if code == "fp16-rows":
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent - 14)
        got = (rows / scale).half().float() * scale
    else:
        scale = largest / 127
        steps = (rows / scale).round().clamp(-127, 127)
        got = torch.where(steps == 0, rows.sign(), steps) * scale
    got = torch.where(rows == 0, torch.zeros(()), got)
    return got.reshape(tensor.shape).to(tensor.dtype)


def unpack_file(path: Path, out: Path | None = None, *, force: bool = False) -> Exported:
    """Write a packed file's tensors and facts as masked safetensors, read back and compared.

    Args:
        path: the packed file.
        out: where to; None is beside it.
        force: replace an existing file.

    Raises:
        InputError: no packed file, a damaged one, or ``out`` exists.
    """
    checkpoint = read(path)
    if checkpoint.kind != "pack":
        raise InputError(f"{path} is no packed file", "`lpss export` writes and reads other kinds")
    return export_safetensors(
        checkpoint, check_writable(out or path.with_suffix(".safetensors"), force=force)
    )
