"""Packaged recipes are the published experiments; files are checked before anything runs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lpss_cli import models
from lpss_cli.data import DataSpec
from lpss_cli.errors import InputError
from lpss_cli.jobs import config, recipes, training_job
from lpss_cli.jobs.config import check
from lpss_cli.training import method

# What is published: input shape, classes, parameters, epochs, accuracy at 50, 80, 90 % zeros.
LPSS = {
    "dna": ((180,), 3, 936_195, 40, (0.9533, 0.9233, 0.9755)),
    "mushroom": ((116,), 2, 90_562, 20, (1.0, 0.9890, 0.7172)),
    "climate": ((18,), 2, 76_738, 20, (0.9714, 0.9643, 0.9214)),
    "mnist-wrn12": ((1, 28, 28), 10, 170_298, 40, (0.9957, 0.9953, 0.9946)),
    "fashion-mnist-wrn18": ((1, 28, 28), 10, 267_514, 50, (0.9443, 0.9391, 0.9329)),
    "cifar10-wrn22-2": ((3, 32, 32), 10, 1_154_074, 250, (0.9423, 0.9383, 0.9310)),
    "tiny-imagenet-wrn22-4": ((3, 64, 64), 200, 4_644_120, 250, (0.6377, 0.6295, 0.6042)),
}
ROWS = [
    (f"lpss-{name}-{sparsity}", sparsity, published, *row[:4])
    for name, row in LPSS.items()
    for sparsity, published in zip((0.5, 0.8, 0.9), row[4], strict=True)
]
SMALL = """
title = "digits, small"
seeds = [0, 1]
[train]
data = "digits"
arch = "mlp:64-20-15-10"
epochs = 1
[sparsify]
sparsity = "10x"
epochs = 1
p = ["1.3", "fc2*=1.5"]
"""


def test_the_packaged_recipes_are_the_rows_of_the_table():
    assert {row[0] for row in ROWS} == {n for n in recipes.names() if n.startswith("lpss-")}


@pytest.mark.parametrize("name", recipes.names())
def test_a_packaged_recipe_resolves_to_a_request(name):
    recipe = recipes.read(name)
    assert (recipe.name, bool(recipe.title), bool(recipe.source)) == (name, True, True)
    for stage in recipes.STAGES:
        if getattr(recipe, stage) is not None:
            request = config.make_request({}, recipe.options(stage))
            check(request)
            method.make(request.method, request.options)
            if request.data is not None:  # sparsify takes the network's own
                DataSpec.from_dict({"name": request.data, **request.data_overrides})


@pytest.mark.parametrize(
    ("name", "sparsity", "published", "shape", "classes", "parameters", "epochs"),
    ROWS,
    ids=[row[0] for row in ROWS],
)
def test_a_recipe_of_the_table_is_what_is_published(
    name, sparsity, published, shape, classes, parameters, epochs
):
    recipe = recipes.read(name)
    request = config.make_request({}, recipe.options("train"))
    assert (recipe.table, recipe.published, recipe.seeds) == ("lpss", published, (0, 1))
    assert (request.sparsity, request.epochs) == (sparsity, epochs)
    # Batches of 256 would be one step an epoch on the 400 rows of Climate.
    assert request.batch_size == (None if "climate" in name else 256)
    assert request.method == "lpss"
    assert set(request.options) <= {"p", "off_sphere", "ranking"}  # all else is the default
    with torch.device("meta"):
        network = models.build(request.arch, shape, classes)
    count = sum(p.numel() for p in network.parameters())
    if len(shape) == 3:
        assert count == parameters
        assert request.precision == "bf16"
    else:
        assert count == pytest.approx(parameters, rel=0.01)
        assert f"{count:,}" in recipe.title


@pytest.mark.parametrize(
    ("name", "side", "examples", "classes"),
    # Tiny ImageNet with its 200 classes would need as many images, minutes of work.
    [("lpss-cifar10-wrn22-2-0.9", 32, 30, 10), ("lpss-tiny-imagenet-wrn22-4-0.5", 64, 8, 4)],
)
def test_an_image_recipe_runs_on_arrays_of_its_shape(lpss, name, side, examples, classes):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (examples, 3, side, side), dtype=np.uint8)
    y = np.arange(examples) % classes
    np.savez("x.npz", x_train=x, y_train=y, x_test=x[:2], y_test=y[:2])
    # bf16 is slow on CPUs that do not have it.
    typed = ["--epochs", "1", "--batch-size", str(examples // 2), "--precision", "fp32"]
    code, out, err = lpss("train", "--recipe", name, "--data", "x.npz", *typed, "--json")
    assert code == 0, err
    assert f"recipe {name}: " in err
    meta = torch.load("model.pt", weights_only=True)["lpss"]
    recipe = recipes.read(name)
    assert meta["settings"]["precision"] == "fp32"
    assert meta["data"]["augment"] == "cifar"
    report = json.loads(out)["report"]
    assert report["zeros"] == round(recipe.train["sparsity"] * report["prunable"])


def test_a_recipe_file_trains_and_sparsifies_and_typed_options_win(lpss):
    Path("small.toml").write_text(SMALL)
    assert lpss("train", "--recipe", "small.toml", "--seed", "5")[0] == 0
    meta = torch.load("model.pt", weights_only=True)["lpss"]
    assert (meta["arch"], meta["settings"]["seed"]) == ("mlp:64-20-15-10", 5)
    code, out, _ = lpss(
        "sparsify", "model.pt", "--recipe", "small.toml", "--sparsity", "50%", "--json"
    )
    assert code == 0
    report = json.loads(out)["report"]
    assert report["zeros"] == report["prunable"] / 2
    assert [layer["p"] for layer in report["layers"]] == [1.3, 1.5, 1.3]


def test_resume_on_the_command_line(lpss):
    Path("small.toml").write_text(SMALL)
    code, _, err = lpss("train", "--recipe", "small.toml", "--resume")
    assert code == 0
    assert "there is no model.pt.partial: starting from the beginning" in err
    Path("model.sparse.pt.partial").write_bytes(b"broken")
    code, _, err = lpss("sparsify", "model.pt", "--recipe", "small.toml", "--resume")
    assert code == 2
    assert "model.sparse.pt.partial cannot be read" in err


@pytest.mark.parametrize(
    ("text", "what", "do"),
    [
        ("title = 1\n[train]\n", "title is not a string", ""),
        ("[train]\n", "title is not a line", ""),
        ('title = "x"', "there are no options", "[train]"),
        ('title = "x"\ntrain = 3', "train is not a table", ""),
        ('title = "x"\nseed = [1]\n[train]\n', "a recipe has no 'seed'", "did you mean 'seeds'"),
        ('title = "x"\nseeds = []\n[train]\n', "seeds is not", "[0, 1]"),
        ('title = "x"\npublished = "95 %"\n[train]\n', "published is not a fraction", "0.95"),
        ('title = "x"\n[train]\nepoch = 3', "[train] there is no option 'epoch'", "'epochs'"),
        ('title = "x"\n[train]\nepochs = "3"', "[train] --epochs '3' is not", "whole number"),
        ('title = "x"\n[train]\ntrust_pickle = true', "no option 'trust_pickle'", "known"),
        ('title = "x', "is not a TOML file", "repair"),
    ],
    ids=str,
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path, text, what, do):
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        recipes.read(str(path))
    assert what in error.value.what
    assert "r.toml" in error.value.what
    assert do in error.value.do


def test_an_unknown_recipe_lists_those_there_are(lpss):
    code, out, err = lpss("train", "--recipe", "lpss-mnist-wrn12-0.95")
    assert (code, out) == (2, "")
    assert "no recipe called 'lpss-mnist-wrn12-0.95'" in err
    assert "did you mean 'lpss-mnist-wrn12-0.9'" in err
    assert all(name in err for name in recipes.names())
    with pytest.raises(InputError, match=r"none\.toml cannot be read"):
        recipes.read("none.toml")


def test_a_recipe_without_the_stage_names_the_other_command(tmp_path):
    recipe = recipes.read("lpss-climate-0.9")
    with pytest.raises(InputError, match=r"no \[sparsify\] part") as error:
        recipe.options("sparsify")
    assert "lpss train" in error.value.do


def test_a_recipe_through_the_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(SMALL)
    options = recipes.read("small.toml").options("train")
    outcome = training_job.train(config.make_request({"seed": 1}, options, out=Path("a.pt")))
    assert outcome.report.zeros == 0
