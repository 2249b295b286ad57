"""Static int8 of an ONNX network: ranges from training data, by onnxruntime's own tools."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.data import Source
from lpss_cli.exports.onnxfile import quiet

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
