"""What is counted in a weight, against a slow reference, for every kind of numbers and rows."""

from __future__ import annotations

from dataclasses import asdict
from math import inf, nan

import pytest
import torch
from reference import tally_reference

from lpss_cli.reporting.layers import measure
from lpss_cli.utils import arrays

KINDS = (
    "float32", "float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu",
    "float8_e4m3fnuz", "float8_e5m2fnuz",
)  # fmt: skip
every_kind = pytest.mark.parametrize("kind", KINDS)


def tensors() -> dict[str, torch.Tensor]:
    """In float64; some change in shorter kinds, to infinities for example."""
    values = torch.randn(8, 3, 9, generator=torch.Generator().manual_seed(0)).double()
    wide = values.flatten(1)
    cut = torch.where(wide.abs() < 0.7, -0.0, wide)
    cut[3:5] = 0
    broken = cut.clone()
    broken[0, :3] = torch.tensor([nan, inf, -inf])
    broken[6] = nan
    return {
        "three dimensions": values,
        "-0.0 and rows of zeros": cut,
        "short rows": cut[:, :5],
        "rows of one": cut[:, :1],
        "one row": cut.view(1, -1),
        "one sign": -cut.abs(),
        "one value": torch.full((2, 3), 0.3),
        "not finite": broken,
        "nothing finite": torch.full((2, 3), nan),
        "too large for float32": cut * 1e300,
        "as large as float32": cut.sign() * 3e38,
        "too small for float32": cut * 1e-300,
        "hardly in float32": cut * 1e-44,
        "not in the order of memory": cut.t(),
        "zeros": torch.zeros(3, 4),
        "no rows": torch.zeros(0, 4),
        "empty rows": torch.zeros(3, 0),
    }


CASES = tensors()


@every_kind
@pytest.mark.parametrize("case", CASES)
def test_a_weight_is_measured_as_the_reference_does(case, kind):
    tensor = CASES[case]
    if kind == "float8_e8m0fnu":
        tensor = tensor.float()  # PyTorch makes its powers of two from nothing longer
    tensor = tensor.to(getattr(torch, kind))
    for row_dim in range(tensor.dim()):
        # From float32 to float64: exact, and the step that 8-bit kinds need.
        values = tensor.float() if tensor.element_size() < 4 else tensor
        rows = values.double().movedim(row_dim, 0).flatten(1).tolist()
        expected = tally_reference.measure(rows, bins=40)
        layer = measure("w", tensor, row_dim)
        assert measure("w", arrays.to_numpy(tensor), row_dim) == layer
        assert (layer.shape, layer.weights) == (tuple(tensor.shape), tensor.numel())
        found = asdict(layer) | (asdict(layer.survivors) if layer.survivors else {})
        assert (layer.survivors is not None) == ("low" in expected)
        sums = [[x.pop("hoyer"), *x.pop("centroids", ())] for x in (found, expected)]
        assert {name: found[name] for name in expected} == expected
        for a, b in zip(*sums, strict=True):
            assert a == (b if b is None else pytest.approx(b, rel=1e-12, abs=1e-15))


@every_kind
def test_all_numbers_of_short_kinds_are_exact(kind):
    dtype = getattr(torch, kind)
    size = torch.empty(0, dtype=dtype).element_size()
    if size > 2:
        values = torch.tensor([0.1, -0.0, 1e-45, 3e38, inf], dtype=dtype)
        assert arrays.to_float32(arrays.to_numpy(values)).tolist() == values.tolist()
        return
    whole = torch.arange(1 << 8 * size).to(torch.uint8 if size == 1 else torch.uint16)
    values = whole.view(dtype)
    found, expected = torch.from_numpy(arrays.to_float32(arrays.to_numpy(values))), values.float()
    known = ~expected.isnan()
    assert torch.equal(found.isnan(), ~known)
    assert torch.equal(found[known].view(torch.int32), expected[known].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint16, torch.bool])
def test_a_tensor_on_the_cpu_is_not_copied(dtype):
    tensor = torch.nn.Parameter(torch.ones(3, 4).to(dtype).t(), requires_grad=False)
    assert arrays.to_numpy(tensor).ctypes.data == tensor.data_ptr()
    assert arrays.to_numpy(tensor).shape == (4, 3)


@pytest.mark.parametrize(
    ("values", "count"),
    [
        (torch.full((70_000, 2), 1e308, dtype=torch.float64), 0),  # their sum is no number
        (torch.tensor([[1.0, nan], [inf, 2.0]], dtype=torch.bfloat16).t(), 2),
        (torch.tensor([complex(nan, 1), complex(1, inf), 1j]), 2),
        (torch.tensor([2**40, 3]), 0),
        (torch.tensor([[True]]), 0),
        (torch.tensor(-inf), 1),
        (torch.zeros(0, 3), 0),
    ],
)
def test_what_is_not_finite_is_counted(values, count):
    assert arrays.count_non_finite(values) == count
