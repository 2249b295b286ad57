"""Are two files the same network? Every tensor, every zero, and the predictions."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.checkpoints.load_weights import load_into
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data import Data
from lpss_cli.errors import InputError
from lpss_cli.export.onnx.runtime import is_onnx_file, rounding_tolerance, run_foreign_onnx
from lpss_cli.jobs.config import Request, check, device_of
from lpss_cli.jobs.restore import build, restore
from lpss_cli.training.evaluation import outputs

#: Largest difference of an output, as a part of the largest, that another runtime's order of
#: additions explains.
ROUNDING = 1e-5
_BATCH = 256


@dataclass(frozen=True)
class Difference:
    """One tensor in two files.

    Attributes:
        name: of the tensor.
        what: ``""``, or why it cannot be compared: ``only in A``, ``only in B``, another shape or
            type.
        count: entries.
        different: entries with another value; NaN equals NaN, and -0.0 equals 0.0.
        largest: largest |a - b|; infinite where one of the two is no number.
        zeros: zeros in A and in B.
        same_zeros: whether they are the same ones.
    """

    name: str
    what: str
    count: int = 0
    different: int = 0
    largest: float = 0.0
    zeros: tuple[int, int] = (0, 0)
    same_zeros: bool = False


@dataclass(frozen=True)
class Predictions:
    """What both networks say of the test split.

    Attributes:
        examples: their number.
        changed: examples whose class changed; None for tasks without classes.
        largest: largest difference of an output, as a part of the largest |output| of A.
        metrics: name -> (A, B).
    """

    examples: int
    changed: int | None
    largest: float
    metrics: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Verification:
    """The whole comparison; ``equal`` says whether it passes at the tolerance.

    Attributes:
        a, b: the files.
        tolerance: of entries; of outputs, as a part of the largest, where B is an ONNX file.
        tensors: each of them; empty where B is an ONNX file, which has no tensors of these names.
        predictions: of both networks, where data are known.
    """

    a: str
    b: str
    tolerance: float
    tensors: list[Difference]
    predictions: Predictions | None = None

    @property
    def by_outputs(self) -> bool:
        """Whether outputs were compared in place of tensors."""
        return not self.tensors and self.predictions is not None

    @property
    def equal(self) -> bool:
        """Whether both hold the same tensors with entries at most ``tolerance`` apart.

        Of an ONNX file: whether its outputs are, and every prediction is the same.
        """
        if self.by_outputs and self.predictions is not None:
            return not self.predictions.changed and self.predictions.largest <= self.tolerance
        # Counted at 0, for large integers differ by less than a double tells apart.
        return all(
            not x.what and (not x.different or 0 < self.tolerance >= x.largest)
            for x in self.tensors
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(self), "equal": self.equal}


def compare(a: Tensor, b: Tensor, name: str) -> Difference:
    """Compare one tensor entry by entry."""
    if a.shape != b.shape:
        return Difference(name, f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype:
        kinds = [str(t.dtype).removeprefix("torch.") for t in (a, b)]
        return Difference(name, f"types {kinds[0]} and {kinds[1]}")
    unequal = (a != b) & ~((a != a) & (b != b))
    wide = torch.complex128 if a.is_complex() else torch.float64
    gaps = (a[unequal].to(wide) - b[unequal].to(wide)).abs()
    largest = float(gaps.nan_to_num(math.inf, math.inf).max()) if len(gaps) else 0.0
    zeros = (a == 0, b == 0)
    return Difference(
        name,
        "",
        a.numel(),
        int(unequal.sum()),
        largest,
        (int(zeros[0].sum()), int(zeros[1].sum())),
        torch.equal(*zeros),
    )


def compare_tensors(a: Checkpoint, b: Checkpoint) -> list[Difference]:
    """Compare all tensors, in the order of A and then those that only B has."""
    found = [
        compare(tensor, b.state_dict[name], name)
        if name in b.state_dict
        else Difference(name, "only in A", tensor.numel())
        for name, tensor in a.state_dict.items()
    ]
    return found + [
        Difference(name, "only in B", tensor.numel())
        for name, tensor in b.state_dict.items()
        if name not in a.state_dict
    ]


def verify_files(
    a: Path, b: Path, request: Request, tolerance: float | None = None
) -> Verification:
    """Compare two files of any kind that lpss reads or writes.

    Args:
        a: the file that counts as right; the network and data come from it, else from ``b``.
        b: the other file; an ONNX file is compared by its outputs on the test split.
        request: network and data where neither file says them.
        tolerance: largest |a - b| that still counts as equal, ≥ 0; None is 0 for tensors and
            ``ROUNDING`` for outputs, or what fp32's rounding explains.

    Raises:
        InputError: a file cannot be read, an impossible tolerance, or data that were typed and do
            not fit.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError(f"--tolerance {tolerance} is out of range", "give --tolerance from 0 up")
    check(request)
    if is_onnx_file(a):
        raise InputError(
            f"{a} is an ONNX file, which holds no tensors of the network's own names",
            "give the checkpoint first: `lpss verify CHECKPOINT MODEL.onnx`",
        )
    if is_onnx_file(b):
        return _of_onnx(a, b, request, tolerance)
    tolerance = tolerance or 0.0
    first, second = (read(path, trust_pickle=request.trust_pickle) for path in (a, b))
    tensors = compare_tensors(first, second)
    predictions = None
    if not any(x.what for x in tensors):
        predictions = _predictions(first, second, request)
    return Verification(str(a), str(b), tolerance, tensors, predictions)


