"""Published tables, reproduced: every recipe of a table with each of its seeds.

    python benchmarks/reproduce.py lpss --data-dir DIR [--only 'lpss-mnist*'] [--seeds N]

DIR holds the known data sets, and the files and folders that recipes name (climate.csv, …). A
recipe with both parts trains densely, then sparsifies that network with the same seed; recipes
with the same dense part share it. Finished runs are kept and killed ones go on where they were.
Writes benchmarks/results/TABLE.json and TABLE.md after every run. Nothing is chosen here: every
option is the recipe's, and the accuracy is the last epoch's, on the test split.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from itertools import chain, count, islice
from pathlib import Path

from tables import FOLDER, Results, spread, table

from lpss_cli.checkpoints import loading
from lpss_cli.data.spec import KNOWN
from lpss_cli.errors import InputError, LpssError, RunError
from lpss_cli.jobs import config, recipes, sparse_training, training_job
from lpss_cli.jobs.recipes import Recipe
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.reporting.report import report

HERE = Path(__file__).parent
HEAD = ("data", "network", "sparsity", "epochs", "published", "ours mean ± sd (seeds)", "Δ points")


class Printed(JobCallback):
    """Prints what a job says, and one line an epoch."""

    def on_note(self, text: str) -> None:
        """Print it."""
        print(f"  {text}", flush=True)

    def on_warning(self, text: str) -> None:
        """Print it."""
        print(f"  Warning: {text}", flush=True)

    def on_epoch(self, run) -> None:
        """Print its record."""
        last = run.history[-1]
        print(f"  epoch {run.epoch}: loss {last['loss']:.4f}, {last['seconds']:.1f} s", flush=True)


def stages(recipe: Recipe) -> dict[str, dict]:
    """The parts of a recipe in their order; it must begin with training."""
    recipe.options("train")
    return {name: dict(getattr(recipe, name)) for name in recipes.STAGES if getattr(recipe, name)}


def place(options: dict, data_dir: Path) -> dict[str, str]:
    """Say where the data of a recipe are on this machine; a sparsified network knows its own."""
    if "data" not in options:
        return {}
    if options["data"] in KNOWN:
        return {"data_dir": str(data_dir)}
    path = data_dir / options["data"]
    return {"data": str(path)} if path.exists() else {}


def artifacts(recipe: Recipe, seed: int, data_dir: Path, work: Path) -> list[Path]:
    """Run the parts of a recipe with one seed, or what is left of them; return their files.

    They keep the weights that training began from: tickets need them.
    """
    files: list[Path] = []
    so_far = []
    for stage, options in stages(recipe).items():
        # A file is known by all the options that made it: an edited recipe is another run.
        so_far.append(options)
        digest = hashlib.sha256(json.dumps(so_far, sort_keys=True).encode()).hexdigest()[:10]
        out = work / f"{stage}-{digest}-seed{seed}.pt"
        if not out.exists():
            typed = {"seed": seed, **place(options, data_dir)}
            request = config.make_request(
                typed, options, out=out, resume=True, keep_init=True, command=recipe.name
            )
            if files:
                sparse_training.sparsify_checkpoint(files[-1], request, Printed())
            else:
                training_job.train(request, Printed())
        files.append(out)
    return files


def run(recipe: Recipe, seed: int, data_dir: Path, work: Path) -> dict:
    """Run one recipe with one seed; return what was measured."""
    files = artifacts(recipe, seed, data_dir, work)
    meta, counted = loading.read(files[-1]).meta, report(files[-1])
    return {
        **meta["metrics"]["after"],
        "primary": meta["primary_metric"],
        "before_cut": (meta["metrics"]["before_cut"] or {}).get(meta["primary_metric"]),
        "zeros": counted.zeros,
        "prunable": counted.weights,
        "hoyer": counted.hoyer,
        "seconds": sum(loading.read(file).meta["seconds"] for file in files),
        "device": meta["device"],
        "versions": meta["versions"],
    }


def row(recipe: Recipe, runs: dict[str, dict]) -> list[str]:
    """One line of the table."""
    parts = stages(recipe)
    last = list(parts.values())[-1]
    epochs = " + ".join(str(options.get("epochs", "default")) for options in parts.values())
    published = "" if recipe.published is None else f"{100 * recipe.published:.2f}"
    train = parts["train"]
    what = [Path(train.get("data", "digits")).stem, train.get("arch", "mlp")]
    good = [100 * r[r["primary"]] for r in runs.values() if "failed" not in r]
    ours, change = "not yet run", ""
    if good:
        ours = f"{spread(good)} ({len(good)})"
        if recipe.published is not None:
            change = f"{statistics.mean(good) - 100 * recipe.published:+.2f}"
    if len(good) < len(runs):
        ours = f"{ours if good else ''} {len(runs) - len(good)} of {len(runs)} diverged".strip()
    cells = [*what, f"{last.get('sparsity', 0.9 if 'sparsify' in parts else 0):.4g}", epochs]
    return [*cells, published, ours, change]


def of_table(name: str, folder: Path, only: str) -> tuple[list[Recipe], list[Recipe]]:
    """All recipes of a table, by data, network and sparsity, and those of them to run."""
    found = [recipes.read(str(path)) for path in sorted(folder.glob("*.toml"))]
    found = [recipe for recipe in found if recipe.table == name]
    chosen = [recipe for recipe in found if fnmatch(recipe.name, only)]
    if not chosen:
        what = f"--only {only!r} matches no recipe" if found else f"no table {name!r}"
        raise InputError(what, f"recipes: {', '.join(r.name for r in found) or folder}")
    return found, chosen


def seeds(recipe: Recipe, number: int | None) -> Iterator[int]:
    """The recipe's seeds, or so many of them, and more behind them."""
    more = chain(recipe.seeds, count(max(recipe.seeds) + 1))
    return islice(more, len(recipe.seeds) if number is None else number)


