"""Where the stored values are: codings, dead rows and columns, planes that tensors share."""

from __future__ import annotations

import base64
import math
from unittest import mock

import numpy as np
import pytest
import torch
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
from lpss_cli.export.pack import round_to_code
from lpss_cli.reporting.sizes import entropy


def test_each_coding_is_taken_where_it_is_the_shortest():
    torch.manual_seed(0)
    full = torch.randn(100, 100)
    sparse = full * (torch.rand(100, 100) < 0.1)
    half = full * (torch.rand(100, 100) < 0.5)
    uneven = full * (torch.rand(100, 100) < torch.rand(100, 1) ** 4)
    state = {"d": full, "s": sparse, "h": half, "u": uneven}
    entries = unpack(pack(state, {}, list(state))).entries
    assert [entry.positions.coding for entry in entries] == ["all", "gaps", "mask", "bytes"]
    (entry,) = unpack(pack({"d": full}, {}, [])).entries
    assert entry.positions.coding == "all"


def with_dead_sides(rows: int, columns: int, live: tuple[int, int], density: float) -> torch.Tensor:
    """Return a random matrix with ``live`` rows and columns that are not zero, at random places."""
    torch.manual_seed(0)
    inside = torch.randn(live) * (torch.rand(live) < density)
    for i in range(max(live)):
        inside[i % live[0], i % live[1]] = 1  # every row and column has at least one
    weight = torch.zeros(rows, columns)
    weight[: live[0], : live[1]] = inside
    return weight[torch.randperm(rows)][:, torch.randperm(columns)]


@pytest.mark.parametrize(
    ("live", "density", "rows", "columns"),
    [
        ((200, 300), 0.1, False, False),
        ((50, 300), 0.1, True, False),
        ((200, 60), 0.1, False, True),
        ((50, 60), 0.1, True, True),
        ((50, 60), 1.0, True, True),
    ],
)
@pytest.mark.parametrize("values", ["fp16", "int8"])
def test_dead_rows_and_columns_are_named_where_it_pays(live, density, rows, columns, values):
    weight = with_dead_sides(200, 300, live, density)
    data = pack({"w": weight}, {}, ["w"], values)
    entry = unpack(data).entries[0]
    assert (entry.live_rows.coding != "all", entry.live_columns.coding != "all") == (rows, columns)
    assert entry.live_rows.kept == int((weight != 0).any(1).sum())
    assert entry.live_columns.kept == int((weight != 0).any(0).sum())
    assert (entry.positions.coding == "all") == (density == 1)
    assert torch.equal(unpack(data).state_dict["w"], round_to_code(weight, entry.values))


def test_a_dense_block_costs_its_values_and_a_bit_for_each_row_and_column():
    weight = with_dead_sides(200, 300, (50, 60), 1.0)
    data = pack({"w": weight}, {}, ["w"], "fp16", compress=False)
    entry = unpack(data).entries[0]
    assert entry.kept == 50 * 60
    assert sum(entry.sections) <= math.ceil(200 / 8) + math.ceil(300 / 8) + 2 * entry.kept


@pytest.mark.parametrize("values", CHOICES)
def test_dense_columns_are_coded_separately(values):
    torch.manual_seed(0)
    dense = torch.randperm(400) < 200
    density = torch.where(dense, torch.tensor(0.15), torch.tensor(0.01))
    weight = torch.randn(200, 400) * (torch.rand(200, 400) < density)
    data = pack({"w": weight}, {}, ["w"], values)
    (entry,) = unpack(data).entries
    assert entry.split is not None
    assert entry.split.kept == 200
    assert entry.positions.kept == int((weight[:, dense] != 0).sum())
    assert entry.rest.kept == int((weight[:, ~dense] != 0).sum())
    assert torch.equal(unpack(data).state_dict["w"], round_to_code(weight, entry.values))
    exact = torch.tensor(pack_reference.read(data)[2]["w"][2], dtype=torch.float64)
    assert torch.equal(exact.float().reshape(weight.shape), unpack(data).state_dict["w"])
    with mock.patch.object(tensors, "SPLIT_COST", 10**9):
        together = pack({"w": weight}, {}, ["w"], values)
    assert unpack(together).entries[0].split is None
    # 80,000 · H(0.08) bits against 40,000 · (H(0.15) + H(0.01)) and 400 bits.
    saved = (80_000 * entropy(0.08) - 40_000 * (entropy(0.15) + entropy(0.01)) - 400) / 8
    assert len(together) - len(data) > 0.8 * saved > 400


def test_columns_that_are_alike_stay_together():
    torch.manual_seed(0)
    weight = torch.randn(200, 400) * (torch.rand(200, 400) < 0.1)
    assert unpack(pack({"w": weight}, {}, ["w"])).entries[0].split is None
    rows, columns = np.nonzero(weight.numpy())
    assert tensors.dense_columns(columns, 200, 400) is None
    assert tensors.dense_columns(columns[rows == 0], 1, 400) is None
    # Four dense columns of a thousand: 4,000 · H(0.5) and 996,000 · H(0.001) against 1M · H(0.003).
    few = np.concatenate([np.arange(1000).repeat(1), np.arange(4).repeat(500)])
    assert tensors.dense_columns(few, 1000, 1000).tolist() == [0, 1, 2, 3]


