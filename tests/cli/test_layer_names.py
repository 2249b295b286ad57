"""Long names in tables: as short as the terminal asks for, and never two alike."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.cli.console import name_column
from lpss_cli.cli.views.report import layer_table
from lpss_cli.reporting.report import report

ENCODER = [
    f"vit.encoder.layer.{number}.{part}.weight"
    for number in range(12)
    for part in ("attention.query", "attention.key", "intermediate.dense", "output.dense")
]


@pytest.mark.parametrize(
    ("name", "width", "shown"),
    [
        (ENCODER[44], 44, "vit.encoder.layer.11.attention.query.weight"),
        (ENCODER[44], 42, "…encoder.layer.11.attention.query.weight"),
        (ENCODER[44], 30, "…11.attention.query.weight"),
        (ENCODER[44], 20, "…11.…query.weight"),
        (ENCODER[46], 25, ENCODER[46]),  # the end is another's, and what tells it is too long
        ("pooler.weight", 12, "pooler.weight"),
        ("head.classifier.weight", 20, "…classifier.weight"),
        ("頭.層層.weight", 14, "頭.層層.weight"),  # such a letter takes two columns
        ("頭.層層.weight", 13, "…層層.weight"),
    ],
)
def test_the_end_is_kept_and_what_tells_a_name_from_others(name, width, shown):
    names = [*ENCODER, "pooler.weight", "head.classifier.weight", "頭.層層.weight"]
    assert name_column(names)[names.index(name)].within(width) == shown


PARTS = st.lists(st.sampled_from(["a", "b", "ab", "layer", "0", "10"]), min_size=1, max_size=6)


@settings(max_examples=40)
@given(names=st.lists(PARTS.map(".".join), unique=True), width=st.integers(1, 20))
def test_no_two_names_look_the_same(names, width):
    shown = [cell.within(width) for cell in name_column(names)]
    assert len(set(shown)) == len(names)
    for name, short in zip(names, shown, strict=True):
        assert short == name or len(short) <= width < len(name)


def printed(terminal, names=ENCODER, width=40):
    tensors = {name: torch.eye(4) for name in names}
    table = layer_table(report(Checkpoint("m.pt", tensors, {})), width)
    console = Console(width=width, force_terminal=terminal, file=io.StringIO(), no_color=True)
    console.print(table)
    return console.file.getvalue()


def test_a_terminal_gets_a_line_a_layer_and_a_pipe_every_character():
    lines = [line for line in printed(terminal=True).splitlines() if "%" in line]
    assert len(lines) == len(ENCODER) + 1
    assert "│ …11.…query.weight" in lines[-5]
    folded = [line.split("│")[1].strip() for line in printed(terminal=False).splitlines()[4:-3]]
    assert "".join(folded) == "".join(ENCODER)


def test_wide_letters_are_not_folded_where_there_is_room():
    assert " 頭層層頭層層頭層層.weight " in printed(False, ["頭層層頭層層頭層層.weight"], 200)