def layout(all_of_it: list[Recipe], done: dict) -> str:
    """The table of all recipes, with what was run of them."""
    rows = [row(recipe, done.get(recipe.name, {}).get("runs", {})) for recipe in all_of_it]
    return table(HEAD, rows)


def reproduce(arguments: argparse.Namespace) -> None:
    """Run what is missing."""
    name = arguments.table
    found, chosen = of_table(name, arguments.recipes, arguments.only)
    for folder in (arguments.results, arguments.work):
        folder.mkdir(parents=True, exist_ok=True)
    head = f"`python benchmarks/reproduce.py {name} --data-dir DIR`\n\nTest accuracy in %."
    results = Results(arguments.results / f"{name}.json", head, partial(layout, found))
    for recipe in chosen:
        options = json.loads(json.dumps(stages(recipe)))
        with results.changed() as done:
            if done.get(recipe.name, {}).get("options") != options:
                done[recipe.name] = {"options": options, "runs": {}}
        for seed in seeds(recipe, arguments.seeds):
            if str(seed) in results.read()[recipe.name]["runs"]:
                continue
            print(f"{recipe.name}, seed {seed}", flush=True)
            try:
                measured = run(recipe, seed, arguments.data_dir, arguments.work)
            except RunError as error:
                measured = {"failed": error.what}
                print(f"  failed: {error.what}")
            except InputError as error:  # mostly data that are not at hand
                print(f"  not run: {error.what}: {error.do}")
                break
            with results.changed() as done:
                done[recipe.name]["runs"][str(seed)] = measured
    print(results.path.with_suffix(".md").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", default="*", help="a glob on the recipes' names")
    parser.add_argument("--seeds", type=int, help="so many; default: the recipe's own")
    parser.add_argument("--recipes", type=Path, default=recipes.FOLDER)
    parser.add_argument("--work", type=Path, default=HERE / "artifacts")
    parser.add_argument("--results", type=Path, default=FOLDER)
    try:
        reproduce(parser.parse_args())
    except LpssError as error:
        raise SystemExit(f"Error: {error.what}\n{error.do}") from None


if __name__ == "__main__":
    main()