# A file in version 1: a tied weight, an int8 weight with dead columns, and a norm.
VERSION_1 = """
k0xQU1MNChoBAAAAlAAAAPECAAAmAQAAAAAAAMWBZjULEhQIG9PkoakJz3l+i9UI+IGE5Rqa+XEyYPxOKLUv/WDxAVUE
AMLDDRGQfXbsIFK1vLuMbxMGu/8HIFs1FzN7ckFsXcbzVvpkOFJ/nDghxX+4MF7+hxFCgR9BlGTl1AEbgNBOzCxjuaVA
+kLO25paKuW5UY8EFIl+DkvdE8l5ElCPHCaV0W9xRLm0lQtCvEjMyZDJqSvjFqbmFoYg4SeK3RaILDONtyx3YDJS4Eim
Aa1BcV3As3BEp0i3Zlm3Ju36duu39AGtQXFdwLNwRKdIt2ZZtybt+nbrt/QByMZHZ6cAJofGBmfIyMZHZ6cAJofGBmfI
42Kjs9MAk8Nig7Pj42Kjs9MAk8Nig7Pj8THR2emAyeGxwdlx8THR2emAyeGxwdlxOzs7Ozs/Ozs7Ozs7Ozs7Ozs/Ozs7
Ozs7KLUv/SBCTQEAFAKB3riFc4F/6IFQbDQJf9kETMN/+yB/rmh/LoE9S39xgZIBACGjegIltyUlACUltyVutwAAq6sA
q1UAVasAVatJbUlJAElJbUnbbQAAqqoAqlUAVaoAVaoS25ISABKS2xI2W4AAqiqAqtUAFSpAVWq/vr6+AD4+Pj8/Pz8A
Pj8/Pz9AQEBAQEAHAAAAAAAAAA==
"""


def test_a_file_of_version_1_is_read():
    data = base64.b64decode(VERSION_1)
    assert data[8] == 1
    weight = torch.zeros(480)
    weight[torch.arange(60) * torch.arange(3, 63) * 7 % 480] = (torch.arange(60) - 30) / 32
    weight = weight.reshape(12, 40)
    weight[:, 30:] = weight[5] = 0
    back = unpack(data)
    assert back.meta["classes"] == ["0", "1"]
    assert torch.equal(back.state_dict["fc.weight"], round_to_code(weight, "int8-rows"))
    assert torch.equal(back.state_dict["fc.bias"], (torch.arange(12) - 4) / 7)
    assert torch.equal(back.state_dict["tied.weight"], back.state_dict["fc.weight"])
    meta, _, literal = pack_reference.read(data)
    assert meta == back.meta
    assert literal["steps"][2] == [7]


def test_scales_are_stored_only_for_live_rows():
    weight = with_dead_sides(200, 300, (50, 60), 0.3)
    entry = unpack(pack({"w": weight}, {}, ["w"], "int8", compress=False)).entries[0]
    assert entry.values == "int8-rows"
    assert [size for (*_, part, _), size in entry.planes() if part == "scale"] == [50] * 4


def test_dead_rows_and_columns_of_a_convolution_round_trip():
    torch.manual_seed(0)
    weight = with_dead_sides(48, 40 * 9, (20, 9 * 9), 0.2).reshape(48, 40, 3, 3)
    for values in CHOICES:
        data = pack({"w": weight}, {}, ["w"], values)
        entry = unpack(data).entries[0]
        assert (entry.live_rows.kept, entry.live_columns.kept) == (20, 81)
        assert torch.equal(unpack(data).state_dict["w"], round_to_code(weight, entry.values))
        exact = torch.tensor(pack_reference.read(data)[2]["w"][2], dtype=torch.float64)
        assert torch.equal(exact.float().reshape(weight.shape), unpack(data).state_dict["w"])


def test_the_chosen_coding_is_the_shortest_of_all_three():
    generator = np.random.default_rng(0)
    for density in (0.001, 0.05, 0.4):
        indices = np.flatnonzero(generator.random(5000) < density)
        k = positions.rice_parameter(positions.gaps_of(indices))
        unary, _, low = positions.encode_gaps(indices, k)
        tried = [
            len(coding.store_section(unary)) + len(coding.store_section(low)),
            len(coding.store_section(positions.encode_mask(indices, 5000))),
            len(coding.store_section(positions.encode_bytes(indices))),
        ]
        selection, parts = positions.encode_selection(indices, 5000, None, True)
        assert sum(map(len, parts)) == min(tried)
        plain = [
            coding.load_section(p, n) for p, n in zip(parts, selection.lengths(5000), strict=True)
        ]
        assert positions.decode_selection(selection, plain, 5000).tolist() == indices.tolist()
        assert positions.parse_selection(selection.to_list(), 5000) == selection


def test_gaps_as_bytes_have_the_bytes_of_their_definition():
    indices = np.array([0, 255, 511, 1022])  # gaps 0, 254, 255, 510
    assert positions.encode_bytes(indices) == bytes([0, 254, 255, 0, 255, 255, 0])


def test_short_planes_are_joined_where_it_pays():
    torch.manual_seed(0)
    norms = {f"{i}.bias": torch.rand(64) + 0.5 for i in range(30)}
    data = pack(norms, {}, [])
    assert len(data) < 0.9 * 30 * 256
    assert all(not entry.sections for entry in unpack(data).entries)
    back = unpack(data).state_dict
    assert all(torch.equal(back[name], tensor) for name, tensor in norms.items())
    alone = pack({"bias": norms["0.bias"]}, {}, [])
    assert [len(entry.sections) for entry in unpack(alone).entries] == [4]


def test_a_line_of_the_header_costs_a_few_bytes():
    many = {f"layer{i // 10}.{i % 10}.bn.weight": torch.ones(0) for i in range(100)}
    data = pack(many, {}, [])
    assert len(data) - container.HEADER_OFFSET < 100 * 6
