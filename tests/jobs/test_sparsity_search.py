"""The sparsity of a wished drop: bisection, what it is counted from, and what it may look at."""

import json
import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import blobs, network
from hypothesis import given
from hypothesis import strategies as st

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import TensorSource
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs import sparse_training
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.sparsity_search import HIGH, LOW, Try, bisect, search, training_recipe_of
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.models import ModelInfo
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


@given(threshold=st.floats(0.4, 0.9999), tries=st.integers(1, 12))
def test_bisection_comes_as_near_as_its_tries_allow(threshold, tries):
    accepted = []
    asked = []

    def measure(sparsity):
        asked.append(sparsity)
        return Try(sparsity, 0.0, 0.0, sparsity <= threshold)

    walked = bisect(measure, lambda: accepted.append(asked[-1]), tries, LOW, HIGH)
    kept = [one.sparsity for one in walked if one.kept]
    assert accepted == kept == sorted(kept)  # warm starts only ever become sparser
    if threshold < LOW:
        assert len(walked) == 1
        assert not kept
        return
    assert len(walked) == tries
    # In log2 of the compression the range is 6 wide, and every try but the first halves it.
    wished = -math.log2(1 - min(threshold, HIGH))
    assert 0 <= wished + math.log2(1 - max(kept)) <= 6 / 2 ** (tries - 1) + 1e-3


class Untouched(TensorSource):
    """A test part that nobody may read."""

    def batches(self, *args, **options):
        raise AssertionError("the test part was read")


def walk(data, drop, notes, **more):
    model = network()
    request = Request(target_drop=drop, tries=3, **more)
    settings = TrainingSettings(6, 16, seed=1, keep_zeros=True)
    began = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint = Checkpoint(Path("model.pt"), began)
    found = search(model, ModelInfo("a network"), data, checkpoint, request, settings, notes.append)
    assert all(torch.equal(tensor, began[name]) for name, tensor in model.state_dict().items())
    return found


def test_the_search_looks_at_a_part_of_the_training_data_alone():
    data = blobs()
    data = replace(data, test=Untouched(data.test.x, data.test.y))
    notes = []
    found = walk(data, 100, notes)
    assert found.examples == 26  # a fifth of 128
    assert found.epochs == 3
    assert [one.sparsity for one in found.curve] == [0.5, 0.9375, 0.977903]
    assert all(one.kept for one in found.curve)
    assert found.sparsity == 0.977903
    assert "3 epochs of dense training, at most 3 tries of 3 epochs on 102 examples" in notes[0]
    assert "then 6 epochs on 128: 18 in all" in notes[0]
    assert f"accuracy {found.given:.4f}" in notes[-5]
    assert json.loads(json.dumps(found.to_dict()))["curve"][1]["sparsity"] == 0.9375
    for one in found.curve:
        assert one.drop == pytest.approx(100 * (found.reference - one.metric))


def test_a_drop_that_even_half_the_weights_make_is_said():
    with pytest.raises(RunError, match=r"even 50.00% zeros drops -?\d+.\d\d points") as error:
        walk(blobs(), -200, [])  # no network is two hundred points better
    assert "--sparsity" in error.value.do


def test_an_input_beyond_the_range_is_refused():
    model = network()
    with torch.no_grad():
        for layer in (model[0], model[4]):
            layer.weight.flatten()[2:] = 0
    request, settings = Request(target_drop=1.0), TrainingSettings(1, 16, keep_zeros=True)
    with pytest.raises(InputError, match="nothing is left to search"):
        search(model, ModelInfo("x"), blobs(), Checkpoint(Path("m"), {}), request, settings, print)


def test_where_the_search_begins_follows_from_the_record():
    data = replace(blobs(), fingerprint="whole")
    held = data.holdout(0.2, 0)
    meta = {
        "data_fingerprint": "whole",
        "method": "gmp",
        "config": {"lr": 0.03},
        "settings": {"epochs": 99, "batch_size": 32, "seed": 5},
    }
    settings = TrainingSettings(10, 16, seed=1, sparsity=0.9, keep_zeros=True, skip=("4",))

    def origin(**changes):
        return training_recipe_of(
            Checkpoint(Path("m"), {}, {**meta, **changes}), data, held, settings
        )

    found = origin()
    assert (found.method.name, found.method.config.lr) == ("gmp", 0.03)
    assert found.settings == TrainingSettings(
        48, 32, seed=5, skip=("4",)
    )  # not 99: four times twelve at most
    older = {"lr": 0.03, "frequency": 20}  # a record that holds what the method ignores
    assert origin(method="dense", config=older).method.config.lr == 0.03
    assert origin(data_fingerprint=held.fingerprint).settings is None
    assert origin(data_fingerprint="other") is None
    assert origin(source={"file": "x"}) is None
    assert origin(method="unknown") is None
    assert origin(config={"lr": -1}) is None
    assert origin(settings={"epochs": "many"}) is None
    assert origin(settings={"epochs": 3, "batch_size": None, "seed": 0}) is None
    assert training_recipe_of(Checkpoint(Path("m"), {}), data, held, settings) is None


def test_a_drop_below_what_the_examples_can_tell_is_called_chance():
    # 26 examples: the standard error of an accuracy near 1 is 1/26, or sqrt(a(1-a)/26).
    notes = []
    found = walk(blobs(), 3.5, notes)
    spread = max((found.reference * (1 - found.reference) / 26) ** 0.5, 1 / 26)
    assert f"26 examples tell an accuracy to about {100 * spread:.2g} points" in "".join(notes)
    notes = []
    walk(blobs(), 100, notes)
    assert "chance" not in "".join(notes)


