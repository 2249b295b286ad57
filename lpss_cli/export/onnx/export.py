"""From a network to an ONNX file, dense or self-expanding, read back from disk and compared."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.data import Source
from lpss_cli.errors import RunError, one_line
from lpss_cli.export.onnx import sparse_encoding
from lpss_cli.export.onnx.check import check_unfolded, check_zeros, compare
from lpss_cli.export.onnx.runtime import explained_by_rounding, run, run_torch
from lpss_cli.export.safetensors import Exported
from lpss_cli.utils.files import atomic_write

# Largest difference of an ONNX output, as a part of the largest |logit|.
TOLERANCE = 1e-5
# The same where values are rounded to 11 bits.
_TOLERANCE_FP16 = 1e-2
_OPSET = 18


def export_onnx(
    model: nn.Module,
    inputs: Tensor,
    path: Path,
    *,
    metadata: dict[str, str] | None = None,
    reference: Tensor | None = None,
    encoding: str = "dense",
    values: str = "fp32",
    labels: bool = False,
) -> Exported:
    """Write an ONNX file with a dynamic batch and prove it with onnxruntime.

    Args:
        model: the network, in any mode; BatchNorm is folded by the exporter.
        inputs: (N ≥ 2, …) real inputs whose outputs are compared.
        path: the file to write.
        metadata: texts stored in the file.
        reference: outputs that ``inputs`` must give; None: those of ``model``.
        encoding: ``dense``, or ``gaps``: sparse weights unfold themselves (see ``gaps``).
        values: of the kept weights, for ``gaps``: ``fp32``, or ``fp16`` (rounded).
        labels: outputs are scores of classes; changed predictions are counted.

    Raises:
        RunError: outputs differ by more than ``TOLERANCE`` of the largest, or where rounding to
            fp32 does more to the network, by more than four times that; a zero of a weight is not
            zero in the file, or a weight unfolds to other bits; no file is left.
    """
    model = copy.deepcopy(model).cpu().eval()
    if reference is None:
        reference = run_torch(model, inputs)
    with atomic_write(path) as temporary:
        dense = to_onnx(model, inputs, metadata)
        if encoding == "gaps":
            dense = sparse_encoding.rounded(dense, values)
        proto = sparse_encoding.fold_weights(dense, values) if encoding == "gaps" else dense
        temporary.write_bytes(checked_bytes(proto))
        exact = values == "fp32" or encoding == "dense"
        tolerance = TOLERANCE if exact else _TOLERANCE_FP16
        found = compare(
            run(temporary, inputs),
            reference,
            path,
            tolerance=tolerance,
            explained=partial(explained_by_rounding, model, inputs),
            labels=labels,
        )
        # Rounding can make more zeros; it never takes one away.
        check_zeros(model, dense, path, rounded=not exact)
        if encoding == "gaps":
            check_unfolded(dense, temporary, inputs, path)
    checked = f"{len(inputs):,} real inputs through onnxruntime{found.said}, every weight's zeros"
    if encoding == "gaps":
        checked += ", unfolded weights and outputs bit for bit those of the dense file"
    size = path.stat().st_size
    count = len(inputs)
    return Exported(str(path), "onnx", size, checked, found.difference, count, found.changed)


def to_onnx(model: nn.Module, inputs: Tensor, metadata: dict[str, str] | None = None) -> Any:
    """Return the ONNX model of a network on the CPU, without the exporter's notes.

    Raises:
        RunError: PyTorch cannot export it.
    """
    try:
        program = _exported(model, inputs)
    except Exception as error:  # the exporter raises what the network makes it raise
        raise RunError(
            f"PyTorch cannot export this network: {one_line(error)[:300]}",
            "no file was left; --format safetensors does not need the exporter",
        ) from error
    proto = program.model_proto
    _strip(proto)
    for key, value in (metadata or {}).items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto


def checked_bytes(proto: Any) -> bytes:
    """Return the bytes of a model that the ONNX checker accepts."""
    import onnx

    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _exported(model: nn.Module, inputs: Tensor) -> Any:
    batch = torch.export.Dim("batch")
    with quiet():
        return torch.onnx.export(
            model,
            (inputs[:2],),
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=_OPSET,
            input_names=["input"],
            output_names=["output"],
            dynamic_shapes=({0: batch},),
        )


def _strip(proto: Any) -> None:
    """Drop the exporter's notes (stack traces, paths of this machine): 70 kB on a ResNet-20."""
    del proto.metadata_props[:]
    graph = proto.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
    for item in (*graph.node, *graph.initializer):
        item.doc_string = ""
    del graph.value_info[:]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress texts and advice of exporters away from the user's terminal."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch", None)
    loggers = [logging.getLogger(n) for n in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# MERGED: Static int8 of an ONNX network: ranges from training data, by onnxruntime's own tools.
# Training examples whose activations set the ranges.
EXAMPLES = 512
_BATCH = 64


def quantize(dense: bytes, training: Source, metadata: dict[str, str]) -> bytes:
    """Return a network with int8 weights (by row, zeros stay zero) and int8 activations.

    Weights and activations are stored in quantise-dequantise pairs (QDQ), which runtimes fuse.
    The ranges of activations are the extremes over examples spread evenly over the training part.

    Args:
        dense: the fp32 ONNX model.
        training: where calibration examples come from; never the test part.
        metadata: texts stored in the file.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, quiet():
        path = Path(folder, "int8.onnx")
        quantize_static(
            onnx.load_from_string(dense),
            path,
            _reader(training),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        proto = onnx.load(path, load_external_data=False)
    del proto.metadata_props[:]
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


def _reader(training: Source) -> Any:
    """Wrap training examples as onnxruntime wants them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self._batches = _examples(training)

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch by input name; None at the end."""
            x = next(self._batches, None)
            return None if x is None else {"input": x.numpy()}

    return Reader()


def _examples(training: Source) -> Iterator[Tensor]:
    count = min(EXAMPLES, len(training))
    order = torch.linspace(0, len(training) - 1, count).long()
    yield from (x for x, _ in training.batches(_BATCH, order=order))
