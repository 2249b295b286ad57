"""Layers with their own target: exact counts, feasible totals, and the way there."""

import json

import pytest
import torch
from helpers import blobs, network
from hypothesis import given
from hypothesis import strategies as st

from lpss_cli.errors import InputError
from lpss_cli.sparsity.layer_targets import (
    LayerBudgets,
    assign_zeros,
    check_initial_zeros,
    check_layer_targets,
    implied_sparsity,
    layer_budgets,
)
from lpss_cli.sparsity.masks import select_masks
from lpss_cli.sparsity.targets import zero_count
from lpss_cli.training import method
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

SIZES = {"a.weight": 100, "b.weight": 50, "c.weight": 50}


def test_every_layer_gets_its_own_zeros_and_later_items_take_precedence():
    assert assign_zeros(["*=0.5", "b=90%", "c.weight=4x"], SIZES) == {
        "a.weight": 50,
        "b.weight": 45,
        "c.weight": 38,  # round(37.5) is the even 38
    }


def test_the_others_share_what_is_left():
    found = layer_budgets(["a=0.8"], SIZES, 0.5)
    assert (found.zeros, found.layer_zeros, found.other_zeros, found.other_weights) == (
        100,
        {"a.weight": 80},
        20,
        100,
    )
    assert found.sparsities(SIZES) == {"a.weight": 0.8, "b.weight": 0.2, "c.weight": 0.2}


@pytest.mark.parametrize(
    ("items", "sparsity", "allowed"),
    [
        (["a=0.8"], 0.3, "from 0.4 to 0.895"),  # 80 to 179 of 200
        (["a=0.8"], 0.9, "from 0.4 to 0.895"),
        (["a=0.5", "b=0.9", "c=0"], 0.9, "0.475"),  # 50 + 45 of 200: no freedom
    ],
)
def test_an_impossible_total_names_the_range_that_is_possible(items, sparsity, allowed):
    with pytest.raises(InputError) as error:
        layer_budgets(items, SIZES, sparsity)
    assert f"give --sparsity {allowed}, or" in error.value.do
    for bound in allowed.replace("from", "").split("to"):
        layer_budgets(items, SIZES, float(bound))


@given(
    sizes=st.lists(st.integers(1, 400), min_size=2, max_size=5),
    parts=st.lists(st.floats(0, 0.999), min_size=1, max_size=3),
    sparsity=st.floats(0, 0.999),
)
def test_the_bounds_in_the_message_are_sharp(sizes, parts, sparsity):
    named = {f"w{i}": n for i, n in enumerate(sizes)}
    items = [f"w{i}={part!r}" for i, part in enumerate(parts[: len(sizes) - 1])]
    try:
        found = layer_budgets(items, named, sparsity)
    except InputError as error:
        if "--sparsity" not in error.do:  # a layer would lose all its weights
            return
        texts = error.do.split(", or")[0].removeprefix("give --sparsity ").removeprefix("from ")
        low, high = (texts.split(" to ") * 2)[:2]
        total = sum(sizes)
        assert layer_budgets(items, named, float(low)).other_zeros == 0
        assert layer_budgets(items, named, float(high)).other_zeros == max(
            0, sum(sizes[len(items) :]) - 1
        )
        zeros = zero_count(total, sparsity)
        assert not zero_count(total, float(low)) <= zeros <= zero_count(total, float(high))
    else:
        assert 0 <= found.other_zeros <= found.other_weights


def test_targets_for_every_layer_imply_the_total():
    assert implied_sparsity(["*=0.5", "a=0.9"], SIZES) == (90 + 25 + 25) / 200
    assert implied_sparsity(["a=0.9"], SIZES) is None


@given(zeros=st.integers(10, 120))
def test_during_training_all_layers_have_gained_the_same_fraction(zeros):
    start = LayerBudgets(10, {"a.weight": 10}, 100)
    end = LayerBudgets(120, {"a.weight": 80}, 100)
    kept = end.kept_weights(SIZES, zeros, start)["a.weight"]
    assert abs((100 - kept - 10) - 70 * (zeros - 10) / 110) < 1
    assert zeros not in (10, 120) or kept == {10: 90, 120: 20}[zeros]


def test_a_count_of_its_own_overrides_the_ranking():
    scores = {"a": torch.arange(4.0), "b": torch.arange(10.0, 14.0)}
    assert [int(m.sum()) for m in select_masks(scores, 4, "magnitude").values()] == [0, 4]
    masks = select_masks(scores, 4, "magnitude", {"a": 3})
    assert masks["a"].tolist() == [False, True, True, True]
    assert masks["b"].tolist() == [False, False, False, True]
    both = select_masks(scores, 4, "lamp", {"a": 3, "b": 1})
    assert [int(m.sum()) for m in both.values()] == [3, 1]


