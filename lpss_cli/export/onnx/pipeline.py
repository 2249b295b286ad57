"""The ONNX files of one network: compacted, encoded, quantized, checked and timed."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lpss_cli.data import Data
from lpss_cli.export.compaction.compact import Compacted, compact
from lpss_cli.export.onnx.check import compare_outputs
from lpss_cli.export.onnx.export import (
    CALIBRATION_EXAMPLES,
    export_onnx,
    quantize,
    serialize,
    to_onnx,
)
from lpss_cli.export.onnx.runtime import measure_latency, run_onnx, run_torch
from lpss_cli.export.options import OnnxOptions
from lpss_cli.export.result import ExportedFile
from lpss_cli.utils.files import atomic_write
from lpss_cli.utils.torch_utils import forward_flops

# Floating-point operations that comparing outputs may take: half a minute of one slow core.
_MAX_WORK = 1e12
# Test examples that are compared whatever they cost, and at most.
_MIN_EXAMPLES, _MAX_EXAMPLES = 256, 10_000
# Name of the network before units were removed, where it is timed for comparison.
_UNCOMPACTED = "with all units"


@dataclass(frozen=True)
class _TestExamples:
    """Test examples on which files are compared with the network.

    Attributes:
        inputs: (N, …) inputs.
        targets: (N, …) targets.
        outputs: (N, …) outputs of the network.
    """

    inputs: Tensor
    targets: Tensor
    outputs: Tensor


def output_paths(path: Path, options: OnnxOptions) -> list[Path]:
    """Return the files that will be written: ``path`` and perhaps ``NAME.int8.onnx`` beside it."""
    return [path, path.with_suffix(".int8.onnx")] if options.int8 else [path]


def write_onnx(
    model: nn.Module,
    data: Data,
    path: Path,
    metadata: Mapping[str, str],
    options: OnnxOptions,
    flops: float = 0.0,
) -> list[ExportedFile]:
    """Write the network's ONNX files; their outputs on test examples are those of ``model``.

    Args:
        model: the network as it was trained.
        data: its data: files are compared on the test split, int8 is calibrated on the training
            split.
        path: the fp32 file.
        metadata: texts to store in the files.
        options: which files to write, and how.
        flops: floating-point operations of a forward pass per example; 0: they are counted.

    Raises:
        RunError: a file is not the network; it has been removed.
    """
    model = copy.deepcopy(model).cpu().eval()
    examples = _test_examples(model, data, flops)
    compacted = compact(model, examples.inputs[:2]) if options.compact else None
    network = compacted.model if compacted else model
    written = export_onnx(
        network,
        examples.inputs,
        path,
        metadata=metadata,
        reference=examples.outputs,
        encoding=options.encoding,
        labels=data.task.name == "classification",
    )
    metrics = data.task.metrics(run_onnx(path, examples.inputs), examples.targets)
    savings = compacted.savings if compacted else None
    files = [replace(written, metrics=metrics, savings=savings)]
    if options.int8:
        dense = serialize(to_onnx(network, examples.inputs))
        int8_path = output_paths(path, options)[1]
        files.append(_write_int8(dense, data, int8_path, metadata, examples))
    if not options.latency:
        return files
    return _add_latency(files, model, compacted, examples.inputs)


def _test_examples(model: nn.Module, data: Data, flops: float) -> _TestExamples:
    """Return the test split, or as much of it as can be compared in reasonable time."""
    flops = flops or forward_flops(model, next(iter(data.test.batches(2)))[0])
    affordable = int(_MAX_WORK / max(1.0, flops))
    count = min(len(data.test), _MAX_EXAMPLES, max(_MIN_EXAMPLES, affordable))
    # Spread evenly, because a folder is in the order of its classes.
    order = torch.linspace(0, len(data.test) - 1, count).long()
    pairs = list(data.test.batches(_MIN_EXAMPLES, order=order))
    inputs, targets = torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])
    return _TestExamples(inputs, targets, run_torch(model, inputs))


def _write_int8(
    dense: bytes, data: Data, path: Path, metadata: Mapping[str, str], examples: _TestExamples
) -> ExportedFile:
    """Write the quantized network, and measure what quantization cost."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(quantize(dense, data.train, metadata))
        outputs = run_onnx(temporary, examples.inputs)
        labels = data.task.name == "classification"
        difference = compare_outputs(outputs, examples.outputs, path, labels=labels)
    count = len(examples.inputs)
    calibrated = min(CALIBRATION_EXAMPLES, len(data.train))
    return ExportedFile(
        str(path),
        "onnx",
        path.stat().st_size,
        f"{count:,} real inputs through onnxruntime{difference.note}; "
        f"calibrated on {calibrated:,} training inputs",
        difference.largest,
        count,
        difference.changed,
        data.task.metrics(outputs, examples.targets),
        values="int8",
    )


def _add_latency(
    files: list[ExportedFile], model: nn.Module, compacted: Compacted | None, inputs: Tensor
) -> list[ExportedFile]:
    """Add to each file its latency, and to the first one that of the network with all units."""
    networks = {file.path: Path(file.path).read_bytes() for file in files}
    if compacted is not None and compacted.savings.changed:
        networks = {_UNCOMPACTED: serialize(to_onnx(model, inputs)), **networks}
    latencies = measure_latency(networks, inputs)
    by_network = {
        name: tuple(latency for latency in latencies if latency.network == name)
        for name in networks
    }
    first = files[0].path
    by_network[first] = by_network.get(_UNCOMPACTED, ()) + by_network[first]
    return [replace(file, latency=by_network[file.path]) for file in files]
