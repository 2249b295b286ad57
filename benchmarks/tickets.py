"""Winning tickets: masks of three methods, trained again from the weights of the very start.

    python benchmarks/tickets.py --data-dir DIR [--only TEXT]

For every GSM recipe: the recipe's dense network gives its initial weights and the magnitude mask
(its largest weights, cut at once); the recipe itself gives GSM's mask; 20 epochs of the default
method from the dense network give LpSS's. Each mask is trained from the initial weights as the
dense network was, and so is a random mask with the layer counts of GSM's. Writes
benchmarks/results/tickets.json and .md after every run and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from reproduce import HERE, artifacts
from tables import FOLDER, Results, spread
from tables import table as markdown

from lpss_cli.jobs import config, recipes, sparse_training
from lpss_cli.jobs.recipes import Recipe
from lpss_cli.jobs.ticket import ticket

CASES = ("gsm-mnist-lenet300-60x", "gsm-mnist-lenet5-125x", "gsm-mnist-lenet5-300x")
SHARED = ("batch_size", "precision")
MASKS = {
    "magnitude": {"method": "gmp", "ranking": "magnitude", "epochs": 0},
    "lpss": {"method": "lpss", "epochs": 20},
}


def sparse(recipe: Recipe, mask: str, seed: int, data_dir: Path, work: Path) -> Path:
    """Return the sparse network that a mask comes from; make it if it is missing."""
    files = artifacts(recipe, seed, data_dir, work)
    if mask == "gsm":
        return files[-1]
    out = work / f"{recipe.name}-{mask}-seed{seed}.pt"
    if not out.exists():
        part = recipe.options("sparsify")
        options = {key: part[key] for key in ("sparsity", *SHARED) if key in part}
        typed = {"seed": seed, "data_dir": str(data_dir)}
        request = config.make_request(typed, {**options, **MASKS[mask]}, out=out, keep_init=True)
        sparse_training.sparsify_checkpoint(files[0], request)
    return out


def measure(recipe: Recipe, mask: str, data_dir: Path, work: Path, seed: int) -> dict[str, Any]:
    """Train a ticket; accuracy of its source, of itself and, for GSM, of a random mask."""
    source = sparse(recipe, mask, seed, data_dir, work)
    training = recipe.options("train")
    keys = ("epochs", "lr", "weight_decay", *SHARED)
    options = {key: training[key] for key in keys if key in training}
    typed = {"seed": seed, "data_dir": str(data_dir)}
    out = work / f"{recipe.name}-{mask}-ticket-seed{seed}.pt"
    request = config.make_request(typed, options, out=out, force=True)
    found = ticket(source, request, control=mask == "gsm")
    report = found.outcome.report
    return {
        "source": found.source["accuracy"],
        "ticket": found.outcome.after["accuracy"],
        "random": found.control["accuracy"] if found.control else None,
        "zeros": report.zeros,
        "prunable": report.weights,
        "layers": {layer.name: layer.weights - layer.zeros for layer in report.layers},
    }


def table(done: dict[str, Any]) -> str:
    """Lay the finished runs out as Markdown."""
    head = ["recipe", "mask", "kept weights", "sparse network, %", "ticket, %", "random mask, %"]
    rows = []
    for key, runs in done.items():
        first = runs[0]
        kept = f"{first['prunable'] - first['zeros']:,} of {first['prunable']:,}"
        columns = ("source", "ticket", "random")
        rows.append([*key.split(", "), kept, *(_mean([r[c] for r in runs]) for c in columns)])
    return markdown(head, rows)


def _mean(values: list[float | None]) -> str:
    good = [100 * v for v in values if v is not None]
    return f"{spread(good)} ({len(good)})" if good else "-"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--only", default="", help="recipes whose name contains this text")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--work", type=Path, default=HERE / "artifacts")
    parser.add_argument("--results", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    command = "`python benchmarks/tickets.py --data-dir DIR`"
    results = Results(arguments.results / "tickets.json", command, table)
    for name in CASES:
        for mask in ("magnitude", "gsm", "lpss") if arguments.only in name else ():
            train = partial(measure, recipes.read(name), mask, arguments.data_dir, arguments.work)
            results.fill(f"{name}, {mask}", range(arguments.seeds), train)


if __name__ == "__main__":
    main()
