"""Packed files: written, read back from disk and compared; and unpacked to safetensors.

The comparison computes what each tensor must be from the network, with PyTorch's rounding, and does
not rely on the encoder.
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
from lpss_cli.export.result import ExportedFile
from lpss_cli.export.safetensors import export_safetensors, provenance, same_bits
from lpss_cli.models import ModelInfo
from lpss_cli.reporting.report import weights_of
from lpss_cli.sparsity.patterns import bias_names
from lpss_cli.training.evaluation import evaluate
from lpss_cli.utils.files import atomic_write, check_writable

# Real inputs whose outputs are compared.
_COMPARED = 256


@dataclass(frozen=True)
class Reference:
    """What a packed network is compared with.

    Attributes:
        model: the network before packing.
        info: what is known about it.
        data: its data; the test split is used.
        device: where to evaluate.
    """

    model: nn.Module
    info: ModelInfo
    data: Data
    device: torch.device | str = "cpu"


def export_pack(
    checkpoint: Checkpoint,
    path: Path,
    *,
    values: str = DEFAULT_VALUES,
    reference: Reference | None = None,
) -> ExportedFile:
    """Write a packed file and prove that it holds the network.

    Args:
        checkpoint: the network, with finite tensors. Its training history and its initial weights
            are left out.
        path: the file to write.
        values: type of the kept values: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        reference: the network and its data, if they are available: outputs and test metrics are
            compared then.

    Raises:
        InputError: the checkpoint cannot be packed.
        RunError: the file reads back differently; no file is left.
    """
    prunable = list(weights_of(checkpoint))
    meta = metadata.for_export(checkpoint.meta)
    about = {k: v for k, v in provenance(checkpoint).items() if k == "source_sha256"}
    biases = bias_names(checkpoint.state_dict, prunable)
    content = pack(checkpoint.state_dict, meta, prunable, values, biases=biases, about=about)
    difference, metrics = 0.0, None
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        unpacked = unpack(temporary.read_bytes())
        check_tensors(checkpoint, unpacked, path)
        if reference is not None:
            exact = values == "fp32"
            difference, metrics = _compare_networks(reference, read(temporary), exact=exact)
        if values == "fp32" and difference:
            raise RunError(f"{path} gives other outputs", "no file was left; please report it")
    codes = sorted({entry.values for entry in unpacked.entries} - {"raw"})
    rounding = f"rounded to {', '.join(codes)}" if codes else "bit for bit"
    checked = f"every tensor, {rounding}, and every zero"
    size = path.stat().st_size
    return ExportedFile(
        str(path), "pack", size, checked, difference, measured=metrics, values=values
    )


def _compare_networks(
    reference: Reference, packed: Checkpoint, exact: bool
) -> tuple[float, dict[str, tuple[float, float]] | None]:
    """Compare outputs on real inputs and, unless the weights are exact, all test metrics."""
    before = copy.deepcopy(reference.model).cpu().eval()
    after = copy.deepcopy(before)
    load_into(after, packed, reference.info)
    test = reference.data.test
    inputs = next(iter(test.batches(_COMPARED)))[0]
    with torch.no_grad():
        expected, outputs = before(inputs), after(inputs)
    scale = float(expected.abs().max()) or 1.0
    difference = float((expected - outputs).abs().max()) / scale
    if exact:
        return difference, None
    old, new = (
        evaluate(model, test, reference.data.task, device=reference.device)
        for model in (before, after)
    )
    return difference, {name: (value, new[name]) for name, value in old.items()}


def check_tensors(checkpoint: Checkpoint, unpacked: Unpacked, path: Path) -> None:
    """Check every tensor of a packed file against its source, bit for bit after rounding.

    Raises:
        RunError: names, order, dtypes, shapes, zeros or values differ.
    """
    if list(unpacked.state_dict) != list(checkpoint.state_dict):
        raise RunError(f"{path} reads back with other tensors", "no file was left")
    originals = {entry.name: _original(entry, unpacked.entries) for entry in unpacked.entries}
    pruned = {originals[name].name for name in weights_of(checkpoint)}
    for name, tensor in checkpoint.state_dict.items():
        stored, entry = unpacked.state_dict[name], originals[name]
        source = tensor.detach().cpu()
        expected = round_to_code(source, entry.values)
        if entry.name in pruned:  # of these, the sign of zeros is not kept
            expected = torch.where(expected == 0, torch.zeros_like(expected), expected)
        if not same_bits(stored, expected):
            raise RunError(f"{path} reads back differently at {name}", "no file was left")
        if not torch.equal(stored == 0, source == 0):
            raise RunError(f"{path} does not hold the zeros of {name}", "no file was left")


def _original(entry: Entry, entries: list[Entry]) -> Entry:
    return entry if entry.copy_of is None else entries[entry.copy_of]


def round_to_code(tensor: Tensor, code: str) -> Tensor:
    """Return what a tensor must be after it was stored under a code of docs/format.md.

    Args:
        tensor: the source, of a floating-point dtype for every code but ``raw``.
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
        rounded = (rows / scale).half().float() * scale
    else:
        scale = largest / 127
        steps = (rows / scale).round().clamp(-127, 127)
        rounded = torch.where(steps == 0, rows.sign(), steps) * scale
    rounded = torch.where(rows == 0, torch.zeros(()), rounded)
    return rounded.reshape(tensor.shape).to(tensor.dtype)


def unpack_file(path: Path, out: Path | None = None, *, force: bool = False) -> ExportedFile:
    """Write a packed file's tensors and metadata as masked safetensors, read back and compared.

    Args:
        path: the packed file.
        out: the file to write; None for the same name with ``.safetensors``.
        force: replace an existing file.

    Raises:
        InputError: the file is damaged or is not a packed file, or ``out`` exists.
    """
    checkpoint = read(path)
    if checkpoint.kind != "pack":
        raise InputError(
            f"{path} is not a packed file", "`lpss export` reads checkpoints of other kinds"
        )
    return export_safetensors(
        checkpoint, check_writable(out or path.with_suffix(".safetensors"), force=force)
    )
