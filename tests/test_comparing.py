"""Comparisons: the same budget for all, options chosen alike, nothing run twice."""

from __future__ import annotations

import json

import pytest

from lpss_cli import comparing
from lpss_cli.comparing import Comparison, compare
from lpss_cli.errors import InputError
from lpss_cli.plotting import accuracy_against_sparsity
from lpss_cli.request import Request

BUDGET = Request(arch="mlp:64-16-10", epochs=2)


@pytest.fixture
def counted(monkeypatch):
    """Runs in this process, in place of one of their own, and counts them."""
    requests = []

    class Here:
        def __init__(self, *args, **kwargs):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, request):
            requests.append(request)
            self.found = function(request)
            return self

        def result(self):
            return self.found

    monkeypatch.setattr(comparing, "ProcessPoolExecutor", Here)
    return requests


def quiet(text):
    pass


def test_every_method_target_and_seed_is_run_once_and_dense_beside(tmp_path, counted):
    what = Comparison(("lpss", "gmp"), (0.5, 0.9), seeds=2, tune=False)
    rows = compare(what, BUDGET, tmp_path / "c", quiet)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("dense", 0.0), ("lpss", 0.5), ("lpss", 0.9), ("gmp", 0.5), ("gmp", 0.9),
    ]  # fmt: skip
    assert len(counted) == 10
    for row in rows:
        assert row["zeros"] == round(row["sparsity"] * (64 * 16 + 160))
        assert row["mean"] == pytest.approx(sum(run["metric"] for run in row["runs"]) / 2)
        assert row["sd"] >= 0
        assert row["peak_bytes"] > 1e7
        assert row["seconds_per_epoch"] > 0
    assert {request.epochs for request in counted} == {2}
    assert {request.holdout for request in counted} == {None}


def test_options_are_chosen_on_held_out_data_by_the_same_grid(tmp_path, counted):
    what = Comparison(("gmp",), (0.5, 0.8, 0.9), seeds=1)
    rows = compare(what, BUDGET, tmp_path, quiet)
    chosen = [r for r in counted if r.holdout is not None]
    assert len(chosen) == 2 * 6  # dense and gmp
    assert {r.sparsity for r in chosen if r.method == "gmp"} == {0.8}
    assert {r.options["lr"] for r in chosen if r.method == "gmp"} == {0.05, 0.1, 0.2}
    assert all(r.seed not in range(1000) for r in chosen)
    reported = [r for r in counted if r.holdout is None]
    assert [r.options for r in reported] == [row["options"] for row in rows]


def test_a_killed_comparison_goes_on(tmp_path, counted):
    what = Comparison(("gmp",), (0.5,), seeds=1, tune=False)
    first = compare(what, BUDGET, tmp_path, quiet)
    more = Comparison(("gmp",), (0.5,), seeds=2, tune=False)
    again = compare(more, BUDGET, tmp_path, quiet)
    assert len(counted) == 4
    assert again[1]["runs"][0] == first[1]["runs"][0]


def test_a_folder_of_another_comparison_is_refused(tmp_path, counted):
    what = Comparison(("gmp",), (0.5,), seeds=1, tune=False)
    compare(what, BUDGET, tmp_path, quiet)
    with pytest.raises(InputError, match="of another network, data or budget"):
        compare(what, Request(arch="mlp:64-16-10", epochs=3), tmp_path, quiet)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(InputError, match="is no comparison"):
        compare(what, BUDGET, tmp_path, quiet)


def test_a_diverged_run_is_counted_and_left_out(tmp_path, monkeypatch):
    found = iter([0.5, None, 0.7, 0.6])

    def get(self, label, request, note):
        value = next(found)
        base = {"primary": "accuracy", "zeros": 1, "prunable": 2, "hoyer": 0.1,
                "seconds_per_epoch": 1.0, "peak_bytes": 1}  # fmt: skip
        return {"failed": "the loss is nan"} if value is None else {**base, "metric": value}

    monkeypatch.setattr(comparing._Store, "get", get)
    dense, gmp = compare(Comparison(("gmp",), (0.5,), 2, tune=False), BUDGET, tmp_path, quiet)
    assert (dense["mean"], dense["sd"], dense["failed"]) == (0.5, None, 1)
    assert (gmp["mean"], gmp["failed"]) == (pytest.approx(0.65), 0)
    accuracy_against_sparsity([dense, gmp], "t", tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert "gmp" in text
    accuracy_against_sparsity([dense, gmp], "t", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((("gmpp",), (0.5,)), "unknown method"),
        (((), (0.5,)), "nothing to compare"),
        ((("gmp",), ()), "nothing to compare"),
        ((("gmp",), (0.5,), 0), "nothing to compare"),
        ((("gmp",), (1.0,)), "outside"),
        ((("gmp",), (0.0,)), "0 is no target"),
    ],
)
def test_impossible_comparisons_are_refused_before_any_work(arguments, what):
    with pytest.raises(InputError, match=what):
        Comparison(*arguments)


def test_one_run_in_a_process_of_its_own(tmp_path):
    notes = []
    what = Comparison(("dense",), (0.5,), seeds=1, tune=False)
    rows = compare(what, BUDGET, tmp_path, notes.append)
    assert len(rows) == 1
    assert len(notes) == 1
    assert json.loads((tmp_path / "results.json").read_text())["runs"]
