"""What methods declare about layers, and what reading, reporting and exporting make of it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.checkpoints.metadata import drop_invalid
from lpss_cli.export.safetensors import provenance
from lpss_cli.reporting.report import report
from lpss_cli.sparsity import layer_info
from lpss_cli.sparsity.layer_info import LayerColumn, LayerFact, WithColumns


@pytest.fixture
def gadget(monkeypatch):
    """A method of its own kind has declared a fact and two columns."""
    monkeypatch.setattr(layer_info, "_facts", dict(layer_info.facts()))
    monkeypatch.setattr(layer_info, "_columns", dict(layer_info.columns()))
    layer_info.declare(
        [LayerFact("bits", lambda value: value in (2, 4), format="d", exported=True)],
        [
            LayerColumn("bits", lambda info, fan_in, sparsity: info.get("bits"), "d", "width"),
            LayerColumn(
                "kept", lambda info, fan_in, sparsity: fan_in * (1 - sparsity), predicts="hoyer"
            ),
        ],
    )


def checkpoint(info):
    weight = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 3.0, 4.0]])
    return Checkpoint(Path("m.pt"), {"w": weight}, {"weights": {"w": info}})


def test_a_new_fact_is_checked_reported_and_exported(gadget):
    assert drop_invalid({"weights": {"w": {"bits": 4}}})[1] == []
    assert drop_invalid({"weights": {"w": {"bits": 3}}})[1] == ["weights"]
    found = report(checkpoint({"bits": 4, "other": "free"}))
    (layer,) = found.layers
    assert (layer.bits, layer.kept, layer.p) == (4, 2.0, None)
    document = json.loads(json.dumps(found.to_dict()))["layers"][0]
    assert (document["bits"], document["kept"], document["predicted"]) == (4, 2.0, None)
    assert json.loads(provenance(checkpoint({"bits": 4}))["bits"]) == {"w": 4}
    assert "bits" not in provenance(checkpoint({"p": 1.2}))


def test_new_columns_are_in_every_table(gadget):
    from rich.console import Console

    from lpss_cli.cli.views.report import csv_text, layer_table
    from lpss_cli.reporting import html

    source = checkpoint({"bits": 4})
    found = report(source)
    console = Console(width=120)
    with console.capture() as captured:
        console.print(layer_table(found, 120))
    text = captured.get()
    assert "width" in text
    error = found.layers[0].hoyer - 2
    assert f"2.000 {error:+.3f}" in text
    assert f"mean |err| {abs(error):.3f}" in text
    assert " p " not in text  # no layer has one
    head, row = csv_text([found]).splitlines()
    assert head.endswith("dead,p,predicted,bits,kept")
    assert row.endswith(",0,,,4,2.0")
    page = html.render([(found, source.state_dict)])
    assert '<th class="n">width</th>' in page
    assert '<td class="n" data-v="4">4</td>' in page


def test_layers_with_the_same_value_are_announced_together(gadget):
    info = {f"layer{i}": {"bits": 2 if i < 5 else 4, "p": 15 / 14} for i in range(6)}
    assert layer_info.announcements(info) == [
        "p = 1.0714 on 6 weights",
        "bits = 2 on 5 weights",
        "bits = 4 on layer5",
    ]
    assert layer_info.announcements({"a": {}, "b": {"p": 0.5, "travel": 3.0}}) == ["p = 0.5 on b"]


def test_two_declarations_of_one_name_are_refused(gadget):
    same = layer_info.facts()["bits"]
    layer_info.declare([same], [])
    with pytest.raises(TypeError, match="'bits' in different ways"):
        layer_info.declare([LayerFact("bits", bool)], [])


@pytest.mark.parametrize(
    ("info", "valid"),
    [
        ({"p": 1.2, "travel": 3}, True),
        ({"p": None, "travel": None, "unknown": object()}, True),
        ({"p": 1.01}, False),
        ({"p": True}, False),
        ({"p": "1.2"}, False),
        ({"travel": -1.0}, False),
        ({"travel": float("inf")}, False),
    ],
)
def test_what_files_say_of_lpss_is_checked(info, valid):
    assert layer_info.is_valid(info) == valid


def test_a_record_is_checked_before_any_method_is_imported():
    code = (
        "from lpss_cli.checkpoints.metadata import drop_invalid\n"
        "print(drop_invalid({'weights': {'w': {'p': 1.01}}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "({}, ['weights'])"


def test_columns_are_attributes_and_stand_where_their_field_does():
    @dataclass(frozen=True)
    class Part(WithColumns):
        name: str
        columns: dict[str, float] = field(default_factory=dict)
        weights: int = 0

    part = Part("w", {"p": 1.2}, 3)
    assert part.p == 1.2
    assert part.to_dict() == {"name": "w", "p": 1.2, "weights": 3}
    assert list(part.to_dict()) == ["name", "p", "weights"]
    with pytest.raises(AttributeError, match="'Part' object has no attribute 'q'"):
        _ = part.q
