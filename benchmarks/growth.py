"""What grows with what: weights, layers and batch against the cost of a step and of a cut.

    python benchmarks/growth.py [--largest 300]

Three tables, on one CPU thread: a step of LpSGD, one of PyTorch's fused SGD and a selection of 10 %
by LAMP for 1 to LARGEST million weights in 10 layers; the same for 10 million weights in 10 to
1,000 layers; and whole training steps of LeNet-300 on random numbers at batches of 64 to 4,096,
LpSS beside dense. Times are medians of the thread's own (CPU), taken in turns. One cut of a file by
size is what benchmarks/oneshot.py measures. Writes benchmarks/results/growth.json and .md.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from step import SGD_NAME, kinds, weights_like
from tables import FOLDER, table, write

from lpss_cli.api import data_of
from lpss_cli.models import build
from lpss_cli.sparsity.masks import select_masks
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import make
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

OUT = FOLDER / "growth.json"
P = 1.2
MILLION = 10**6
LAYERS = 10
BATCHES = (64, 256, 1024, 4096)


def median_seconds(jobs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of jobs that take turns; the first turn is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(rounds + 1):
        for name, job in jobs.items():
            start = time.thread_time()
            job()
            if turn:
                taken[name].append(time.thread_time() - start)
    return {name: statistics.median(values) for name, values in taken.items()}


def update(weights: int, layers: int, rounds: int) -> dict[str, float]:
    """Seconds of a step and of a selection for so many weights in square layers."""
    side = max(2, round(math.sqrt(weights / layers)))
    shapes = [torch.Size((side, side))] * layers
    found: dict[str, float] = {}
    for name in (SGD_NAME, "compiled"):
        tensors = weights_like(shapes)
        found |= median_seconds({name: kinds(P)[name](tensors).step}, rounds)
        del tensors
    scores = {str(i): w.abs().log() for i, w in enumerate(weights_like(shapes))}
    kept = layers * side * side // 10
    found |= median_seconds(
        {"selection": lambda: select_masks(scores, kept, "lamp")}, min(3, rounds)
    )
    return {"weights": layers * side * side, "layers": layers, **found}


class _Timed(Callback):
    """Collects the CPU time between steps."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step(self, run: object) -> None:
        self.marks.append(time.thread_time())


def training(method: str, batch: int) -> float:
    """Median CPU seconds of a training step of LeNet-300 on random numbers."""
    torch.manual_seed(0)
    steps = 60
    examples = torch.randn(batch * steps, 1, 28, 28), torch.randint(10, (batch * steps,))
    data = data_of(examples, None, None)
    model = build("lenet300", (1, 28, 28), 10)
    timed = _Timed()
    sparsity = 0.0 if method == "dense" else 0.9
    settings = TrainingSettings(1, batch, sparsity=sparsity)
    Trainer(model, data, make(method), settings, callback=timed).train()
    return statistics.median(b - a for a, b in zip(timed.marks, timed.marks[1:], strict=False))


def summary(found: dict[str, list[dict]]) -> str:
    def row(r: dict) -> list[str]:
        n = r["weights"]
        return [f"{n:,}", str(r["layers"]),
                f"{1e3 * r[SGD_NAME]:.2f}", f"{1e3 * r['compiled']:.2f}",
                f"{1e9 * r['compiled'] / n:.2f}", f"{r['compiled'] / r[SGD_NAME]:.2f}",
                f"{1e3 * r['selection']:.0f}", f"{1e9 * r['selection'] / n:.0f}"]  # fmt: skip

    head = ["weights", "layers", "SGD, ms", "LpSGD, ms", "ns a weight", "× SGD", "selection, ms",
            "ns a weight"]  # fmt: skip
    batches = [
        [f"{r['batch']:,}", f"{1e3 * r['dense']:.2f}", f"{1e3 * r['lpss']:.2f}",
         f"{r['lpss'] / r['dense']:.3f}", f"{1e6 * r['lpss'] / r['batch']:.1f}"]
        for r in found["batch"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            table(head, [row(r) for part in ("weights", "layers") for r in found[part]]),
            "Training steps of LeNet-300:",
            table(["batch", "dense, ms", "lpss, ms", "lpss / dense", "µs an example"], batches),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--largest", type=int, default=300, help="million weights")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[dict]] = {"weights": [], "layers": [], "batch": []}
    for size in (1, 3, 10, 30, 100, 300, 1000):
        if size <= chosen.largest:
            found["weights"].append(update(size * MILLION, LAYERS, 11 if size <= 30 else 3))
            print(found["weights"][-1], flush=True)
    for layers in (10, 30, 100, 300, 1000):
        found["layers"].append(update(10 * MILLION, layers, 7))
        print(found["layers"][-1], flush=True)
    for batch in BATCHES:
        times = {method: training(method, batch) for method in ("dense", "lpss")}
        found["batch"].append({"batch": batch, **times})
        print(found["batch"][-1], flush=True)
    write(OUT, found, "`python benchmarks/growth.py`", summary(found))


if __name__ == "__main__":
    main()
