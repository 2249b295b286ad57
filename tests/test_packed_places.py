"""Where the stored values are: codings, dead rows and columns, planes that tensors share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from reference import pack_reference

from lpss_cli.packed import CHOICES, bits, container, pack, places, sections, unpack
from lpss_cli.packing import rounded


def test_each_coding_is_taken_where_it_is_the_shortest():
    torch.manual_seed(0)
    full = torch.randn(100, 100)
    sparse = full * (torch.rand(100, 100) < 0.1)
    half = full * (torch.rand(100, 100) < 0.5)
    uneven = full * (torch.rand(100, 100) < torch.rand(100, 1) ** 4)
    state = {"d": full, "s": sparse, "h": half, "u": uneven}
    entries = unpack(pack(state, {}, list(state))).entries
    assert [entry.places.coding for entry in entries] == ["all", "gaps", "mask", "bytes"]
    assert [entry.places.coding for entry in unpack(pack({"d": full}, {}, [])).entries] == ["all"]


def dead(rows: int, columns: int, live: tuple[int, int], density: float) -> torch.Tensor:
    """A random matrix with so many live rows and columns, at random places."""
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
    weight = dead(200, 300, live, density)
    data = pack({"w": weight}, {}, ["w"], values)
    entry = unpack(data).entries[0]
    assert (entry.live_rows.coding != "all", entry.live_columns.coding != "all") == (rows, columns)
    assert entry.live_rows.kept == int((weight != 0).any(1).sum())
    assert entry.live_columns.kept == int((weight != 0).any(0).sum())
    assert (entry.places.coding == "all") == (density == 1)
    assert torch.equal(unpack(data).state_dict["w"], rounded(weight, entry.values))


def test_a_dense_block_costs_its_values_and_a_bit_for_each_row_and_column():
    weight = dead(200, 300, (50, 60), 1.0)
    data = pack({"w": weight}, {}, ["w"], "fp16", compress=False)
    entry = unpack(data).entries[0]
    assert entry.kept == 50 * 60
    assert sum(entry.sections) <= math.ceil(200 / 8) + math.ceil(300 / 8) + 2 * entry.kept


def test_scales_are_stored_for_live_rows_alone():
    weight = dead(200, 300, (50, 60), 0.3)
    entry = unpack(pack({"w": weight}, {}, ["w"], "int8", compress=False)).entries[0]
    assert entry.values == "int8-rows"
    assert [size for (*_, part, _), size in entry.planes() if part == "scale"] == [50] * 4


def test_dead_rows_and_columns_of_a_convolution_come_back():
    torch.manual_seed(0)
    weight = dead(48, 40 * 9, (20, 9 * 9), 0.2).reshape(48, 40, 3, 3)
    for values in CHOICES:
        data = pack({"w": weight}, {}, ["w"], values)
        entry = unpack(data).entries[0]
        assert (entry.live_rows.kept, entry.live_columns.kept) == (20, 81)
        assert torch.equal(unpack(data).state_dict["w"], rounded(weight, entry.values))
        exact = torch.tensor(pack_reference.read(data)[2]["w"][2], dtype=torch.float64)
        assert torch.equal(exact.float().reshape(weight.shape), unpack(data).state_dict["w"])


def test_the_shortest_choice_is_the_shortest_of_all_three():
    generator = np.random.default_rng(0)
    for density in (0.001, 0.05, 0.4):
        positions = np.flatnonzero(generator.random(5000) < density)
        k = bits.rice_parameter(bits.gaps_of(positions))
        unary, _, low = bits.encode_gaps(positions, k)
        tried = [
            len(sections.store(unary)) + len(sections.store(low)),
            len(sections.store(bits.encode_mask(positions, 5000))),
            len(sections.store(bits.encode_bytes(positions))),
        ]
        way, parts = places.shortest(positions, 5000, None, True)
        assert sum(map(len, parts)) == min(tried)
        plain = [sections.load(p, n) for p, n in zip(parts, way.lengths(5000), strict=True)]
        assert places.decode(way, plain, 5000).tolist() == positions.tolist()
        assert places.parse(way.to_list(), 5000) == way


def test_gaps_as_bytes_have_the_bytes_of_their_definition():
    positions = np.array([0, 255, 511, 1022])  # gaps 0, 254, 255, 510
    assert bits.encode_bytes(positions) == bytes([0, 254, 255, 0, 255, 255, 0])


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


def test_a_header_costs_a_line_a_few_bytes():
    many = {f"layer{i // 10}.{i % 10}.bn.weight": torch.ones(0) for i in range(100)}
    data = pack(many, {}, [])
    assert len(data) - container.START < 100 * 6
