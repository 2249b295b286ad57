"""The packed format: its codes in closed form, round trips, and the bytes that the docs show."""

from __future__ import annotations

import math
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import pack_reference

from lpss_cli.checkpoints.packed import (
    CHOICES,
    coding,
    container,
    pack,
    positions,
    tensors,
    unpack,
)
from lpss_cli.checkpoints.packed.coding import MAGIC
from lpss_cli.errors import InputError
from lpss_cli.export.pack import round_to_code
from lpss_cli.sparsity.patterns import bias_names

FORMAT = Path(__file__).parents[2] / "docs" / "format.md"
index_sets = st.lists(st.integers(0, 3000), unique=True, max_size=200).map(
    lambda found: np.array(sorted(found), np.int64)
)


def code_length(gaps, k: int) -> int:
    """Return the bits of Rice's code: quotient, a 1, and k low bits for each gap."""
    return sum((int(gap) >> k) + 1 + k for gap in gaps)


@pytest.mark.parametrize(
    ("gaps", "k", "unary", "remainders"),
    [
        ([2, 9, 16], 2, 9, 6),  # 0 + 2 + 4 quotients and three ones; the example of the docs
        ([0] * 10, 0, 10, 0),
        ([1023], 9, 2, 9),
        ([7] * 8, 2, 16, 16),
        ([], 0, 0, 0),
    ],
)
def test_rice_code_has_the_length_of_its_closed_form(gaps, k, unary, remainders):
    indices = np.cumsum(np.array(gaps, np.int64) + 1) - 1
    assert positions.gaps_of(indices).tolist() == gaps
    assert positions.rice_parameter(positions.gaps_of(indices)) == k
    stream, bit_length, low = positions.encode_gaps(indices, k)
    assert (bit_length, unary + remainders) == (unary, code_length(gaps, k))
    assert (len(stream), len(low)) == (math.ceil(unary / 8), math.ceil(remainders / 8))


@given(index_sets)
def test_the_rice_parameter_is_optimal(indices):
    gaps = positions.gaps_of(indices)
    k = positions.rice_parameter(gaps)
    assert code_length(gaps, k) == min(code_length(gaps, other) for other in range(16))
    count = int(indices[-1]) + 1 if len(indices) else 1
    assert k == 0 or len(gaps) << k < 2 * count  # what a reader may rely on


@given(index_sets, st.integers(0, 13), st.integers(1, 50))
def test_gaps_and_masks_round_trip(indices, k, beyond):
    count = int(indices[-1]) + beyond if len(indices) else beyond
    unary, bit_length, low = positions.encode_gaps(indices, k)
    back = positions.decode_gaps(unary, bit_length, low, k, len(indices), count)
    assert back.tolist() == indices.tolist()
    small = positions.encode_bytes(indices)
    assert positions.decode_bytes(small, len(indices), count).tolist() == indices.tolist()
    mask = positions.encode_mask(indices, count)
    assert positions.decode_mask(mask, len(indices), count).tolist() == indices.tolist()


@given(st.binary(max_size=3000), st.booleans())
def test_sections_round_trip_and_are_never_longer(data, compress):
    stored = coding.store_section(data, compress)
    assert len(stored) <= len(data)
    assert coding.load_section(stored, len(data)) == data


