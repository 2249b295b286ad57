"""The ONNX files of one network: compacted, encoded, quantised, proven and timed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lpss_cli.data import Data
from lpss_cli.export.compaction.compact import Compacted, compact
from lpss_cli.export.onnx import runtime
from lpss_cli.export.onnx.check import compare
from lpss_cli.export.onnx.export import (
    EXAMPLES,
    checked_bytes,
    export_onnx,
    quantize,
    to_onnx,
)
from lpss_cli.export.onnx.runtime import run, run_torch
from lpss_cli.export.options import OnnxOptions
from lpss_cli.export.safetensors import Exported
from lpss_cli.utils.files import atomic_write
from lpss_cli.utils.torch_utils import forward_flops

# Floating-point operations that comparing outputs may take: half a minute of one slow core.
_WORK = 1e12
# Test examples that are compared whatever they cost, and at most.
_FEWEST, _MOST = 256, 10_000


def targets(path: Path, options: OnnxOptions) -> list[Path]:
    """Return the files that will be written: ``path``, and ``NAME.int8.onnx`` beside it."""
    return [path, path.with_suffix(".int8.onnx")] if options.int8 else [path]


def write_onnx(
    model: nn.Module, data: Data, path: Path, metadata: dict[str, str], options: OnnxOptions
) -> list[Exported]:
    """Write the network's ONNX files; outputs on test examples are those of ``model``.

    Args:
        model: the network as it was trained.
        data: its data; the test part proves, the training part calibrates int8.
        path: the fp32 file.
        metadata: texts stored in the files.
        options: which files, and how.

    Raises:
        RunError: a file is not the network; it has been removed.
    """
    model = copy.deepcopy(model).cpu().eval()
    x, y = _test_examples(model, data)
    reference = run_torch(model, x)
    compacted = compact(model, x[:2]) if options.compact else None
    network = compacted.model if compacted else model
    labels = data.task.name == "classification"
    written = export_onnx(
        network,
        x,
        path,
        metadata=metadata,
        reference=reference,
        encoding=options.encoding,
        labels=labels,
    )
    metrics = data.task.metrics(run(path, x), y)
    savings = compacted.savings if compacted else None
    files = [replace(written, metrics=metrics, savings=savings)]
    if options.int8:
        dense = checked_bytes(to_onnx(network, x))
        to = targets(path, options)[1]
        files.append(_write_int8(dense, data, to, metadata, (x, y, reference)))
    return _timed(files, model, compacted, x) if options.latency else files


# Name of the network before anything was removed, where it is timed for comparison.
_AS_IT_WAS = "with all units"


def _timed(
    files: list[Exported], model: nn.Module, compacted: Compacted | None, x: Tensor
) -> list[Exported]:
    """Add to each file its times; to the first, those of the network with all units too."""
    networks = {file.path: Path(file.path).read_bytes() for file in files}
    if compacted is not None and compacted.savings.changed:
        networks = {_AS_IT_WAS: checked_bytes(to_onnx(model, x)), **networks}
    times = runtime.measure_latency(networks, x)
    own = {file.path: tuple(t for t in times if t.network == file.path) for file in files}
    own[files[0].path] = tuple(t for t in times if t.network == _AS_IT_WAS) + own[files[0].path]
    return [replace(file, latency=own[file.path]) for file in files]


def _write_int8(
    dense: bytes,
    data: Data,
    path: Path,
    metadata: dict[str, str],
    examples: tuple[Tensor, Tensor, Tensor],
) -> Exported:
    """Write the quantised network and measure what that cost, on (inputs, targets, outputs)."""
    x, y, reference = examples
    with atomic_write(path) as temporary:
        temporary.write_bytes(quantize(dense, data.train, metadata))
        outputs = run(temporary, x)
        labels = data.task.name == "classification"
        found = compare(outputs, reference, path, labels=labels)
    count = min(EXAMPLES, len(data.train))
    checked = f"{len(x):,} real inputs through onnxruntime{found.said}; "
    checked += f"calibrated on {count:,} training inputs"
    metrics = data.task.metrics(outputs, y)
    size = path.stat().st_size
    return Exported(
        str(path),
        "onnx",
        size,
        checked,
        found.difference,
        len(x),
        found.changed,
        metrics,
        values="int8",
    )


def _test_examples(model: nn.Module, data: Data) -> tuple[Tensor, Tensor]:
    """Return the test part, or as much of it as can be compared in reasonable time."""
    first = next(iter(data.test.batches(2)))[0]
    affordable = int(_WORK / max(1.0, forward_flops(model, first)))
    count = min(len(data.test), _MOST, max(_FEWEST, affordable))
    # Spread evenly: a folder is in the order of its classes.
    order = torch.linspace(0, len(data.test) - 1, count).long()
    pairs = list(data.test.batches(_FEWEST, order=order))
    return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
