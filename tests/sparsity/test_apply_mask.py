"""Masked entries become exactly +0, whatever they were; the others keep their bits."""

import math

import pytest
import torch

from lpss_cli.sparsity import masks
from lpss_cli.sparsity.masks import apply_mask_

ODD = [1.5, -1.5, 0.0, -0.0, math.nan, math.inf, -math.inf, 1e-7, -6e4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_number_becomes_zero_or_stays_as_it_is(dtype):
    values = torch.tensor([ODD, ODD], dtype=dtype)
    before = values.clone()
    apply_mask_(values, torch.tensor([True, False])[:, None].expand(2, len(ODD)))
    integers = torch.int64 if dtype == torch.float64 else torch.int16
    assert torch.equal(values[0].view(integers), before[0].view(integers))
    assert torch.equal(values[1].view(integers), torch.zeros_like(values[1].view(integers)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("block", [10, 1 << 20])
def test_any_layout_in_any_number_of_blocks(layout, block, monkeypatch):
    monkeypatch.setattr(masks, "_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, 3, 3, generator=generator).to(memory_format=layout)
    mask = torch.rand(5, 4, 3, 3, generator=generator) < 0.5
    expected = torch.where(mask, values, 0.0)
    apply_mask_(values, mask)
    assert torch.equal(values, expected)
    assert values.is_contiguous(memory_format=layout)


def test_parameters_are_changed_in_place_and_autograd_notices():
    weight = torch.nn.Parameter(torch.ones(3))
    loss = (weight * weight).sum()
    apply_mask_(weight, torch.tensor([True, False, True]))
    assert weight.tolist() == [1, 0, 1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_an_empty_tensor_stays_empty():
    apply_mask_(torch.empty(0, 3), torch.empty(0, 3, dtype=torch.bool))
