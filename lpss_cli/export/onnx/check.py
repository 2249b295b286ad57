"""What must hold of a written ONNX file: outputs, zeros and unfolded weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from lpss_cli.errors import RunError
from lpss_cli.export.onnx.runtime import run
from lpss_cli.export.onnx.sparse_encoding import unfolded
from lpss_cli.sparsity.prunable import prunable_weights

# Inputs whose outputs must be the same bits.
_BITWISE = 256


@dataclass(frozen=True)
class Difference:
    """How two networks' outputs differ on the same inputs.

    Attributes:
        difference: the largest, as a part of the largest |output|.
        changed: inputs that are classified otherwise; None where nothing is classified.
    """

    difference: float
    changed: int | None

    @property
    def said(self) -> str:
        """The changed predictions for people, after a comma; empty where there are no classes."""
        return "" if self.changed is None else f", {self.changed:,} predictions changed"


def compare(
    outputs: Tensor,
    reference: Tensor,
    path: Path,
    *,
    tolerance: float = float("inf"),
    explained: Callable[[], float] = float,
    labels: bool = False,
) -> Difference:
    """Compare a file's outputs with those of the network.

    Args:
        outputs: of the file.
        reference: of the network, of the same shape.
        path: the file, for the message.
        tolerance: largest difference allowed.
        explained: tells the largest that rounding explains; asked where ``tolerance`` does not do.
        labels: outputs are (N, C) scores of classes.

    Raises:
        RunError: they differ by more, or are no numbers.
    """
    scale = float(reference.abs().max()) or 1.0
    difference = float((outputs - reference).abs().max()) / scale
    if not difference <= tolerance:
        tolerance = max(tolerance, explained())
    if not difference <= tolerance:
        raise RunError(
            f"{path} gives outputs that differ by {difference:.1e} of the largest",
            f"more than {tolerance:.0e} is refused and no file was left; please report it",
        )
    changed = int((outputs.argmax(1) != reference.argmax(1)).sum()) if labels else None
    return Difference(difference, changed)


def check_zeros(model: nn.Module, proto: Any, path: Path, *, rounded: bool = False) -> None:
    """Every prunable weight is found in the dense file and none of its zeros came alive.

    A weight may be scaled (BatchNorm folding, by 0 in a channel of scale 0), transposed or split
    (attention) on the way.

    Args:
        model: the network that was exported.
        proto: the dense model.
        path: the file, for the message.
        rounded: the file's values are rounded to fp16: transposed ones are compared likewise.

    Raises:
        RunError: a weight is not there, or a zero of it is another number.
    """
    from onnx import numpy_helper

    stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    weights = prunable_weights(model)
    rest = [array for name, array in stored.items() if name not in weights]
    for name, weight in weights.items():
        tensor = weight.tensor.detach().numpy()
        if name in stored and stored[name].shape == tensor.shape:
            same = not stored[name][tensor == 0].any()
        else:
            if rounded:
                tensor = tensor.astype(np.float16).astype(tensor.dtype)
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


def check_unfolded(dense: Any, written: Path, inputs: Tensor, path: Path) -> None:
    """A self-expanding file gives the weights and the outputs of the dense one, bit for bit.

    Zeros may differ in their sign.

    Args:
        dense: the model whose weights are all stored.
        written: the self-expanding file.
        inputs: (N, …) real inputs; the first few hundred are used.
        path: the file's final name, for the message.

    Raises:
        RunError: a number differs.
    """
    import onnx

    proto = onnx.load(written, load_external_data=False)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in dense.graph.initializer}
    for name, array in unfolded(proto).items():
        if not np.array_equal(array, stored[name]):
            raise RunError(f"{path} unfolds {name} to other numbers", "no file was left")
    some = inputs[:_BITWISE]
    if not run(dense.SerializeToString(), some).equal(run(written, some)):
        raise RunError(f"{path} gives other bits than the dense file", "no file was left")
