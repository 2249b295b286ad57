"""Comparing two files: whether they are the same network, by tensors, zeros and predictions."""

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
from lpss_cli.jobs.resolve import build, restore
from lpss_cli.training.evaluation import outputs

#: Largest difference of an output, relative to the largest output, that another order of additions
#: in another runtime explains.
ROUNDING = 1e-5
_BATCH_SIZE = 256


@dataclass(frozen=True)
class Difference:
    """One tensor in two files.

    Attributes:
        name: name of the tensor.
        what: empty, or why the tensor cannot be compared: ``only in A``, ``only in B``, different
            shapes or types.
        count: number of entries.
        different: number of entries that differ; NaN equals NaN, and -0.0 equals 0.0.
        largest: largest |a - b|; infinite if one of the two is not a number.
        zeros: number of zeros in A and in B.
        same_zeros: whether they are in the same places.
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
    """The predictions of both networks on the test split.

    Attributes:
        examples: number of examples.
        changed: number of examples whose class differs; None for tasks without classes.
        largest: largest difference of an output, relative to the largest |output| of A.
        metrics: name -> (A, B).
    """

    examples: int
    changed: int | None
    largest: float
    metrics: dict[str, tuple[float, float]]


@dataclass(frozen=True)
class Verification:
    """The complete comparison.

    Attributes:
        a, b: the files.
        tolerance: for entries of tensors; if B is an ONNX file, for outputs, relative to the
            largest output.
        tensors: all tensors; empty if B is an ONNX file, which has no tensors of these names.
        predictions: of both networks, if their data are known.
    """

    a: str
    b: str
    tolerance: float
    tensors: list[Difference]
    predictions: Predictions | None = None

    @property
    def by_outputs(self) -> bool:
        """Return whether outputs were compared instead of tensors."""
        return not self.tensors and self.predictions is not None

    @property
    def equal(self) -> bool:
        """Return whether the comparison passes at the tolerance.

        Both files have to hold the same tensors, with entries at most ``tolerance`` apart. If B is
        an ONNX file, its outputs have to be, and every prediction must be the same.
        """
        if self.by_outputs and self.predictions is not None:
            return not self.predictions.changed and self.predictions.largest <= self.tolerance
        # At 0 the count decides: large integers may differ by less than a double can represent.
        return all(
            not x.what and (not x.different or 0 < self.tolerance >= x.largest)
            for x in self.tensors
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON."""
        return {**asdict(self), "equal": self.equal}


def verify_files(
    a: Path, b: Path, request: Request, tolerance: float | None = None
) -> Verification:
    """Compare two files of any kind that lpss reads or writes.

    Args:
        a: the reference; network and data are taken from it, else from ``b``.
        b: the other file; an ONNX file is compared by its outputs on the test split.
        request: network and data, if neither file names them.
        tolerance: largest |a - b| that still counts as equal, ≥ 0. None stands for 0 for tensors,
            and for outputs for ``ROUNDING``, or for what rounding in fp32 explains.

    Raises:
        InputError: a file cannot be read, the tolerance is impossible, or data that were typed do
            not fit.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise InputError(f"--tolerance {tolerance} is out of range", "give --tolerance from 0 up")
    check(request)
    if is_onnx_file(a):
        raise InputError(
            f"{a} is an ONNX file, which does not hold tensors under the network's own names",
            "give the checkpoint first: `lpss verify CHECKPOINT MODEL.onnx`",
        )
    if is_onnx_file(b):
        return _verify_onnx(a, b, request, tolerance)
    first, second = (read(path, trust_pickle=request.trust_pickle) for path in (a, b))
    tensors = compare_tensors(first, second)
    predictions = None
    if not any(x.what for x in tensors):
        predictions = _predictions(first, second, request)
    return Verification(str(a), str(b), tolerance or 0.0, tensors, predictions)


def compare_tensors(a: Checkpoint, b: Checkpoint) -> list[Difference]:
    """Compare all tensors, in the order of A, followed by those that only B has."""
    differences = [
        compare(tensor, b.state_dict[name], name)
        if name in b.state_dict
        else Difference(name, "only in A", tensor.numel())
        for name, tensor in a.state_dict.items()
    ]
    return differences + [
        Difference(name, "only in B", tensor.numel())
        for name, tensor in b.state_dict.items()
        if name not in a.state_dict
    ]


def compare(a: Tensor, b: Tensor, name: str) -> Difference:
    """Compare a tensor entry by entry."""
    if a.shape != b.shape:
        return Difference(name, f"shapes {tuple(a.shape)} and {tuple(b.shape)}")
    if a.dtype != b.dtype:
        types = [str(t.dtype).removeprefix("torch.") for t in (a, b)]
        return Difference(name, f"types {types[0]} and {types[1]}")
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


def _predictions(a: Checkpoint, b: Checkpoint, request: Request) -> Predictions | None:
    """Let both networks predict the test split, if network and data are known."""
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
    return _compare_outputs(of_a, of_b, targets, data)


def _verify_onnx(a: Path, b: Path, request: Request, tolerance: float | None) -> Verification:
    """Let the network of a checkpoint and an ONNX file predict the test split."""
    model, _, data = restore(read(a, trust_pickle=request.trust_pickle), request)
    of_a, targets = outputs(model, data.test, device=device_of(request.device))
    examples = torch.cat([x for x, _ in data.test.batches(_BATCH_SIZE)])
    of_b = run_foreign_onnx(b, examples)
    if of_b.shape != of_a.shape:
        raise InputError(
            f"{b} gives outputs of shape {tuple(of_b.shape)}, the network {tuple(of_a.shape)}",
            f"compare {a} with an export of it",
        )
    predictions = _compare_outputs(of_a.cpu(), of_b, targets.cpu(), data)
    limit = ROUNDING if tolerance is None else tolerance
    if tolerance is None and predictions.largest > limit:
        limit = max(limit, rounding_tolerance(model.cpu().eval(), examples))
    return Verification(str(a), str(b), limit, [], predictions)


def _compare_outputs(of_a: Tensor, of_b: Tensor, targets: Tensor, data: Data) -> Predictions:
    """Compare the outputs of two networks on the same examples."""
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
