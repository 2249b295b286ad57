"""The shipped checkpoints are what their README says, and still do what they claim."""

from pathlib import Path

import pytest

from lpss_cli.checkpoints.loading import read
from lpss_cli.jobs import evaluate
from lpss_cli.jobs.config import Request
from lpss_cli.reporting.report import report

FOLDER = Path(__file__).parents[2] / "sample_models"


@pytest.mark.parametrize(("name", "zeros"), [("digits_mlp", 0), ("digits_mlp.sparse", 45_180)])
def test_it_has_the_zeros_and_the_accuracy_it_claims(name, zeros):
    path = FOLDER / f"{name}.pt"
    measured = report(path)
    assert (measured.zeros, measured.weights) == (zeros, 50_200)
    metrics = evaluate.evaluate_file(path, Request(path)).metrics
    claimed = read(path).meta["metrics"]["after"]
    # One image of 360: other machines may round one logit differently.
    assert metrics["accuracy"] == pytest.approx(claimed["accuracy"], abs=1.01 / 360)
    assert measured.meta["command"] in (FOLDER / "README.md").read_text()


def test_every_file_is_described():
    text = (FOLDER / "README.md").read_text()
    assert all(p.name in text for p in FOLDER.glob("*.pt"))
