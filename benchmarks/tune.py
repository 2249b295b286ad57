"""Choose learning rates and decay for the accuracy tables, on a part of the training data.

    python benchmarks/tune.py CASE --data-dir DIR

Every method of a case gets about as many points. A tenth of the training data is held out and
measured; the test split is not touched, and a dense network that runs start from was trained
without that tenth as well. Writes benchmarks/results/tune_CASE.json, one record a
run, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tables import FOLDER, Results
from training import sparsified, trained

from lpss_cli.errors import RunError

LENET300 = {"arch": "lenet300", "data": "mnist", "epochs": 12, "batch_size": 256}
LENET5 = {"arch": "lenet5", "data": "mnist", "batch_size": 256, "precision": "bf16"}
WRN18 = {
    "arch": "wrn18",
    "data": "fashion-mnist",
    "augment": "fashion",
    "batch_size": 256,
    "precision": "bf16",
}
SGD = {"lr": (0.05, 0.1, 0.2, 0.4), "weight_decay": (0.0, 5e-4)}
LPSGD = {"eta": (0.005, 0.01, 0.02), "lr": (0.05, 0.1)}
# Beyond the largest learning rate, where that was the best.
LARGER = {"lr": (0.8,), "weight_decay": (0.0, 5e-4)}
#: case → (what all its runs share, seeds, grids of options per method)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...], dict[str, list[dict[str, tuple]]]]] = {
    "wrn18": (
        {**WRN18, "epochs": 4, "sparsity": 0.9},
        (0,),
        {
            "lpss": [
                {"p": (("1.1",), ("1.2",), ("1.3",)), "eta": (0.01, 0.02)},
                {"lr": (0.05, 0.2)},
                {"lr": (0.2,), "weight_decay": (5e-4,)},
            ],
            "dense": [{"lr": (0.05, 0.1, 0.2), "weight_decay": (0.0, 5e-4)},
                      {"lr": (0.4,), "weight_decay": (5e-4,)},
                      {"lr": (0.2,), "weight_decay": (1e-3,)}],
        },
    ),
    "wrn18-from-dense": (
        {
            "augment": "fashion",
            "epochs": 4,
            "sparsity": 0.9,
            "batch_size": 256,
            "precision": "bf16",
            "start": {
                **WRN18, "epochs": 8, "method": "dense",
                "options": {"lr": 0.2, "weight_decay": 5e-4},
            },
        },
        (0,),
        {
            "lpss": [
                {"eta": (0.01, 0.005), "end": (0.7, 0.5, 0.4)},
                {"eta": (0.0025,), "end": (0.4,)},
                {"p": (("1.5",),), "end": (0.4,)},
            ],
            "gmp": [
                {"lr": (0.03,), "end": (0.5,)},
                {"lr": (0.1,), "weight_decay": (5e-4,), "end": (0.4,)},
            ],
        },
    ),
    "lenet300-0.9": (
        {**LENET300, "sparsity": 0.9},
        (0,),
        {
            "lpss": [LPSGD, {"eta": (0.005, 0.01, 0.02), "lr": (0.2,)}],
            "gmp": [SGD],
            "dense": [SGD, LARGER],
        },
    ),
    "lenet300-60x": (
        {**LENET300, "epochs": 20, "sparsity": 1 - 1 / 60},
        (0,),
        {"lpss": [LPSGD], "gmp": [SGD, LARGER]},
    ),
    "lenet5-300x": (
        {**LENET5, "epochs": 5, "sparsity": 1 - 1 / 300},
        (0,),
        {
            "lpss": [
                {},
                {"p": (("1.12",), ("1.4",))},
                {"lr": (0.1,)},
                {"end": (0.8,)},
                {"ranking": ("balanced", "erk")},
            ]
        },
    ),
    **{
        f"lenet300-p-{s:g}": (
            {**LENET300, "sparsity": s},
            (0, 1),
            {
                "lpss": [
                    {
                        "p": tuple((str(p),) for p in (0.5, 1.07, 1.15, 1.2, 1.3, 1.5, 2)),
                        "off_sphere": (("fc3",),),
                        "ranking": ("balanced",),
                    }
                ]
            },
        )
        for s in (0.5, 0.8, 0.9, 0.95, 0.98)
    },
}  # fmt: skip


def runs(grids: dict[str, list[dict[str, tuple]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every method with every point of its grids."""
    for method, several in grids.items():
        for grid in several:
            for values in itertools.product(*grid.values()):
                yield method, dict(zip(grid, values, strict=True))


def held_out(
    base: dict[str, Any], folder: Path, method: str, options: dict[str, Any], seed: int
) -> float:
    """Held-out accuracy of one run; 0 when it diverged.

    Args:
        base: what all runs of the case share; ``start`` is the dense run that they go on from.
        folder: where dense networks are kept.
        method: of this run.
        options: of the method.
        seed: of this run and of the dense one before it.
    """
    fields = {**base, "method": method, "options": options, "seed": seed, "holdout": 0.1}
    start = fields.pop("start", None)
    if method == "dense":
        fields.pop("sparsity")
    try:
        if start is None:
            outcome = trained(**fields)
        else:
            same = {name: fields[name] for name in ("data_dir", "seed", "holdout")}
            outcome = sparsified(folder / f"dense-{seed}.pt", {**start, **same}, **fields)
    except RunError:
        return 0.0
    return outcome.after["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data-dir", required=True)
    given = parser.parse_args()
    base, seeds, grids = CASES[given.case]
    base = {**base, "data_dir": given.data_dir}
    results = Results(FOLDER / f"tune_{given.case}.json")
    with tempfile.TemporaryDirectory() as folder:
        for method, options in runs(grids):
            label = f"{method} {json.dumps(options)}"
            results.fill(label, seeds, partial(held_out, base, Path(folder), method, options))
            print(f"{label}: {100 * statistics.mean(results.read()[label]):.2f}", flush=True)


if __name__ == "__main__":
    main()