def test_repetitive_sections_become_short():
    assert len(coding.store_section(bytes(10**6))) < 200
    assert len(coding.store_section(b"ab" * 20_000)) < 100


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@st.composite
def networks(draw):
    """A state_dict with prunable tensors of any density, and others."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    state = {}
    for place in range(draw(st.integers(1, 3))):
        shape = draw(st.lists(st.integers(0, 9), min_size=2, max_size=4))
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        weight *= 10.0 ** draw(st.integers(-8, 4))
        density = draw(st.sampled_from([0, 0.02, 0.3, 0.9, 1]))
        uneven = torch.rand(shape[1:], generator=generator) < draw(st.sampled_from([0.2, 1]))
        weight *= torch.rand(shape, generator=generator) < density * uneven
        state[f"{place}.weight"] = weight.to(draw(st.sampled_from(DTYPES)))
        bias = torch.randn(shape[0], generator=generator) * 10.0 ** draw(st.integers(-8, 4))
        state[f"{place}.bias"] = bias * (torch.rand(shape[0], generator=generator) < 0.7)
    state["steps"] = torch.tensor(draw(st.integers(-(2**63), 2**63 - 1)))
    state["flags"] = torch.rand(5, generator=generator) < 0.5
    return state


def prunable(state):
    return [name for name in state if name.endswith("weight")]


@given(networks(), st.sampled_from(sorted(CHOICES)), st.booleans(), st.booleans())
def test_any_network_round_trips_with_its_zeros_and_rounded_values(state, values, compress, whole):
    """Columns are split into two groups whenever possible: splitting is made to cost nothing."""
    biases = [] if whole else bias_names(state, prunable(state))
    with mock.patch.object(tensors, "SPLIT_COST", -10_000 if compress else tensors.SPLIT_COST):
        data = pack(
            state, {"arch": "x", "list": [1, None]}, prunable(state), values, biases=biases,
            compress=compress,
        )  # fmt: skip
    back = unpack(data)
    meta, about, literal = pack_reference.read(data)
    assert list(back.state_dict) == list(literal) == list(state)
    assert back.meta == meta == {"arch": "x", "list": [1, None]}
    assert back.about == about == {"values": values}
    codes = {e.name: e.values if e.copy_of is None else back.entries[e.copy_of].values
             for e in back.entries}  # fmt: skip
    for name, tensor in state.items():
        got = back.state_dict[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(got == 0, tensor == 0)
        assert torch.equal(got, round_to_code(tensor, codes[name]))
        if values == "fp32" or name not in (*prunable(state), *biases):
            assert codes[name] == "raw"
        dtype, shape, numbers = literal[name]
        assert (dtype, tuple(shape)) == (str(tensor.dtype)[6:], tuple(tensor.shape))
        exact = torch.tensor(numbers, dtype=torch.float64 if tensor.is_floating_point() else None)
        assert torch.equal(exact.reshape(shape).to(tensor.dtype), got)


@pytest.mark.parametrize(
    ("choice", "factor", "code"),
    [
        ("fp16", 1, "fp16"),
        ("fp16", 1e-9, "fp16-rows"),  # would be zero
        ("fp16", 1e7, "fp16-rows"),  # would be infinite
        ("bf16", 1, "bf16"),
        ("bf16", 1e-37, "bf16"),
        ("bf16", 3.01e38, "raw"),
        ("int8", 1, "int8-rows"),
        ("int8", 1e-37, "bf16"),  # the scale would be subnormal
        ("fp32", 1, "raw"),
    ],
)
def test_the_first_code_that_keeps_every_weight_is_taken(choice, factor, code):
    weight = torch.tensor([[1.0, 0, -0.7], [0, 0, 0], [0.61, 0, 1.13]]) * factor
    back = unpack(pack({"w": weight}, {}, ["w"], choice))
    assert back.entries[0].values == code
    assert torch.equal(back.state_dict["w"] == 0, weight == 0)
    assert torch.equal(back.state_dict["w"], round_to_code(weight, code))


def test_a_row_without_a_scale_uses_bfloat16_and_the_smallest_numbers_stay_raw():
    wide = torch.tensor([[1e30, 0.0, 1e-30]])
    assert unpack(pack({"w": wide}, {}, ["w"], "fp16")).entries[0].values == "bf16"
    smallest = torch.tensor([[1.0, 0.0, 2.0**-149]])
    for values in ("fp16", "bf16"):
        back = unpack(pack({"w": smallest}, {}, ["w"], values))
        assert back.entries[0].values == "raw"
        assert torch.equal(back.state_dict["w"], smallest)


def test_int8_is_within_half_a_step_and_keeps_smaller_weights():
    torch.manual_seed(0)
    weight = torch.randn(50, 40) * (torch.rand(50, 40) < 0.3)
    weight[0] = 0
    weight[0, :2] = torch.tensor([1.0, -1e-9])
    back = unpack(pack({"w": weight}, {}, ["w"], "int8")).state_dict["w"]
    step = weight.abs().amax(1, keepdim=True) / 127
    error = (back - weight).abs()
    normal = weight.abs() >= step / 2
    assert bool((error <= step / 2 * 1.0001)[normal].all())
    assert bool((error < step)[~normal].all())
    assert float(back[0, 1]) == pytest.approx(-1 / 127)


def test_fp16_and_bf16_round_as_pytorch_does():
    torch.manual_seed(0)
    weight = torch.randn(300, 40)
    for values, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        back = unpack(pack({"w": weight}, {}, ["w"], values)).state_dict["w"]
        assert torch.equal(back, weight.to(dtype).float())


@pytest.mark.parametrize(
    ("choice", "bias", "code"),
    [
        ("fp16", [0.1, 0.0, -3.0], "fp16"),
        ("int8", [0.1, 0.0, -3.0], "fp16"),
        ("bf16", [0.1, 0.0, -3.0], "bf16"),
        ("fp32", [0.1, 0.0, -3.0], "raw"),
        ("fp16", [1.0, 1e-9], "raw"),  # would be zero
        ("fp16", [1.0, 7e4], "raw"),  # would be infinite
    ],
)
def test_a_bias_is_rounded_where_no_entry_is_lost(choice, bias, code):
    state = {"fc.weight": torch.eye(len(bias)), "fc.bias": torch.tensor(bias)}
    back = unpack(pack(state, {}, ["fc.weight"], choice, biases=["fc.bias"]))
    assert back.entries[1].values == code
    assert torch.equal(back.state_dict["fc.bias"], round_to_code(state["fc.bias"], code))


def test_a_tensor_that_a_norm_shares_with_a_bias_is_not_rounded():
    same = torch.tensor([0.1, 0.2])
    state = {"conv.bias": same, "norm.running_mean": same.clone(), "fc.bias": same / 3}
    back = unpack(pack(state, {}, [], biases=["conv.bias", "fc.bias"]))
    assert [entry.values for entry in back.entries] == ["raw", "raw", "fp16"]
    assert torch.equal(back.state_dict["norm.running_mean"], same)


def test_the_sign_of_a_zero_is_lost_only_in_pruned_tensors():
    zeros = torch.tensor([[-0.0, 1.0, 0.0, -0.0]])
    back = unpack(pack({"w": zeros, "bias": zeros[0]}, {}, ["w"], "fp32")).state_dict
    assert back["w"].signbit().tolist() == [[False] * 4]
    assert back["bias"].signbit().tolist() == [True, False, False, True]


def test_tied_weights_are_stored_once_and_pruned_if_one_of_them_is():
    torch.manual_seed(0)
    weight = torch.randn(64, 64)
    alone = len(pack({"head.weight": weight}, {}, ["head.weight"]))
    both = {"embed.weight": weight, "head.weight": weight, "embed.copy": weight.clone()}
    data = pack(both, {}, ["head.weight"])
    assert len(data) < alone + 120
    back = unpack(data).state_dict
    assert all(torch.equal(tensor, weight.half().float()) for tensor in back.values())
    back["head.weight"].zero_()
    assert bool((back["embed.weight"] != 0).any())
    _, _, literal = pack_reference.read(data)
    assert literal["head.weight"] == literal["embed.weight"]


def test_random_gaps_cost_nearly_their_entropy():
    generator = np.random.default_rng(0)
    for density in (0.01, 0.05, 0.1):
        indices = np.flatnonzero(generator.random(400_000) < density)
        k = positions.rice_parameter(positions.gaps_of(indices))
        unary, _, low = positions.encode_gaps(indices, k)
        d = len(indices) / 400_000
        entropy = 400_000 / 8 * (-d * math.log2(d) - (1 - d) * math.log2(1 - d))
        assert entropy * 0.999 < len(unary) + len(low) < 1.04 * entropy


def test_a_file_with_hardly_any_weight_is_padded_to_a_length_that_readers_accept():
    state = {"w": torch.zeros(4_000_000), "x": torch.ones(5)}
    data = pack(state, {}, ["w"])
    assert len(data) == math.ceil((4_000_005 - container.FREE_WEIGHTS) / container.WEIGHTS_PER_BYTE)
    assert torch.equal(unpack(data).state_dict["w"], state["w"])


def test_equal_values_are_padded_too():
    state = {"w": torch.ones(3_000_000)}
    data = pack(state, {}, ["w"])
    assert len(data) == math.ceil((3_000_000 - container.FREE_WEIGHTS) / container.STORED_PER_BYTE)
    assert torch.equal(unpack(data).state_dict["w"], state["w"])


def test_metadata_that_compresses_too_well_is_stored_plain():
    meta = {"zeros": [0] * 100_000}
    data = pack({"w": torch.ones(1)}, meta, [])
    assert len(data) > 200_000
    assert unpack(data).meta == meta


def example() -> dict[str, torch.Tensor]:
    weight = torch.zeros(32)
    weight[2], weight[12], weight[29] = 1.5, -2, 0.25
    return {"fc.weight": weight.reshape(4, 8), "fc.bias": torch.tensor([1.0])}


def test_the_documented_bytes_are_the_ones_written_and_read():
    lines = re.findall(r"^[0-9a-f]{4}  ((?:[0-9a-f]{2} ?)+)$", FORMAT.read_text(), re.MULTILINE)
    documented = bytes.fromhex(" ".join(lines))
    assert pack(example(), {"arch": "x"}, ["fc.weight"], "fp16", compress=False) == documented
    back = unpack(documented)
    assert all(torch.equal(back.state_dict[name], t) for name, t in example().items())
    meta, _, literal = pack_reference.read(documented)
    assert meta == {"arch": "x"}
    assert literal["fc.weight"][2] == example()["fc.weight"].flatten().tolist()


def test_the_documented_bounds_are_the_codes():
    text = FORMAT.read_text()
    assert MAGIC.hex(" ") in text
    assert (container.FREE_WEIGHTS, container.WEIGHTS_PER_BYTE, container.STORED_PER_BYTE) == (
        2**20,
        256,
        16,
    )
    assert container.SHORT_PLANES == (0, 512, 4096)
    for version, words in coding.VOCABULARIES.items():
        assert pack_reference.vocabulary(version) == words
    assert (container.MAX_HEADER, container.MAX_HEADER_RATIO, container.HEADER_OFFSET) == (
        2**24,
        64,
        60,
    )


@pytest.mark.parametrize(
    ("state", "meta", "values", "what", "do"),
    [
        ({"w": torch.tensor([1.0, math.nan])}, {}, "fp16", "w holds values that are not fin", ""),
        ({"w": torch.tensor([math.inf])}, {}, "fp32", "w holds values that are not finite", ""),
        (
            {"w": torch.ones(2, dtype=torch.complex64)},
            {},
            "fp16",
            "complex64",
            "it takes float64",
        ),
        ({"w": torch.ones(2)}, {"x": torch.ones(1)}, "fp16", "metadata cannot", "safetensors"),
        ({"w": torch.ones(2)}, {}, "fp17", "unknown --values 'fp17'", "did you mean 'fp16'"),
    ],
)
def test_what_cannot_be_packed_is_refused(state, meta, values, what, do):
    with pytest.raises(InputError, match=what) as error:
        pack(state, meta, ["w"], values)
    assert do in error.value.do


def test_metadata_becomes_json():
    meta = {"t": (1, 2), "nan": math.nan, "deep": [{"inf": math.inf}], 5: "ö"}
    back = unpack(pack({"w": torch.ones(1)}, meta, [])).meta
    assert back == {"t": [1, 2], "nan": None, "deep": [{"inf": None}], "5": "ö"}
