"""The panel at the end of a training job."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from lpss_cli.cli.views.training import outcome_panel


def panel(before, after, *, primary="accuracy", epochs=4, zeros=90):
    """Return the panel's text for a network of 100 weights."""
    report = SimpleNamespace(
        zeros=zeros, weights=100, compression=10.0, sparsity=zeros / 100, hoyer=0.8, dead=0,
        path="m.pt", file_bytes=1000, meta={"settings": {"epochs": epochs}},
    )  # fmt: skip
    outcome = SimpleNamespace(
        before=None if before is None else {primary: before}, after={primary: after},
        measured_on="test", before_cut=None, primary=primary, report=report, seconds=1.0,
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO())
    console.print(outcome_panel(outcome, "sparsified", "lpss report"))
    return console.file.getvalue()


@pytest.mark.parametrize(("epochs", "advised"), [(4, 8), (0, 4)])
def test_what_was_lost_is_said_with_what_helps(epochs, advised):
    text = " ".join(panel(0.9261, 0.9219, epochs=epochs).split())
    assert f"lost 0.42 points; --epochs {advised} may win them back" in text


@pytest.mark.parametrize(
    "case",
    [
        {"before": 0.9261, "after": 0.9250},
        {"before": 0.9261, "after": 0.9361},
        {"before": None, "after": 0.9},
        {"before": 0.9, "after": 0.5, "zeros": 0},
        {"before": 0.9, "after": 0.5, "primary": "loss"},
    ],
)
def test_where_little_or_nothing_was_lost_nothing_is_said(case):
    assert "lost" not in panel(**case)
