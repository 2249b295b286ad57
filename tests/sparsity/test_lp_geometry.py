import math

import pytest
import torch

from lpss_cli.errors import InputError
from lpss_cli.sparsity.lp_geometry import (
    check_p,
    dual_exponents,
    fan_in,
    hoyer,
    lp_norm,
    power,
    row_dims,
    snap_p,
)


@pytest.mark.parametrize("p", [0.2, 0.5, 1.0, 1.03, 1.15, 4.0])
def test_p_with_a_rule_is_accepted(p):
    assert check_p(p) == p


@pytest.mark.parametrize("p", [-1.0, 0.0, 0.19, 1.01, 4.1, math.nan, math.inf])
def test_p_without_a_rule_is_refused_and_the_ranges_are_named(p):
    with pytest.raises(InputError, match="outside") as error:
        check_p(p)
    assert "0.2" in error.value.do
    assert "1.03" in error.value.do


def test_a_p_typed_with_four_decimals_takes_its_integer_exponent():
    assert dual_exponents(1.2) == (6.0, 5.0)
    assert dual_exponents(snap_p(1.0714)) == (15.0, 14.0)
    assert [snap_p(p) for p in (0.5, 1.0, 1.07, 1.5, 2.7)] == [0.5, 1.0, 1.07, 1.5, 2.7]
    assert dual_exponents(2.0) == (2.0, 1.0)
    assert dual_exponents(3.0) == (1.5, 0.5)
    q, a = dual_exponents(1.07)
    assert a == pytest.approx(14.2857, abs=1e-4)
    assert q == a + 1


@pytest.mark.parametrize("exponent", [1, 2, 3, 5, 14, 15, 64, 0.5, 1.5, 6.5, 14.2857, 0.15])
def test_power_is_pow(exponent):
    x = torch.rand(50, dtype=torch.float64)
    before = x.clone()
    torch.testing.assert_close(power(x, exponent), x**exponent, rtol=1e-12, atol=0)
    assert torch.equal(x, before)


def test_lp_norm_by_hand_and_without_underflow():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-30, 1e-30]])
    assert lp_norm(x, 2, (1,)).flatten().tolist() == pytest.approx([5, 0, math.sqrt(2) * 1e-30])
    assert lp_norm(x, 15, (1,))[2].item() == pytest.approx(2 ** (1 / 15) * 1e-30)
    assert lp_norm(x, 0.5, (1,))[0].item() == pytest.approx((3**0.5 + 4**0.5) ** 2)


def test_hoyer_by_hand():
    w = torch.tensor([[1.0, 1, 1, 1], [0, 0, -5, 0], [0, 0, 0, 0], [3, 4, 0, 0]])
    h = hoyer(w)
    assert h[0].item() == pytest.approx(0)
    assert h[1].item() == pytest.approx(1)
    assert math.isnan(h[2])
    assert h[3].item() == pytest.approx((2 - 7 / 5) / (2 - 1))
    assert hoyer(torch.ones(3, 1)).isnan().all()


def test_hoyer_of_tiny_weights_and_of_other_rows():
    w = torch.tensor([[1e-38, 1e-38], [1e-38, 0]])
    assert hoyer(w).tolist() == pytest.approx([0, 1], abs=1e-6)
    x = torch.randn(4, 6, 3, 3)
    torch.testing.assert_close(hoyer(x, 1), hoyer(x.transpose(0, 1)))
    torch.testing.assert_close(hoyer(x), hoyer(x.to(memory_format=torch.channels_last)))


def test_rows_of_transposed_convolutions_are_dim_1():
    weight = torch.empty(4, 6, 3, 3)
    assert (fan_in(weight), fan_in(weight, 1)) == (54, 36)
    assert row_dims(weight, 1) == (0, 2, 3)
