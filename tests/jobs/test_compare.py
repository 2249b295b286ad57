"""Comparisons: the same budget for all, options chosen alike, nothing run twice."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from itertools import cycle

import pytest
import torch
from faults import holder
from helpers import here

from lpss_cli.errors import InputError, StoppedError
from lpss_cli.jobs import run_store
from lpss_cli.jobs.compare import Comparison, accuracy_against_sparsity, compare, tick
from lpss_cli.jobs.config import Request
from lpss_cli.utils import subprocesses

BUDGET = Request(arch="mlp:64-16-10", epochs=2, batch_size=128)  # 11 steps an epoch


@pytest.fixture
def counted(monkeypatch):
    """Runs in this process, in place of one of their own, and counts them."""
    requests = []

    def call(interrupts, function, request):
        requests.append(request)
        return here(interrupts, function, request)

    monkeypatch.setattr(subprocesses, "call", call)
    return requests


@pytest.fixture
def signalled(counted, monkeypatch):
    """The same, and a signal comes after each of the steps that a test puts into the list."""
    steps = []

    def on_step(self, run):
        if steps and run.step == steps[0]:
            steps.pop(0)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(run_store._Listener, "on_step", on_step, raising=False)
    return steps


def quiet(text):
    pass


def test_every_method_target_and_seed_is_run_once_and_dense_beside(tmp_path, counted):
    what = Comparison(("lpss", "gmp"), (0.5, 0.9), seeds=2, tune=False)
    rows = compare(what, BUDGET, tmp_path / "c", quiet)
    assert [(row["method"], row["sparsity"]) for row in rows] == [
        ("dense", 0.0), ("lpss", 0.5), ("lpss", 0.9), ("gmp", 0.5), ("gmp", 0.9),
    ]  # fmt: skip
    assert len(counted) == what.runs() == 10
    for row in rows:
        assert row["zeros"] == round(row["sparsity"] * (64 * 16 + 160))
        assert row["mean"] == pytest.approx(sum(run["metric"] for run in row["runs"]) / 2)
        assert row["sd"] >= 0
        assert row["peak_bytes"] > 1e7
        assert row["seconds_per_epoch"] > 0
    assert {request.epochs for request in counted} == {2}
    assert {request.holdout for request in counted} == {None}


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (0.1, [0.05, 0.1, 0.2]),
        (0.7, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6]),
        (0.03, [0.0125, 0.025, 0.05]),
    ],
)
def test_options_are_chosen_on_held_out_data_by_the_same_grid(best, rates, tmp_path, monkeypatch):
    """One run of each method is a real one; the scores are made so that ``best`` is best."""
    counted, real = [], {}

    def call(interrupts, function, request):
        counted.append(request)
        if request.method not in real:
            real[request.method], _ = here(interrupts, function, request)
        score = -abs(request.options["lr"] - best) + request.options["weight_decay"]
        return {**real[request.method], "score": score}, []

    monkeypatch.setattr(subprocesses, "call", call)
    what = Comparison(("gmp",), (0.5, 0.8, 0.9), seeds=1)
    notes: list[str] = []
    rows = compare(what, BUDGET, tmp_path, notes.append)
    assert all(found["score"] == found["metric"] > 0 for found in real.values())
    nearest = min(rates, key=lambda rate: abs(rate - best))
    assert all(row["options"] == {"lr": nearest, "weight_decay": 5e-4} for row in rows)
    chosen = [r for r in counted if r.holdout is not None]
    rates = sorted({0.05, 0.1, 0.2, *rates})
    assert len(chosen) == 2 * 2 * len(rates)  # dense and gmp, two decays
    assert {r.sparsity for r in chosen if r.method == "gmp"} == {0.8}
    assert sorted({r.options["lr"] for r in chosen if r.method == "gmp"}) == rates
    assert all(r.seed not in range(1000) for r in chosen)
    reported = [r for r in counted if r.holdout is None]
    assert [r.options for r in reported] == [row["options"] for row in rows]
    assert len(counted) == what.runs() + 2 * 2 * (len(rates) - 3)
    assert notes[-1].startswith(f"run {len(counted)} of {len(counted)}: ")


def test_a_killed_comparison_goes_on(tmp_path, counted):
    what = Comparison(("gmp",), ("60x",), seeds=1, tune=False)
    first = compare(what, BUDGET, tmp_path, quiet)
    results = tmp_path / "results.json"
    text = results.read_text()
    assert list(json.loads(text)["runs"]) == ["dense at 0, seed 0, {}", "gmp at 60x, seed 0, {}"]
    results.write_text(text.replace("60x", "0.983333"))  # as older results have it
    more = Comparison(("gmp",), ("60x",), seeds=2, tune=False)
    notes: list[str] = []
    again = compare(more, BUDGET, tmp_path, notes.append)
    assert len(counted) == 4
    found = [note.rpartition(": ")[0] for note in notes]
    assert found == ["run 2 of 4: dense at 0, seed 1, {}", "run 4 of 4: gmp at 60x, seed 1, {}"]
    assert again[1]["runs"][0] == first[1]["runs"][0]
    assert again[1]["target"] == "60x"


def lasting(rows):
    """What of a comparison does not hang on the clock and on the memory that was free."""
    passing = ("seconds_per_epoch", "peak_bytes")

    def of(values):
        return {k: v for k, v in values.items() if k not in passing}

    return [{**of(row), "runs": [of(run) for run in row["runs"]]} for row in rows]


def test_runs_interrupted_anywhere_give_the_same_table(tmp_path, signalled, noticed_signals):
    """22 steps a run, four runs; a run is stopped several times, and each of them somewhere."""
    what = Comparison(("lpss", "rigl"), (0.5,), seeds=1, tune=False)
    straight = compare(what, BUDGET, tmp_path / "straight", quiet)
    rng, folder, notes, typed = random.Random(0), tmp_path / "c", [], cycle(("2x", 0.5, "50%"))
    for step in [*sorted(rng.sample(range(1, 22), 3)), 22, *rng.sample(range(1, 22), 2)]:
        signalled.append(step)
        again = replace(what, sparsities=(next(typed),))
        with pytest.raises(StoppedError, match=f"SIGTERM after step {step} of 22") as error:
            compare(again, BUDGET, folder, notes.append)
        state = error.value.what.partition("its state is in ")[2].partition(";")[0]
        assert torch.load(state, weights_only=True)["state"]["step"] == step
    assert lasting(compare(what, BUDGET, folder, notes.append)) == lasting(straight)
    assert os.listdir(folder) == ["results.json"]
    assert "resuming lpss at 50%, seed 0, {}" in notes


def test_a_state_of_no_use_is_said_and_the_run_begins_again(tmp_path, signalled, noticed_signals):
    what, notes = Comparison(("dense",), (0.5,), seeds=1, tune=False), []
    straight = compare(what, BUDGET, tmp_path / "straight", quiet)
    signalled.append(9)
    with pytest.raises(StoppedError):
        compare(what, BUDGET, tmp_path / "c", quiet)
    (state,) = (tmp_path / "c/running").iterdir()
    state.write_bytes(state.read_bytes()[:-9])
    assert lasting(compare(what, BUDGET, tmp_path / "c", notes.append)) == lasting(straight)
    assert any("cannot be read" in text and "starts from the beginning" in text for text in notes)


def test_what_a_finished_run_has_left_is_swept(tmp_path, counted, signalled, noticed_signals):
    """As a kill leaves it between the writing of a result and the removal of its state."""
    what, folder = Comparison(("gmp",), (0.5,), seeds=1, tune=False), tmp_path / "c"
    signalled.append(5)
    with pytest.raises(StoppedError):
        compare(what, BUDGET, folder, quiet)
    left = {path: path.read_bytes() for path in (folder / "running").iterdir()}
    rows = compare(what, BUDGET, folder, quiet)
    (folder / "running").mkdir()
    for path, content in left.items():
        path.write_bytes(content)
    runs = len(counted)
    assert compare(what, BUDGET, folder, quiet) == rows
    assert len(counted) == runs
    assert os.listdir(folder) == ["results.json"]


def test_steps_between_two_saves_are_the_requests(tmp_path, counted, monkeypatch):
    saved = []
    write = run_store.TrainingStateFiles.write
    monkeypatch.setattr(
        run_store.TrainingStateFiles, "write",
        lambda self, content: (saved.append(content["state"]["step"]), write(self, content)),
    )  # fmt: skip
    what = Comparison(("dense",), (0.5,), seeds=1, tune=False)
    compare(what, replace(BUDGET, checkpoint_steps=6), tmp_path, quiet)
    assert saved == [6, 12, 18]


def test_the_second_of_two_comparisons_in_a_folder_is_refused(tmp_path, counted):
    what = Comparison(("dense",), (0.5,), seeds=1, tune=False)
    with holder(tmp_path / "results.json"), pytest.raises(InputError, match="another run is"):
        compare(what, BUDGET, tmp_path, quiet)
    assert counted == []


def test_a_folder_that_cannot_be_made_is_found_before_any_work(tmp_path, counted):
    (tmp_path / "file").touch()
    what = Comparison(("dense",), (0.5,), seeds=1, tune=False)
    for name in ("file", "file/c"):
        with pytest.raises(InputError, match="cannot be a folder of results"):
            compare(what, BUDGET, tmp_path / name, quiet)
    assert counted == []


def test_a_folder_of_another_comparison_is_refused(tmp_path, counted):
    what = Comparison(("gmp",), (0.5,), seeds=1, tune=False)
    compare(what, BUDGET, tmp_path, quiet)
    with pytest.raises(InputError, match="of another network, data or budget"):
        compare(what, replace(BUDGET, epochs=3), tmp_path, quiet)


@pytest.mark.parametrize(
    "runs", ["[1]", '["a"]', '{"a": 1}', '{"a": {}}', '{"a": {"failed": 1}}', "[" * 10**5, "null"]
)
def test_results_that_no_comparison_writes_are_refused(tmp_path, runs):
    (tmp_path / "results.json").write_text(f'{{"of": {{}}, "runs": {runs}}}')
    with pytest.raises(InputError, match="is not a comparison"):
        compare(Comparison(("gmp",), (0.5,)), BUDGET, tmp_path, quiet)


def test_states_that_cannot_be_kept_are_found_before_any_work(tmp_path, counted):
    (tmp_path / "running").touch()
    with pytest.raises(InputError, match="running cannot be a folder of states"):
        compare(Comparison(("gmp",), (0.5,)), BUDGET, tmp_path, quiet)
    assert counted == []


def test_a_diverged_run_is_counted_and_left_out(tmp_path, monkeypatch):
    found = iter([0.5, None, 0.7, 0.6])

    def get(self, label, request):
        value = next(found)
        base = {"primary": "accuracy", "zeros": 1, "prunable": 2, "hoyer": 0.1,
                "seconds_per_epoch": 1.0, "peak_bytes": 1}  # fmt: skip
        return {"failed": "the loss is nan"} if value is None else {**base, "metric": value}

    monkeypatch.setattr(run_store.RunStore, "get", get)
    dense, gmp = compare(Comparison(("gmp",), (0.9,), 2, tune=False), BUDGET, tmp_path, quiet)
    assert (dense["mean"], dense["sd"], dense["failed"]) == (0.5, None, 1)
    assert (gmp["mean"], gmp["failed"]) == (pytest.approx(0.65), 0)
    accuracy_against_sparsity([dense, gmp], "t", tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    assert "gmp" in text
    accuracy_against_sparsity([dense, gmp], "t", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert tick(60.00000001) == "98.33 %\n60×"
    assert tick(20000) == "99.995 %\n20,000×"
    gone = {**gmp, "mean": None, "metric": None}
    accuracy_against_sparsity([gone], "t", tmp_path / "p.svg")  # a picture without a warning


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        ((("gmpp",), (0.5,)), "unknown method"),
        (((), (0.5,)), "nothing to compare"),
        ((("gmp",), ()), "nothing to compare"),
        ((("gmp",), (0.5,), 0), "nothing to compare"),
        ((("gmp",), (1.0,)), "outside"),
        ((("gmp",), (0.0,)), "0 is not a target"),
        ((("gmp",), ("0.9", "10x")), "0.9 and 10x are the same target"),
        ((("gmp",), ("x",)), "--sparsities 'x' is not a number"),
    ],
)
def test_impossible_comparisons_are_refused_before_any_work(arguments, what):
    with pytest.raises(InputError, match=what):
        Comparison(*arguments)
