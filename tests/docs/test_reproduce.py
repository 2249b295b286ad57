"""The reproduction of a table on small recipes: what is finished stays, what is missing runs."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from lpss_cli.jobs import sparse_training, training_job

PATH = Path(__file__).parents[2] / "benchmarks" / "reproduce.py"
pytestmark = pytest.mark.skipif(not PATH.exists(), reason="benchmarks are not installed")

DENSE = '[train]\ndata = "digits"\narch = "mlp:64-20-10"\nepochs = 1\nbatch_size = 256\n'
RECIPES = {
    "both": f'title = "x"\ntable = "t"\npublished = 0.5\nseeds = [0, 1]\n{DENSE}'
    '[sparsify]\nsparsity = "10x"\nepochs = 1\nbatch_size = 256\n',
    "dense": f'title = "x"\ntable = "t"\nseeds = [4]\n{DENSE}',
    "missing": 'title = "x"\ntable = "t"\npublished = 0.9\n[train]\ndata = "none.csv"\n',
    "other": f'title = "x"\ntable = "u"\n{DENSE}',
}


class KilledError(Exception):
    pass


@pytest.fixture
def reproduce(monkeypatch, tmp_path):
    """Call the script with recipes of a folder; returns what it wrote."""
    monkeypatch.syspath_prepend(PATH.parent)
    spec = importlib.util.spec_from_file_location("reproduce", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "recipes").mkdir()
    for name, text in RECIPES.items():
        (tmp_path / "recipes" / f"{name}.toml").write_text(text)

    def call(*more):
        folders = [f"--{n}={tmp_path / n}" for n in ("recipes", "work", "results", "data-dir")]
        monkeypatch.setattr(sys, "argv", ["reproduce.py", "t", *folders, *more])
        module.main()
        results = tmp_path / "results"
        return json.loads((results / "t.json").read_text()), (results / "t.md").read_text()

    return call


@pytest.fixture
def calls(monkeypatch):
    """The trainings that were asked for, and after how many a kill comes (a list of one)."""
    seen, limit = [], [None]

    def watch(module, function, name):
        original = getattr(module, function)

        def spy(*args):
            if len(seen) == limit[0]:
                raise KilledError
            seen.append((name, args[-2].seed))
            return original(*args)

        monkeypatch.setattr(module, function, spy)

    watch(training_job, "train", "train")
    watch(sparse_training, "sparsify_checkpoint", "sparsify")
    return seen, limit


def test_a_table_is_run_once_and_goes_on_after_a_kill(reproduce, calls):
    seen, limit = calls
    limit[0] = 3
    with pytest.raises(KilledError):
        reproduce()
    assert seen == [("train", 0), ("sparsify", 0), ("train", 1)]
    limit[0] = None
    numbers, text = reproduce()
    # The dense run of seed 1 was finished; the one of seed 4 serves another recipe.
    assert seen[3:5] == [("sparsify", 1), ("train", 4)]
    assert len(seen) == 6  # the one of missing data was tried
    assert list(numbers["both"]["runs"]) == ["0", "1"]
    assert all(run["zeros"] == 1332 for run in numbers["both"]["runs"].values())
    rows = [line for line in text.splitlines() if line.startswith("| digits")]
    assert rows[0].startswith("| digits | mlp:64-20-10 | 0.9 | 1 + 1 | 50.00 | ")
    assert "(2)" in rows[0]
    assert rows[1].startswith("| digits | mlp:64-20-10 | 0 | 1 |  | ")
    assert "| none | mlp | 0 | default | 90.00 | not yet run |  |" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 5
    again = reproduce("--only", "[bd]*")
    assert again == (numbers, text)
    assert len(seen) == 6


def test_only_and_seeds_choose(reproduce, calls):
    numbers, text = reproduce("--only", "dense", "--seeds", "2")
    assert calls[0] == [("train", 4), ("train", 5)]
    assert list(numbers) == ["dense"]
    assert text.count("not yet run") == 2
    with pytest.raises(SystemExit, match="matches no recipe"):
        reproduce("--only", "nothing*")


def test_an_edited_recipe_is_run_anew(reproduce, calls, tmp_path):
    reproduce("--only", "dense")
    path = tmp_path / "recipes" / "dense.toml"
    path.write_text(path.read_text().replace("epochs = 1", "epochs = 2"))
    numbers, _ = reproduce("--only", "dense")
    assert calls[0] == [("train", 4), ("train", 4)]
    assert numbers["dense"]["options"]["train"]["epochs"] == 2


def test_a_diverged_run_is_in_the_table(reproduce, tmp_path):
    path = tmp_path / "recipes" / "dense.toml"
    path.write_text(path.read_text() + "lr = 1e30\n")
    numbers, text = reproduce("--only", "dense")
    assert "loss" in numbers["dense"]["runs"]["4"]["failed"]
    assert "1 of 1 diverged" in text


def test_rows_of_a_benchmark_are_filled_once_beside_those_of_others(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(PATH.parent)
    from tables import Results, spread, table

    def layout(rows):
        runs = {name: row["runs"] if "x" in name else row for name, row in rows.items()}
        return table(["row", "mean"], [[name, spread(values)] for name, values in runs.items()])

    results = Results(tmp_path / "t.json", "`command`", layout)
    seen = []

    def measure(seed):
        seen.append(seed)
        if seed == 1:
            results.put("other", [4.0])  # as another process might, meanwhile
        if len(seen) == 3:
            raise KilledError
        return 1.0 + 2 * seed

    with pytest.raises(KilledError):
        results.fill("x", range(3), measure, options={"lr": 0.1})
    results.fill("x", range(3), measure, options={"lr": 0.2})
    results.fill("x", range(3), measure)
    assert seen == [0, 1, 2, 2]
    row = {"options": {"lr": 0.1}, "runs": [1.0, 3.0, 5.0]}
    assert results.read() == {"x": row, "other": [4.0]}
    assert (tmp_path / "t.md").read_text() == (
        "`command`\n\n| row | mean |\n|---|---|\n| x | 3.00 ± 2.00 |\n| other | 4.00 |\n"
    )
    assert capsys.readouterr().out == "x 0 1.0\nx 1 3.0\nx 2 5.0\n"