def _predictions(a: Checkpoint, b: Checkpoint, request: Request) -> Predictions | None:
    """Let both networks predict the test split, where network and data are known."""
    known = next((x for x in (a, b) if x.meta), a)
    try:
        model, info, data = restore(known, request)
        load_into(model, a, info)
        other = build(info, data, request.seed)
        load_into(other, b, info)
    except InputError:
        if request.arch or request.data:
            raise
        return None
    device = device_of(request.device)
    (of_a, targets), (of_b, _) = (outputs(m, data.test, device=device) for m in (model, other))
    return _beside(of_a, of_b, targets, data)


def _of_onnx(a: Path, b: Path, request: Request, tolerance: float | None) -> Verification:
    """Let a checkpoint's network and an ONNX file predict the test split."""
    model, _, data = restore(read(a, trust_pickle=request.trust_pickle), request)
    of_a, targets = outputs(model, data.test, device=device_of(request.device))
    examples = torch.cat([x for x, _ in data.test.batches(_BATCH)])
    of_b = run_foreign_onnx(b, examples)
    if of_b.shape != of_a.shape:
        raise InputError(
            f"{b} gives outputs of shape {tuple(of_b.shape)}, the network {tuple(of_a.shape)}",
            f"compare {a} with an export of it",
        )
    found = _beside(of_a.cpu(), of_b, targets.cpu(), data)
    limit = ROUNDING if tolerance is None else tolerance
    if tolerance is None and found.largest > limit:
        limit = max(limit, rounding_tolerance(model.cpu().eval(), examples))
    return Verification(str(a), str(b), limit, [], found)


def _beside(of_a: Tensor, of_b: Tensor, targets: Tensor, data: Data) -> Predictions:
    """Set the outputs of two networks on the same examples side by side."""
    scale = float(of_a.abs().max()) or 1.0
    metrics = [data.task.metrics(out, targets) for out in (of_a, of_b)]
    changed = None
    if data.task.name == "classification":
        changed = int((of_a.argmax(1) != of_b.argmax(1)).sum())
    return Predictions(
        len(targets),
        changed,
        float((of_a - of_b).abs().max()) / scale,
        {name: (value, metrics[1][name]) for name, value in metrics[0].items()},
    )
