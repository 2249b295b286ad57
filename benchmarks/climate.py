"""Climate model crashes (UCI, 540 rows): sparse against dense over 12 fixed stratified splits.

    python benchmarks/climate.py --csv climate.csv

An MLP of 76,680 parameters, 20 epochs, 140 test rows a split. Learning rate and decay of the
dense runs, learning rate and η of the sparse ones, are chosen by balanced accuracy on a fifth of
the training rows of each split, held out, the mean over all splits; the grids are of the same
size. Writes benchmarks/results/climate.json and .md.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from typing import Any

from tables import FOLDER, Results, options_text, spread
from tables import table as markdown
from training import trained

from lpss_cli.data import DataSpec, load

ARCH = "mlp:18-512-130-2"
SPLITS = range(12)
TARGETS = (0.5, 0.8, 0.9)
DENSE = {"lr": (0.01, 0.03, 0.1), "weight_decay": (0.0, 5e-4)}
SPARSE = {"eta": (0.005, 0.01), "lr": (0.01, 0.03, 0.1)}


def run(csv: str, split: int, options: dict, sparsity: float, holdout: float | None) -> dict:
    """Train once; accuracy and balanced accuracy."""
    outcome = trained(
        data=csv,
        target="outcome",
        drop=["study", "run"],
        split_seed=split,
        arch=ARCH,
        options=options,
        sparsity=sparsity or None,
        epochs=20,
        seed=split,
        holdout=holdout,
    )
    return {**outcome.after, "zeros": outcome.report.zeros, "prunable": outcome.report.weights}


def constant(csv: str, split: int) -> dict:
    """Answer the most frequent class of the training rows, whatever the input."""
    data = load(DataSpec(csv, target="outcome", drop=("study", "run"), split_seed=split))
    y = next(iter(data.train.batches(len(data.train))))[1]
    t = next(iter(data.test.batches(len(data.test))))[1]
    share = float((t == y.mode().values).float().mean())
    return {"accuracy": share, "balanced_accuracy": 1 / data.outputs, "rows": len(t)}


def points(grid: dict[str, tuple]) -> list[dict[str, Any]]:
    """All combinations of a grid's values."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def best(csv: str, grid: dict[str, tuple], sparsity: float) -> dict[str, Any]:
    """Return the options of the highest mean balanced accuracy on held-out rows."""

    def held_out(options: dict) -> float:
        found = [run(csv, s, options, sparsity, 0.2)["balanced_accuracy"] for s in SPLITS]
        return statistics.mean(found)

    return max(points(grid), key=held_out)


def table(done: dict[str, Any]) -> str:
    """Lay the finished rows out as Markdown."""
    rows = []
    for name, row in done.items():
        cells = [
            spread([100 * r[metric] for r in row["runs"]], digits=1)
            for metric in ("accuracy", "balanced_accuracy")
        ]
        rows.append([name, options_text(row["options"]) or "-", *cells])
    return markdown(["run", "options chosen", "accuracy, %", "balanced accuracy, %"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", required=True)
    csv = parser.parse_args().csv
    command = "`python benchmarks/climate.py --csv climate.csv`"
    results = Results(FOLDER / "climate.json", command, table)
    results.put("constant class", {"options": {}, "runs": [constant(csv, s) for s in SPLITS]})
    for sparsity in (0.0, *TARGETS):
        name = f"lpss, {sparsity:.0%} zeros" if sparsity else "dense"
        if name not in results.read():
            options = best(csv, SPARSE if sparsity else DENSE, sparsity)
            runs = [run(csv, split, options, sparsity, None) for split in SPLITS]
            results.put(name, {"options": options, "runs": runs})
    print(table(results.read()))


if __name__ == "__main__":
    main()
