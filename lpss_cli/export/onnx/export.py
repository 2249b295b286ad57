"""From a network to ONNX: dense, self-expanding or int8.

:func:`export_onnx` reads the file back from disk and compares it with the network.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.data import Source
from lpss_cli.errors import RunError, one_line
from lpss_cli.export.onnx import sparse_encoding
from lpss_cli.export.onnx.check import check_expansion, check_zeros, compare_outputs
from lpss_cli.export.onnx.runtime import rounding_tolerance, run_onnx, run_torch
from lpss_cli.export.result import ExportedFile
from lpss_cli.utils.files import atomic_write

#: Largest difference of an output, relative to the largest |output|.
TOLERANCE = 1e-5
#: Training examples whose activations set the ranges of int8.
CALIBRATION_EXAMPLES = 512
# Like TOLERANCE, for values that are rounded to 11 bits.
_TOLERANCE_FP16 = 1e-2
_CALIBRATION_BATCH = 64
_OPSET = 18


def export_onnx(
    model: nn.Module,
    inputs: Tensor,
    path: Path,
    *,
    metadata: Mapping[str, str] | None = None,
    reference: Tensor | None = None,
    encoding: str = "dense",
    values: str = "fp32",
    labels: bool = False,
) -> ExportedFile:
    """Write an ONNX file with a dynamic batch size, and prove with onnxruntime that it is right.

    Args:
        model: the network, in any mode; the exporter folds BatchNorm.
        inputs: (N ≥ 2, …) real inputs whose outputs are compared.
        path: the file to write.
        metadata: texts to store in the file.
        reference: outputs that ``inputs`` must give; None for those of ``model``.
        encoding: ``dense``, or ``gaps`` for sparse weights that expand themselves
            (:mod:`sparse_encoding`).
        values: type of the kept weights for ``gaps``: ``fp32``, or ``fp16`` (rounded).
        labels: the outputs are scores of classes; changed predictions are counted.

    Raises:
        RunError: outputs differ by more than ``TOLERANCE`` of the largest (or, in a network that
            amplifies rounding, by more than four times what rounding to fp32 does to it), a zero of
            a weight is not zero in the file, or a weight expands to other bits. No file is left.
    """
    model = copy.deepcopy(model).cpu().eval()
    if reference is None:
        reference = run_torch(model, inputs)
    with atomic_write(path) as temporary:
        dense = to_onnx(model, inputs, metadata)
        if encoding == "gaps":
            dense = sparse_encoding.round_weights(dense, values)
            proto = sparse_encoding.encode_weights(dense, values)
        else:
            proto = dense
        temporary.write_bytes(serialize(proto))
        exact = values == "fp32" or encoding == "dense"
        difference = compare_outputs(
            run_onnx(temporary, inputs),
            reference,
            path,
            tolerance=TOLERANCE if exact else _TOLERANCE_FP16,
            rounding=partial(rounding_tolerance, model, inputs),
            labels=labels,
        )
        # Rounding can make more zeros; it never takes one away.
        check_zeros(model, dense, path, rounded=not exact)
        if encoding == "gaps":
            check_expansion(dense, temporary, inputs, path)
    count, size = len(inputs), path.stat().st_size
    checked = f"{count:,} real inputs through onnxruntime{difference.note}, every weight's zeros"
    if encoding == "gaps":
        checked += ", expanded weights and outputs bit for bit those of the dense file"
    return ExportedFile(
        str(path), "onnx", size, checked, difference.largest, count, difference.changed
    )


def to_onnx(model: nn.Module, inputs: Tensor, metadata: Mapping[str, str] | None = None) -> Any:
    """Return the ONNX model of a network on the CPU, without the exporter's annotations.

    Args:
        model: the network in evaluation mode.
        inputs: (N ≥ 2, …) inputs; only their shape and dtype matter.
        metadata: texts to store in the model.

    Raises:
        RunError: PyTorch cannot export the network.
    """
    try:
        program = _torch_export(model, inputs)
    except Exception as error:  # the exporter raises whatever the network makes it raise
        raise RunError(
            f"PyTorch cannot export this network: {one_line(error)[:300]}",
            "no file was left; --format safetensors does not need the exporter",
        ) from error
    proto = program.model_proto
    _strip(proto)
    _set_metadata(proto, metadata or {})
    return proto


def quantize(dense: bytes, training: Source, metadata: Mapping[str, str]) -> bytes:
    """Return a network with int8 weights (by row, zeros stay zero) and int8 activations.

    onnxruntime's own tools store weights and activations in quantize-dequantize pairs (QDQ), which
    runtimes fuse. The range of an activation is what it takes on over examples that are spread
    evenly over the training split.

    Args:
        dense: the fp32 ONNX model.
        training: source of the calibration examples; never the test split.
        metadata: texts to store in the file.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder, silenced():
        path = Path(folder, "int8.onnx")
        quantize_static(
            onnx.load_from_string(dense),
            path,
            _calibration_reader(training),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
        )
        proto = onnx.load(path, load_external_data=False)
    del proto.metadata_props[:]
    _set_metadata(proto, metadata)
    return serialize(proto)


def serialize(proto: Any) -> bytes:
    """Return the bytes of a model, after the ONNX checker has accepted it."""
    import onnx

    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep progress messages and advice of the exporters away from the user's terminal."""
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


def _torch_export(model: nn.Module, inputs: Tensor) -> Any:
    batch = torch.export.Dim("batch")
    with silenced():
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
    """Drop the exporter's stack traces and paths of this machine: 70 kB for a ResNet-20."""
    del proto.metadata_props[:]
    graph = proto.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del item.metadata_props[:]
    for item in (*graph.node, *graph.initializer):
        item.doc_string = ""
    del graph.value_info[:]


def _set_metadata(proto: Any, metadata: Mapping[str, str]) -> None:
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def _calibration_reader(training: Source) -> Any:
    """Return training examples in the form that onnxruntime expects."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # untyped base
        def __init__(self) -> None:
            self._batches = _calibration_batches(training)

        def get_next(self) -> dict[str, Any] | None:
            """Return the next batch by input name; None at the end."""
            inputs = next(self._batches, None)
            return None if inputs is None else {"input": inputs.numpy()}

    return Reader()


def _calibration_batches(training: Source) -> Iterator[Tensor]:
    count = min(CALIBRATION_EXAMPLES, len(training))
    order = torch.linspace(0, len(training) - 1, count).long()
    yield from (inputs for inputs, _ in training.batches(_CALIBRATION_BATCH, order=order))
