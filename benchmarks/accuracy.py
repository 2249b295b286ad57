"""Accuracy at high sparsity from scratch, each method with its options chosen on held-out data.

    python benchmarks/tune.py CASE --data-dir DIR     for the cases below, first
    python benchmarks/accuracy.py --data-dir DIR [--only TEXT]

Every row takes from benchmarks/results/tune_CASE.json the options that were best on the held-out
part, trains with each seed on all training data and measures the final model on the test split,
once. Methods of a group share seeds. Writes benchmarks/results/accuracy.json and .md, and goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import statistics
from functools import partial
from typing import Any

from tables import FOLDER, Results, options_text, spread
from tables import table as markdown
from training import trained
from tune import LENET5, LENET300, WRN18

from lpss_cli.errors import RunError

THREE, TWO = (0, 1, 2), (0, 1)
#: (row, network and budget, sparsity, seeds, tuning case)
GROUPS: list[tuple[str, dict[str, Any], float, tuple[int, ...], str]] = [
    ("LeNet-300 MNIST, 12 epochs, dense", {**LENET300}, 0.0, THREE, "lenet300-0.9"),
    ("LeNet-300 MNIST, 12 epochs, 90 %", {**LENET300}, 0.9, THREE, "lenet300-0.9"),
    ("LeNet-300 MNIST, 12 epochs, 98 %", {**LENET300}, 0.98, THREE, "lenet300-60x"),
    ("LeNet-300 MNIST, 20 epochs, 60×", {**LENET300, "epochs": 20}, 1 - 1 / 60, THREE,
     "lenet300-60x"),
    ("LeNet-5 MNIST, 20 epochs, 125×", {**LENET5, "epochs": 20}, 1 - 1 / 125, TWO, "lenet300-60x"),
    ("LeNet-5 MNIST, 30 epochs, 300×", {**LENET5, "epochs": 30}, 1 - 1 / 300, TWO, "lenet5-300x"),
    ("WRN-18 Fashion-MNIST, 8 epochs, dense", {**WRN18, "epochs": 8}, 0.0, TWO, "wrn18"),
    ("WRN-18 Fashion-MNIST, 8 epochs, 90 %", {**WRN18, "epochs": 8}, 0.9, TWO, "wrn18"),
]  # fmt: skip


def chosen(case: str) -> dict[str, dict[str, Any]]:
    """Method → the options that were best on held-out data."""
    done = Results(FOLDER / f"tune_{case}.json").read()
    best: dict[str, tuple[float, dict[str, Any]]] = {}
    for label, values in done.items():
        method, _, options = label.partition(" ")
        mean = statistics.mean(values)
        if method not in best or mean > best[method][0]:
            parsed = json.loads(options)
            best[method] = mean, {k: tuple(v) if k == "p" else v for k, v in parsed.items()}
    return {method: options for method, (_, options) in best.items()}


def run(
    base: dict[str, Any], method: str, options: dict[str, Any], sparsity: float, seed: int
) -> dict[str, Any]:
    """Train once and measure on the test split."""
    try:
        outcome = trained(
            **base, method=method, options=options, sparsity=sparsity or None, seed=seed
        )
    except RunError as error:
        return {"accuracy": None, "failed": error.what}
    return {
        "accuracy": outcome.after["accuracy"],
        "zeros": outcome.report.zeros,
        "prunable": outcome.report.weights,
        "hoyer": outcome.report.hoyer,
        "seconds": outcome.seconds,
    }


def table(done: dict[str, Any]) -> str:
    """Lay the finished rows out as Markdown."""
    head = ["run", "method", "options chosen on held-out data", "seeds", "zeros",
            "test accuracy, %"]  # fmt: skip
    return markdown(head, [_cells(key, row) for key, row in done.items()])


def _cells(key: str, row: dict[str, Any]) -> list[str]:
    name, _, method = key.rpartition(", ")
    values = [100 * r["accuracy"] for r in row["runs"] if r["accuracy"] is not None]
    lost = len(row["runs"]) - len(values)
    text = spread(values) + (f" ({lost} failed)" if lost else "")
    first = row["runs"][0]
    zeros = f"{first['zeros']:,} of {first['prunable']:,}" if first.get("zeros") else "-"
    options = options_text(row["options"]) or "the defaults"
    return [name, method, options, str(len(row["runs"])), zeros, text]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    given = parser.parse_args()
    command = "`python benchmarks/accuracy.py --data-dir DIR`"
    results = Results(FOLDER / "accuracy.json", command, table)
    for name, base, sparsity, seeds, case in GROUPS:
        if given.only not in name:
            continue
        base = {**base, "data_dir": given.data_dir}
        wanted = {m: o for m, o in chosen(case).items() if (m == "dense") == (sparsity == 0)}
        for method, best in sorted(wanted.items(), key=lambda item: item[0] != "lpss"):
            row = f"{name}, {method}"
            # A row that was begun keeps its options.
            options = results.read().get(row, {}).get("options", best)
            measure = partial(run, base, method, options, sparsity)
            results.fill(row, seeds, measure, options=options)


if __name__ == "__main__":
    main()
