"""What must hold for a written ONNX file: its outputs, its zeros and its expanded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lpss_cli.errors import RunError
from lpss_cli.export.onnx.runtime import run_onnx
from lpss_cli.export.onnx.sparse_encoding import expand_weights
from lpss_cli.sparsity.prunable import prunable_weights

# Inputs whose outputs must be the same bits.
_BITWISE = 256


@dataclass(frozen=True)
class OutputDifference:
    """How the outputs of two networks differ on the same inputs.

    Attributes:
        largest: the largest difference, relative to the largest |output|.
        changed: number of inputs that are classified differently; None if nothing is classified.
    """

    largest: float
    changed: int | None

    @property
    def note(self) -> str:
        """The number of changed predictions in words, after a comma; empty without classes."""
        return "" if self.changed is None else f", {self.changed:,} predictions changed"


def compare_outputs(
    outputs: Tensor,
    reference: Tensor,
    path: Path,
    *,
    tolerance: float = float("inf"),
    rounding: Callable[[], float] = float,
    labels: bool = False,
) -> OutputDifference:
    """Compare a file's outputs with those of the network.

    Args:
        outputs: outputs of the file.
        reference: outputs of the network, of the same shape.
        path: name of the file, for messages.
        tolerance: largest difference allowed, relative to the largest |output|.
        rounding: returns a larger tolerance that the network's rounding explains; it is called only
            if the difference exceeds ``tolerance``.
        labels: the outputs are (N, C) scores of classes.

    Raises:
        RunError: the outputs differ by more, or are not numbers.
    """
    scale = float(reference.abs().max()) or 1.0
    largest = float((outputs - reference).abs().max()) / scale
    # "not <=" holds for NaN too.
    if not largest <= tolerance:
        tolerance = max(tolerance, rounding())
    if not largest <= tolerance:
        raise RunError(
            f"the outputs of {path} differ by {largest:.1e} of the largest output",
            f"at most {tolerance:.0e} is allowed, so no file was left; please report it",
        )
    changed = int((outputs.argmax(1) != reference.argmax(1)).sum()) if labels else None
    return OutputDifference(largest, changed)


def check_zeros(model: nn.Module, proto: Any, path: Path, *, rounded: bool = False) -> None:
    """Check that the dense file holds every prunable weight and that its zeros are still zero.

    On the way a weight may have been scaled (BatchNorm folding, by 0 in a channel of scale 0),
    transposed, or split (attention).

    Args:
        model: the network that was exported.
        proto: the dense model.
        path: name of the file, for messages.
        rounded: the file's values are rounded to fp16, so transposed and split weights are rounded
            before they are compared.

    Raises:
        RunError: a weight is missing, or one of its zeros is not zero.
    """
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = prunable_weights(model)
    unnamed = [array for name, array in stored.items() if name not in weights]
    for name, weight in weights.items():
        tensor = weight.tensor.detach().numpy()
        if name in stored and stored[name].shape == tensor.shape:
            same = not stored[name][tensor == 0].any()
        else:
            if rounded:
                tensor = tensor.astype(np.float16).astype(tensor.dtype)
            same = any(all(_is_among(part, unnamed) for part in parts) for parts in _splits(tensor))
        if not same:
            raise RunError(
                f"{path} does not hold the zeros of {name}", "no file was left; please report it"
            )


def _splits(tensor: np.ndarray) -> Iterator[list[np.ndarray]]:
    yield [tensor]
    if tensor.ndim == 2 and len(tensor) % 3 == 0:
        yield list(np.split(tensor, 3))  # query, key and value


def _is_among(part: np.ndarray, arrays: list[np.ndarray]) -> bool:
    return any(np.array_equal(a, part) or np.array_equal(a, part.T) for a in arrays)


def check_expansion(dense: Any, written: Path, inputs: Tensor, path: Path) -> None:
    """Check that a self-expanding file has the weights and outputs of the dense one, bit for bit.

    Zeros may differ in their sign.

    Args:
        dense: the model that stores all its weights.
        written: the self-expanding file.
        inputs: (N, …) real inputs; the first few hundred are used.
        path: final name of the file, for messages.

    Raises:
        RunError: a number differs.
    """
    import onnx

    proto = onnx.load(written, load_external_data=False)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in dense.graph.initializer}
    for name, array in expand_weights(proto).items():
        if not np.array_equal(array, stored[name]):
            raise RunError(f"{path} expands {name} to other numbers", "no file was left")
    inputs = inputs[:_BITWISE]
    if not run_onnx(dense.SerializeToString(), inputs).equal(run_onnx(written, inputs)):
        raise RunError(f"{path} gives other bits than the dense file", "no file was left")