@pytest.mark.parametrize(
    ("item", "what"),
    [
        ("0.5", "does not say which layer"),
        ("=0.5", "does not say which layer"),
        ("fc1=", "is not a number"),
        ("fc1=half", "is not a number"),
        ("fc1=1", "outside"),
        ("fc1=-0.1", "outside"),
        ("fc1=0x", "not a number"),
    ],
)
def test_malformed_targets_are_refused_at_once(item, what):
    with pytest.raises(InputError, match=what):
        check_layer_targets([item])


def test_a_target_below_the_input_is_refused_with_one_that_works():
    wanted = layer_budgets(["a=0.5"], SIZES, 0.5)
    with pytest.raises(InputError, match="already has 60 zeros") as error:
        check_initial_zeros(LayerBudgets(60, {"a.weight": 60}, 100), wanted, SIZES)
    assert "--layer 'a.weight=0.6'" in error.value.do
    with pytest.raises(InputError, match="already have 70 zeros") as error:
        check_initial_zeros(LayerBudgets(70, {"a.weight": 0}, 100), wanted, SIZES)
    assert "--sparsity 0.6" in error.value.do  # 50 + 70 of 200


def test_the_controller_reaches_the_layers_targets_too():
    model = network()
    lpss = method.make("lpss", {"path": "controller", "frequency": 2})
    Trainer(model, blobs(), lpss, TrainingSettings(4, 16, sparsity=0.7, layers=("4=0",))).train()
    assert [int((model[i].weight == 0).sum()) for i in (0, 4)] == [448, 0]


def layers_of(out):
    return {layer["name"]: layer["zeros"] for layer in json.loads(out)["report"]["layers"]}


def test_the_commands_take_it_and_the_report_says_so(lpss, tmp_path):
    train = ("train", "--arch", "mlp:64-20-10", "--epochs", "1", "--json")
    code, out, err = lpss(*train, "--layer", "fc1=0.5", "--layer", "fc2=0.25")
    assert code == 0, err
    assert layers_of(out) == {"fc1.weight": 640, "fc2.weight": 50}  # the sparsity follows
    code, out, err = lpss(
        *("sparsify", "model.pt", "--layer", "fc2=50%", "--sparsity", "0.8", "--epochs", "1"),
        "--json",
    )
    assert code == 0, err
    assert "zeros by layer: fc2.weight 100 of 200, all others 1,084 of 1,280" in err
    assert layers_of(out) == {"fc1.weight": 1084, "fc2.weight": 100}
    code, out, err = lpss("report", "model.sparse.pt")
    assert code == 0
    assert "fc2=50%" in out
    (tmp_path / "r.toml").write_text(
        'title = "x"\n[sparsify]\nlayer = ["fc1=0.9"]\nsparsity = 0.85\nepochs = 0\n'
    )
    code, out, err = lpss("sparsify", "model.pt", "--recipe", "r.toml", "--force", "--json")
    assert code == 0, err
    assert layers_of(out) == {"fc1.weight": 1152, "fc2.weight": 106}
    code, out, err = lpss("plan", "model.pt", "--layer", "fc2=50%", "-s", "0.8", "--json")
    assert code == 0, err
    assert [layer["kept"] for layer in json.loads(out)["layers"]] == [196, 100]


@pytest.mark.parametrize(
    ("typed", "what", "do"),
    [
        (["--layer", "fc9=0.5"], "--layer 'fc9' matches no weight", "fc1.weight"),
        (["--layer", "fc1=0.2"], "does not fit", "from 0.173 to 0.3074"),
        (["--layer", "0.5"], "does not say which layer", "--layer 'fc1=0.5'"),
        (["--layer", "fc1=0.99999"], "leaves none of the 1,280 weights", "0.99921875"),
        (["--layer", "fc1=0.5", "--skip", "fc1"], "matches no weight", "fc2.weight"),
    ],
)
def test_impossible_targets_are_refused_on_the_command_line(lpss, typed, what, do):
    assert lpss("train", "--arch", "mlp:64-20-10", "--epochs", "0", "-q")[0] == 0
    code, out, err = lpss("sparsify", "model.pt", *typed)
    assert (code, out) == (2, "")
    assert what in err
    assert do in err
    assert "Traceback" not in err
