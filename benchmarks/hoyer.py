"""Hoyer sparsity predicted from p and fan-in before training, against measured after it.

    python benchmarks/hoyer.py --data-dir DIR

Networks are trained on Lp spheres without any pruning. The shape of the prediction is fitted to
the calibration runs alone; the test networks and their data are in none of them. Writes
benchmarks/results/hoyer.json and .md, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from tables import FOLDER, Results
from training import request_for

from lpss_cli.checkpoints.loading import read
from lpss_cli.jobs import training_job
from lpss_cli.sparsity.hoyer_prediction import predicted_hoyer

FASHION_CNN = {"data": "fashion-mnist", "batch_size": 256, "precision": "bf16"}
CALIBRATION = {
    "mlp:784-500-200-10 on Fashion-MNIST": {
        "arch": "mlp:784-500-200-10", "data": "fashion-mnist", "epochs": 12, "batch_size": 256,
    },
    "mlp:64-300-100-10 on digits": {"arch": "mlp:64-300-100-10", "data": "digits"},
    "lenet5 on Fashion-MNIST": {"arch": "lenet5", "epochs": 8, **FASHION_CNN},
    "wrn12 on MNIST": {
        "arch": "wrn12", "data": "mnist", "epochs": 4, "batch_size": 256, "precision": "bf16",
    },
}  # fmt: skip
TEST = {
    "lenet300 on MNIST": {"arch": "lenet300", "data": "mnist", "epochs": 12, "batch_size": 256},
    "wrn18 on Fashion-MNIST": {"arch": "wrn18", "epochs": 3, "augment": "fashion", **FASHION_CNN},
}
EXPONENTS = (1.07, 1.15, 1.3, 1.5, 2.0)


def measured(spec: dict, p: float, root: str) -> list[dict]:
    """Train at p without pruning; return what is known of every layer on a sphere."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.pt"
        options = {"p": (str(p),)}
        request = request_for(out, **spec, data_dir=root, method="lpss", options=options)
        report = training_job.train(request).report
        facts = read(out).meta["weights"]
    return [
        {
            "layer": x.name,
            "fan_in": x.weights // x.shape[0],
            "hoyer": x.hoyer,
            "travel": facts[x.name]["travel"],
        }
        for x in report.layers
        if x.p is not None
    ]


def summary(done: dict[str, list[dict]]) -> str:
    """Mean absolute error of every test network at every p, and over all its layers."""
    lines = [
        "| network | " + " | ".join(f"p = {p:g}" for p in EXPONENTS) + " | mean abs. error |",
        "|---|" + "---|" * (len(EXPONENTS) + 1),
    ]
    everything = []
    for name in (*CALIBRATION, *TEST):
        cells, errors = [], []
        for p in EXPONENTS:
            layers = done.get(f"{name}, p = {p:g}", [])
            pairs = [
                (x["hoyer"], predicted_hoyer(p, x["fan_in"], travel=x["travel"])) for x in layers
            ]
            errors += [abs(measured - predicted) for measured, predicted in pairs]
            means = [statistics.mean(values) for values in zip(*pairs, strict=True)]
            cells.append("{1:.2f} / {0:.2f}".format(*means) if pairs else "not yet run")
        kind = "" if name in TEST else " (calibration)"
        if name in TEST:
            everything += errors
        error = f"{statistics.mean(errors):.3f}" if errors else ""
        lines.append(f"| {name}{kind} | {' | '.join(cells)} | {error} |")
    if everything:
        lines.append(f"\nOver all layers of the test networks: {statistics.mean(everything):.3f}.")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    root = parser.parse_args().data_dir
    results = Results(FOLDER / "hoyer.json", "`python benchmarks/hoyer.py --data-dir DIR`", summary)
    for name, spec in {**CALIBRATION, **TEST}.items():
        for p in EXPONENTS:
            key = f"{name}, p = {p:g}"
            if key not in results.read():
                layers = measured(spec, p, root)
                results.put(key, layers)
                print(key, [f"{x['hoyer']:.3f}" for x in layers], flush=True)


if __name__ == "__main__":
    main()
