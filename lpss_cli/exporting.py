"""From a checkpoint to files for other programs, each read back from disk and compared."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpss_cli.artifact import sha256
from lpss_cli.errors import RunError, one_line
from lpss_cli.files import replacing
from lpss_cli.loading import Checkpoint
from lpss_cli.reporting import exponents_of, weights_of
from lpss_cli.weights import prunable

FORMATS = ("safetensors", "onnx", "pack")
# Largest difference of an ONNX output, as a part of the largest |logit|.
TOLERANCE = 1e-5
_OPSET = 18


@dataclass(frozen=True)
class Exported:
    """A written file and the proof that it holds the model.

    Attributes:
        path: the file.
        kind: one of ``FORMATS``.
        bytes: its size on disk.
        checked: what was compared, for people.
        largest_difference: of the outputs, relative to the largest |logit|; 0 for exact copies.
        metrics: on the test split, where it was at hand: name -> (before, in the file).
    """

    path: str
    kind: str
    bytes: int
    checked: str
    largest_difference: float
    metrics: dict[str, tuple[float, float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return asdict(self)


def export_safetensors(checkpoint: Checkpoint, path: Path) -> Exported:
    """Write all tensors, masked weights as zeros, and read them back with NumPy.

    Raises:
        RunError: a tensor reads back with other bits; no file is left.
    """
    from safetensors.torch import save_file

    state = {n: t.detach().clone().contiguous() for n, t in checkpoint.state_dict.items()}
    described = {key: value for key, value in checkpoint.meta.items() if key != "history"}
    with replacing(path) as temporary:
        facts = {"lpss": json.dumps(described), "format": "pt", **provenance(checkpoint)}
        save_file(state, temporary, metadata=facts)
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
    if checkpoint.path.is_file():
        facts["source_sha256"] = sha256(checkpoint.path)
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


def export_onnx(
    model: nn.Module,
    inputs: Tensor,
    path: Path,
    *,
    metadata: dict[str, str] | None = None,
) -> Exported:
    """Write an ONNX file with a dynamic batch and prove it with onnxruntime.

    Args:
        model: the network, in any mode; BatchNorm is folded by the exporter.
        inputs: (N ≥ 2, …) real inputs whose outputs are compared.
        path: the file to write.
        metadata: texts stored in the file.

    Raises:
        RunError: outputs differ by more than ``TOLERANCE`` of the largest, or a zero of a weight is
            not zero in the file; no file is left.
    """
    model = copy.deepcopy(model).cpu().eval()
    with replacing(path) as temporary:
        try:
            content = _to_onnx(model, inputs, metadata or {})
        except Exception as error:  # the exporter raises what the network makes it raise
            raise RunError(
                f"PyTorch cannot export this network: {one_line(error)[:300]}",
                "no file was left; --format safetensors does not need the exporter",
            ) from error
        temporary.write_bytes(content)
        difference = _compare_outputs(model, inputs, temporary, path)
        _compare_zeros(model, temporary, path)
    checked = f"{len(inputs)} real inputs through onnxruntime, every weight's zeros"
    return Exported(str(path), "onnx", path.stat().st_size, checked, difference)


def _to_onnx(model: nn.Module, inputs: Tensor, metadata: dict[str, str]) -> bytes:
    import onnx

    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.onnx.export(
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
    assert program is not None  # only the old exporter returns nothing
    proto = program.model_proto
    _strip(proto)
    for key, value in metadata.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(proto, full_check=True)
    data: bytes = proto.SerializeToString()
    return data


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
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress texts and advice away from the user's terminal."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx", "onnxscript", "onnx_ir", "torch")]
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


def _compare_outputs(model: nn.Module, inputs: Tensor, written: Path, path: Path) -> float:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(written, options, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"input": inputs.numpy()})
    with torch.no_grad():
        expected = model(inputs).numpy()
    scale = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(got - expected).max()) / scale
    if not difference <= TOLERANCE:
        raise RunError(
            f"{path} gives outputs that differ by {difference:.1e} of the largest",
            f"more than {TOLERANCE:g} is refused and no file was left; please report it",
        )
    return difference


def _compare_zeros(model: nn.Module, written: Path, path: Path) -> None:
    """Every prunable weight is found in the file and none of its zeros came alive.

    A weight may be scaled (BatchNorm folding, by 0 in a channel of scale 0), transposed or split
    (attention) on the way.
    """
    import onnx

    proto = onnx.load(written, load_external_data=False)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = prunable(model)
    rest = [array for name, array in stored.items() if name not in weights]
    for name, weight in weights.items():
        tensor = weight.tensor.detach().numpy()
        if name in stored and stored[name].shape == tensor.shape:
            same = not stored[name][tensor == 0].any()
        else:
            same = any(all(_found(part, rest) for part in parts) for parts in _splits(tensor))
        if not same:
            raise RunError(
                f"{path} does not hold the zeros of {name}", "no file was left; please report it"
            )


def _splits(tensor: np.ndarray) -> Iterator[list[np.ndarray]]:
    yield [tensor]
    if tensor.ndim == 2 and len(tensor) % 3 == 0:
        yield list(np.split(tensor, 3))  # query, key and value


def _found(part: np.ndarray, arrays: list[np.ndarray]) -> bool:
    return any(np.array_equal(a, part) or np.array_equal(a, part.T) for a in arrays)
