"""Which way to the target: the cubic path, the paper's controller, or LpSS as published.

    python benchmarks/lpss_paths.py --data-dir DIR

LeNet-300-100 on MNIST from scratch, 12 epochs, batch 256, all else by default, measured on a tenth
of the training data held out (a default is chosen here, so the test split stays untouched). Writes
benchmarks/results/lpss_paths.json and .md.
"""

from __future__ import annotations

import argparse
from functools import partial

from tables import FOLDER, Results, spread
from tables import table as markdown
from training import trained

from lpss_cli.errors import RunError

PUBLISHED_TIMES = {"begin": 0.2, "end": 0.8, "frequency": 40}
WAYS = {
    "lpss, cubic path (default)": ("lpss", {}),
    "lpss, controller": ("lpss", {"path": "controller"}),
    "lpss, controller at the published times": (
        "lpss",
        {"path": "controller", **PUBLISHED_TIMES},
    ),
    "lpss-published": ("lpss-published", {}),
}
SEEDS = (0, 1, 2)
# Twice chance: a run below it has collapsed, and is counted instead of averaged.
COLLAPSED = 0.2
SPARSITIES = (0.9, 0.98)


def accuracy(method: str, options: dict, sparsity: float, root: str, seed: int) -> float | None:
    """Held-out accuracy of one run; None when it diverged to NaN."""
    try:
        outcome = trained(
            data="mnist",
            data_dir=root,
            arch="lenet300",
            method=method,
            options=options,
            sparsity=sparsity,
            epochs=12,
            seed=seed,
            holdout=0.1,
        )
    except RunError:
        return None
    return outcome.after["accuracy"]


def table(done: dict[str, list[float | None]]) -> str:
    """Lay the finished runs out as Markdown."""
    rows = [[way, *(_cell(done.get(f"{way} at {s}", [])) for s in SPARSITIES)] for way in WAYS]
    return markdown(["way", *(f"{s:.0%} zeros" for s in SPARSITIES)], rows)


def _cell(runs: list[float | None]) -> str:
    values = [100 * a for a in runs if a is not None and a > COLLAPSED]
    lost = len(runs) - len(values)
    return spread(values) + (f" ({lost} of {len(runs)} seeds collapsed)" if lost else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    root = parser.parse_args().data_dir
    command = "`python benchmarks/lpss_paths.py --data-dir DIR`"
    results = Results(FOLDER / "lpss_paths.json", command, table)
    for name, (method, options) in WAYS.items():
        for sparsity in SPARSITIES:
            measure = partial(accuracy, method, options, sparsity, root)
            results.fill(f"{name} at {sparsity}", SEEDS, measure)
    print(table(results.read()))


if __name__ == "__main__":
    main()
