"""Hoyer sparsity predicted from p and fan-in before training, against measured after it.

    python benchmarks/hoyer.py --data-dir DIR

Networks are trained on Lp spheres without any pruning. The shape of the prediction is fitted to
the calibration runs alone; the test networks and their data are in none of them. Writes
benchmarks/results/hoyer.json and .md, and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from lpss_cli import jobs
from lpss_cli.request import Request

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
    """Train at p without pruning; return fan-in and Hoyer of every layer on a sphere."""
    fields = dict(spec)
    overrides = {"data_dir": root}
    if "augment" in fields:
        overrides["augment"] = fields.pop("augment")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "m.pt"
        options = {"p": (str(p),)}
        request = Request(out, data_overrides=overrides, method="lpss", options=options, **fields)
        report = jobs.train(request).report
    return [
        {"layer": x.name, "fan_in": x.weights // x.shape[0], "hoyer": x.hoyer}
        for x in report.layers
        if x.p is not None
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    root = parser.parse_args().data_dir
    out = Path("benchmarks/results/hoyer.json")
    done = json.loads(out.read_text()) if out.exists() else {}
    for name, spec in {**CALIBRATION, **TEST}.items():
        for p in EXPONENTS:
            key = f"{name}, p = {p:g}"
            if key not in done:
                done[key] = measured(spec, p, root)
                out.write_text(json.dumps(done, indent=1) + "\n")
                print(key, [f"{x['hoyer']:.3f}" for x in done[key]], flush=True)


if __name__ == "__main__":
    main()
