"""Published tables, reproduced: every recipe of a table with each of its seeds.

    python benchmarks/reproduce.py lpss --data-dir DIR [--only 'lpss-mnist*'] [--seeds N]

DIR holds the known data sets, and the files and folders that recipes name (climate.csv, …). A
recipe with both parts trains densely, then sparsifies that network with the same seed. Each run
writes its artefact into the work folder; finished runs are kept and killed ones go on where they
were. Writes benchmarks/results/TABLE.json and TABLE.md after every run. Nothing is chosen here:
every option is the recipe's, and the accuracy is the last epoch's, on the test split.
"""

from __future__ import annotations

import argparse
import json
import statistics
from fnmatch import fnmatch
from pathlib import Path

from lpss_cli import artifact, given, jobs, loading, recipes
from lpss_cli.data.spec import KNOWN
from lpss_cli.errors import InputError, LpssError
from lpss_cli.job import JobWatcher

HERE = Path(__file__).parent
HEAD = (
    "| data | network | sparsity | epochs | published | ours mean ± sd (seeds) | Δ points |\n"
    "|---|---|---|---|---|---|---|"
)


class Printed(JobWatcher):
    """Prints what a job says and one line an epoch."""

    def on_note(self, text):
        print(" ", text, flush=True)

    def on_warning(self, text):
        print("  Warning:", text, flush=True)

    def on_epoch(self, run):
        last = run.history[-1]
        print(f"  epoch {run.epoch}: loss {last['loss']:.4f}, {last['seconds']:.1f} s", flush=True)


def recipes_of(table: str, folder: Path, only: str) -> list[recipes.Recipe]:
    """The recipes of a table whose names match."""
    found = [recipes.read(str(path)) for path in sorted(folder.glob("*.toml"))]
    found = [r for r in found if r.table == table]
    if not found:
        raise InputError(f"no recipe in {folder} is of the table {table!r}", "name another")
    chosen = [r for r in found if fnmatch(r.name, only)]
    if not chosen:
        names = ", ".join(r.name for r in found)
        raise InputError(f"--only {only!r} matches no recipe", f"there are: {names}")
    return found


def place(options: dict, data_dir: Path) -> dict[str, str]:
    """Say where the data of a recipe are on this machine."""
    name = options.get("data", "digits")
    if name in KNOWN:
        return {"data_dir": str(data_dir)}
    return {"data": str(data_dir / name)} if (data_dir / name).exists() else {}


def run(recipe: recipes.Recipe, seed: int, data_dir: Path, work: Path) -> dict:
    """Run one recipe with one seed, or what is left of it; return its row's numbers."""
    before = None
    for stage in recipes.STAGES:
        if getattr(recipe, stage) is None:
            continue
        out = work / f"{recipe.name}-seed{seed}.{stage}.pt"
        options = recipe.options(stage)
        if not is_of(out, options):
            typed = {"seed": seed, **place(options, data_dir)}
            request = given.request(
                typed, options, out=out, force=True, resume=True, command=f"{recipe.name} {stage}"
            )
            watcher = Printed()
            if before is None:
                jobs.train(request, watcher)
            else:
                jobs.sparsify(before, request, watcher)
        before = out
    if before is None:
        raise InputError(f"{recipe.name} has no part", "give it one")
    return numbers(before)
