"""`lpss init` writes a recipe that runs as it is and says everything that may be changed."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from lpss_cli.jobs import recipes
from lpss_cli.training import method


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch):
    monkeypatch.delenv("LPSS_DATA_DIR", raising=False)


TRAINED = []  # the bytes of one artifact for all tests


def trained(lpss):
    if not TRAINED:
        assert lpss("train", "--arch", "mlp:64-20-10", "--epochs", "1", "-q")[0] == 0
        TRAINED.append(Path("model.pt").read_bytes())
    Path("model.pt").write_bytes(TRAINED[0])


def test_the_recipe_runs_as_it_is_and_gives_what_no_recipe_gives(lpss):
    trained(lpss)
    code, out, err = lpss("init", "model.pt")
    assert code == 0, err
    assert out == "wrote recipe.toml; next: lpss sparsify model.pt --recipe recipe.toml\n"
    text = Path("recipe.toml").read_text()
    assert "#   fc1.weight  20x64    1,280      64" in text
    assert "# Zeros of all 1,480 prunable weights, here 1,332" in text
    results = []
    for options in (["--recipe", "recipe.toml"], []):
        code, out, err = lpss("sparsify", "model.pt", *options, "--json", "-f", "-o", "s.pt")
        assert code == 0, err
        report = json.loads(out)["report"]
        report["run"] = report["run"]["settings"], report["run"]["data"], report["run"]["config"]
        results.append((report["zeros"], report["layers"], report["run"]))
    assert results[0] == results[1]


def test_what_is_typed_is_written_and_the_rest_stands_in_comments(lpss):
    trained(lpss)
    typed = ["--skip", "fc2", "--layer", "*=0.8", "--eta", "0.005", "--p", "fc1=1.2"]
    assert (
        lpss("init", "model.pt", *typed, "--epochs", "2", "--mean", "0.5", "-o", "r.toml")[0] == 0
    )
    text = Path("r.toml").read_text()
    found = recipes.read("r.toml").sparsify
    assert found["skip"] == ("fc2",)
    assert (found["layer"], found["p"]) == (("*=0.8",), ("fc1=1.2",))
    assert (found["eta"], found["epochs"], found["mean"]) == (0.005, 2, (0.5,))
    assert found["sparsity"] == 0.8  # what the layers add up to
    assert "fc2.weight  10x20      200      20      -" in text
    commented = {line.split()[1] for line in text.splitlines() if " = " in line and line[0] == "#"}
    config = {name for name in text.split() if name in ("momentum", "radius", "path", "warmup")}
    assert config <= commented
    assert len(config) == 4


def test_a_drop_takes_the_place_of_the_sparsity(lpss):
    trained(lpss)
    assert lpss("init", "model.pt", "--target-drop", "60", "--tries", "1", "--epochs", "1")[0] == 0
    found = recipes.read("recipe.toml").sparsify
    assert (found["target_drop"], found["tries"], found.get("sparsity")) == (60.0, 1, None)
    code, out, err = lpss("sparsify", "model.pt", "--recipe", "recipe.toml", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["sparsity"] == 0.5


@pytest.mark.parametrize("name", sorted(method.registry()))
def test_every_method_can_be_written_down(lpss, name):
    trained(lpss)
    code, _, err = lpss("init", "model.pt", "--method", name, "--json")
    assert code == 0, err
    assert recipes.read("recipe.toml").options("sparsify")["method"] == name
    # Every default that is shown is one: taken out of its comment, the recipe is still one.
    lines = Path("recipe.toml").read_text().splitlines()
    options = [line[2:] for line in lines if line[:2] == "# " and " = " in line.partition("  #")[0]]
    options = [x for x in options if not x.startswith(("skip", "layer"))]
    Path("all.toml").write_text("\n".join([*lines, *options]))
    assert options
    recipes.read("all.toml")


def test_names_from_a_file_cannot_add_lines_to_a_recipe(lpss):
    Path("net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    m = nn.Module()\n"
        "    m.body = nn.ModuleDict({'a\\nseed = 7': nn.Linear(64, 10)})\n"
        "    m.forward = lambda x: m.body['a\\nseed = 7'](x.flatten(1))\n"
        "    return m\n"
    )
    torch.save({"body.a\nseed = 7.weight": torch.ones(10, 64),
                "body.a\nseed = 7.bias": torch.zeros(10)}, "odd.pt")  # fmt: skip
    code, _, err = lpss("init", "odd.pt", "--arch", "net.py:make", "--data", "digits")
    assert code == 0, err
    found = recipes.read("recipe.toml").options("sparsify")
    assert (found["seed"], found["arch"]) == (0, "net.py:make")
    assert r"body.a\nseed = 7.weight" in Path("recipe.toml").read_text()


def test_a_network_of_other_origin_is_written_with_what_was_found_out(lpss):
    torch.save(nn.Sequential().state_dict() | {
        "fc1.weight": torch.randn(12, 64), "fc1.bias": torch.zeros(12),
        "fc2.weight": torch.randn(10, 12), "fc2.bias": torch.zeros(10)}, "w.pt")  # fmt: skip
    code, _, err = lpss("init", "w.pt", "--data", "digits", "--epochs", "1")
    assert code == 0, err
    assert "recognized as mlp:64-12-10" in err
    assert recipes.read("recipe.toml").sparsify["arch"] == "mlp:64-12-10"
    code, _, err = lpss("sparsify", "w.pt", "--recipe", "recipe.toml", "--json")
    assert code == 0, err


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["none.pt"], "none.pt"),
        (["model.pt", "--layer", "fc9=0.5"], "matches no weight"),
        (["model.pt", "--sparsity", "1.5"], "outside [0, 1)"),
        (["model.pt", "-o", "recipe.txt"], "not the name of a recipe"),
        (["model.pt", "-o", "old.toml"], "already exists"),
        (["model.pt", "--eta", "3"], "--eta 3 is out of range"),
        (["model.pt", "--data", "nowhere"], "nowhere"),
    ],
)
def test_what_sparsify_would_refuse_is_refused_here(lpss, typed, what):
    trained(lpss)
    Path("old.toml").write_text("mine")
    code, out, err = lpss("init", *typed)
    assert (code, out) == (2, "")
    assert what in err
    assert "Traceback" not in err
    assert not Path("recipe.toml").exists()
    assert Path("old.toml").read_text() == "mine"
