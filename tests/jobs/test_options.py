"""Options by name, typed or from TOML, become one request."""

from pathlib import Path

import pytest

from lpss_cli.errors import InputError
from lpss_cli.jobs import config
from lpss_cli.jobs.config import Request


def test_typed_texts_and_toml_values_mean_the_same():
    typed = {"sparsity": "60x", "drop": "study,run", "mean": "0.5,0.25", "p": ("1.2",), "lr": 1.0}
    toml = {
        "sparsity": 59 / 60, "drop": ["study", "run"], "mean": [0.5, 0.25], "p": "1.2", "lr": 1,
    }  # fmt: skip
    assert config.make_request(typed) == config.make_request(toml)


def test_every_name_finds_its_place():
    values = {
        "data": "x.csv", "arch": "mlp", "method": "lpss", "sparsity": "0.5", "epochs": 2,
        "target": "y", "data_dir": Path("d"), "p": ["1.2", "fc2*=0.5"], "eta": 0.1, "skip": "fc1*",
    }  # fmt: skip
    request = config.make_request(values, out=Path("m.pt"), force=True)
    assert request == Request(
        out=Path("m.pt"),
        data="x.csv",
        data_overrides={"target": "y", "data_dir": "d"},
        arch="mlp",
        method="lpss",
        options={"p": ("1.2", "fc2*=0.5"), "eta": 0.1},
        sparsity=0.5,
        epochs=2,
        skip=("fc1*",),
        force=True,
    )


def test_nothing_given_is_every_default():
    assert config.make_request(dict.fromkeys(config.recipe_options())) == Request()


def test_what_was_typed_wins_over_the_base():
    base = {"epochs": 250, "seed": 4, "p": ["1.2", "x=1.3"], "augment": "cifar"}
    request = config.make_request({"epochs": 1, "p": ("1.5",), "seed": None}, base)
    assert (request.epochs, request.seed) == (1, 4)
    assert request.options == {"p": ("1.5",)}
    assert request.data_overrides == {"augment": "cifar"}


def test_another_method_leaves_the_base_s_method_options():
    base = {"method": "lpss", "eta": 0.1, "epochs": 3}
    assert config.make_request({"method": "gmp"}, base) == Request(method="gmp", epochs=3)
    assert config.make_request({"method": "lpss"}, base).options == {"eta": 0.1}


@pytest.mark.parametrize(
    ("values", "what", "do"),
    [
        ({"epoch": 3}, "there is no option 'epoch'", "did you mean 'epochs'"),
        ({"batch-size": 3}, "there is no option 'batch-size'", "did you mean 'batch_size'"),
        ({"out": "x.pt"}, "there is no option 'out'", "known:"),
        ({"epochs": "many"}, "--epochs 'many' is not a whole number", "give a whole number"),
        ({"epochs": True}, "--epochs True is not a whole number", ""),
        ({"epochs": 1.5}, "--epochs 1.5 is not a whole number", ""),
        ({"lr": "0.1"}, "--lr '0.1' is not a number", ""),
        ({"lr": True}, "--lr True is not a number", ""),
        ({"data": 3}, "--data 3 is not a string", ""),
        ({"p": 1.15}, "--p 1.15 is not a string or a list of strings", ""),
        ({"p": ["1.15", 2]}, "--p", "a list of strings"),
        ({"sparsity": "much"}, "--sparsity 'much' is not a number", "10x"),
        ({"sparsity": [0.5]}, "--sparsity '[0.5]' is not a number", "10x"),
        ({"mean": ["a"]}, "--mean", "0.48"),
        ({"drop": 3}, "--drop 3 is not a string or a list of strings", ""),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(values, what, do):
    with pytest.raises(InputError) as error:
        config.make_request(values)
    assert what in error.value.what
    assert do in error.value.do