TRAIN = ("train", "--arch", "mlp:64-30-10", "--epochs", "6", "-q")


def test_a_drop_in_place_of_a_sparsity_on_the_command_line(lpss):
    assert lpss(*TRAIN)[0] == 0
    typed = ("sparsify", "model.pt", "--target-drop", "3", "--tries", "3", "--epochs", "4")
    code, out, err = lpss(*typed, "--json")
    assert code == 0, err
    report = json.loads(out)["report"]
    found = report["run"]["search"]
    assert "search: 6 epochs of dense training, at most 3 tries of 2 epochs" in err
    assert "trained without the held-out examples" in err
    assert f"found {found['sparsity']:.2%} zeros" in err
    assert report["zeros"] == round(found["sparsity"] * report["prunable"])
    assert report["run"]["settings"]["sparsity"] == found["sparsity"] >= 0.5
    assert max(one["sparsity"] for one in found["curve"] if one["kept"]) == found["sparsity"]
    code, out, err = lpss("report")
    assert "accuracy at most 3 points below" in out
    # Its data are no longer all unseen, and its weights come from another network.
    code, out, err = lpss(
        *("sparsify", "model.sparse.pt", "--target-drop", "50", "--tries", "1"),
        *("--epochs", "1", "--json"),
    )
    assert code == 0, err
    assert "it may have seen these examples" in err
    assert json.loads(out)["report"]["run"]["search"]["sparsity"] == pytest.approx(
        max(0.5, found["sparsity"]), abs=1e-3
    )


def test_what_was_held_out_in_training_is_held_out_again(lpss):
    assert lpss(*TRAIN, "--holdout", "0.2")[0] == 0
    typed = ("sparsify", "model.pt", "--target-drop", "5", "--tries", "1", "--epochs", "2")
    code, out, err = lpss(*typed, "--holdout", "0.2", "--json")
    assert code == 0, err
    assert "held out in its own training too" in err
    document = json.loads(out)
    assert document["measured_on"] == "holdout"
    run = document["report"]["run"]
    assert run["search"]["given"] == run["search"]["reference"] == document["before"]["accuracy"]


def test_a_killed_run_goes_on_without_searching_again(lpss, monkeypatch):
    assert lpss(*TRAIN)[0] == 0
    request = Request(
        out=Path("s.pt"), target_drop=100.0, tries=1, epochs=3, checkpoint_steps=20, method="gmp"
    )

    class Killed(JobCallback):
        def on_epoch(self, run):
            if run.epoch == 2:
                raise KeyError

    with pytest.raises(KeyError):
        sparse_training.sparsify_checkpoint(Path("model.pt"), request, Killed())
    monkeypatch.setattr(sparse_training, "search", None)  # it would be called again
    with pytest.raises(InputError, match="does not belong to a search for this drop"):
        sparse_training.sparsify_checkpoint(
            Path("model.pt"), replace(request, target_drop=1.0, resume=True)
        )
    outcome = sparse_training.sparsify_checkpoint(Path("model.pt"), replace(request, resume=True))
    assert outcome.report.zeros == round(0.5 * outcome.report.weights)
    assert outcome.report.meta["search"]["sparsity"] == 0.5


@pytest.mark.usefixtures("noticed_signals")
def test_a_signal_ends_the_search_and_says_how_to_start_again(lpss, monkeypatch):
    assert lpss(*TRAIN)[0] == 0

    def interrupted(*args, **options):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train", interrupted)
    code, out, err = lpss("sparsify", "model.pt", "--target-drop", "1")
    assert (code, out) == (130, "")
    assert "interrupted by SIGINT in the search for a sparsity: nothing was saved" in err
    assert "start again with: lpss sparsify model.pt --target-drop 1" in err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not list(Path().glob("model.sparse*"))


@pytest.mark.parametrize(
    ("typed", "code", "what"),
    [
        (["--target-drop", "1", "--sparsity", "0.9"], 2, "--sparsity sets it"),
        (["--target-drop", "1", "--layer", "fc1=0.9"], 2, "--layer sets it"),
        (["--target-drop", "-1"], 2, "--target-drop -1 is out of range"),
        (["--target-drop", "1", "--tries", "0"], 2, "--tries 0 is out of range"),
        (["--tries", "3"], 2, "--tries needs --target-drop"),
        (
            ["--target-drop", "0", "--tries", "1", "--epochs", "0", "--method", "static"],
            1,
            "even 50",
        ),
    ],
)
def test_what_cannot_be_is_refused(lpss, typed, code, what):
    assert lpss("train", "--arch", "mlp:64-20-10", "--epochs", "3", "-q")[0] == 0
    got, out, err = lpss("sparsify", "model.pt", *typed)
    assert (got, out) == (code, ""), err
    assert what in err
    assert "Traceback" not in err
    assert not Path("model.sparse.pt").exists()


def test_a_training_from_scratch_has_nothing_to_drop_from(lpss):
    Path("r.toml").write_text('title = "x"\n[train]\ntarget_drop = 1.0\n')
    code, _, err = lpss("train", "--recipe", "r.toml")
    assert code == 2
    assert "--target-drop compares with a trained network, and there is none yet" in err
