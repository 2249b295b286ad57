"""What one step of LpSGD costs, against PyTorch's fused momentum SGD on the same weights.

    python benchmarks/step.py [--network torchvision:resnet50] [--rounds 15]

All weights of two or more dimensions of the network, with the same normal gradients, on one CPU
thread. For every p, a round times one step of each optimizer, one after the other; the median of
the rounds counts, and the ratio is the median of the rounds' own ratios. Times are the thread's own
(CPU), so that other programs of a shared machine disturb them through caches and memory alone.
Memory is what a process of its own needs at its peak, above weights and gradients.
Writes benchmarks/results/step.json and .md; the rows of other networks in it stay.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tables import FOLDER, table, write
from torch import Tensor
from torch.optim import SGD, Optimizer

from lpss_cli.models import build
from lpss_cli.optim.lpsgd import LpSGD
from lpss_cli.sparsity.prunable import prunable_weights

OUT = FOLDER / "step.json"
EVERY_P = (1.0714, 1.15, 1.3, 1.5, 2.0, 0.5)
SGD_NAME = "SGD, fused"


def shapes_of(network: str) -> list[torch.Size]:
    with torch.device("meta"):
        model = build(network, (3, 224, 224), 1000)
    return [weight.tensor.shape for weight in prunable_weights(model).values()]


def weights_like(shapes: list[torch.Size]) -> list[Tensor]:
    """Normal weights of Kaiming's scale with normal gradients."""
    torch.manual_seed(0)
    weights = []
    for shape in shapes:
        weight = torch.randn(shape).mul_(math.sqrt(2 / math.prod(shape[1:])))
        weight.grad = torch.randn(shape).mul_(1e-3)
        weights.append(weight)
    return weights


def kinds(p: float) -> dict[str, Callable[[list[Tensor]], Optimizer]]:
    """Name → maker of every optimizer that is timed together."""
    return {
        SGD_NAME: lambda w: SGD(w, 0.01, momentum=0.9, nesterov=True, fused=True),
        "compiled": lambda w: LpSGD(w, p=p, fused=True),
        "plain": lambda w: LpSGD(w, p=p, fused=False),
    }


def timed(p: float, shapes: list[torch.Size], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every step; the first two of each are not counted."""
    optimizers = {name: make(weights_like(shapes)) for name, make in kinds(p).items()}
    seconds: dict[str, list[float]] = {name: [] for name in optimizers}
    for counted in range(-2, rounds):
        for name, optimizer in optimizers.items():
            start = time.thread_time()
            optimizer.step()
            if counted >= 0:
                seconds[name].append(time.thread_time() - start)
    return seconds


def high_water() -> int:
    """Bytes of the largest resident set so far, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak(p: float, name: str, shapes: list[torch.Size], answer: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    weights = weights_like(shapes)
    small = kinds(p)[name](weights_like([torch.Size((8, 64))]))
    small.step()  # what is loaded once counts for nothing
    optimizer = kinds(p)[name](weights)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = high_water()
    for _ in range(3):
        optimizer.step()
    answer.put(high_water() - before)


def memory(p: float, name: str, shapes: list[torch.Size]) -> int:
    """Bytes that a process of its own needs at its peak for the optimizer and its steps."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=peak, args=(p, name, shapes, answer))
    process.start()
    found: int = answer.get()
    process.join()
    return found


def measured(network: str, rounds: int) -> Iterator[dict]:
    shapes = shapes_of(network)
    for p in EVERY_P:
        seconds = timed(p, shapes, rounds)
        for name, own in seconds.items():
            ratios = [a / b for a, b in zip(own, seconds[SGD_NAME], strict=True)]
            yield {
                "network": network,
                "weights": sum(math.prod(shape) for shape in shapes),
                "p": p,
                "step": name,
                "rounds": rounds,
                "median_ms": 1000 * statistics.median(own),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
                "peak_bytes": memory(p, name, shapes),
            }


def summary(rows: list[dict]) -> str:
    head = ["network", "weights", "p", "step", "ms", "× fused SGD", "lowest to highest",
            "peak memory, MB"]  # fmt: skip
    cells = [
        [row["network"], f"{row['weights']:,}", f"{row['p']:g}", row["step"],
         f"{row['median_ms']:.1f}", f"{row['ratio']:.2f}",
         f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}", f"{row['peak_bytes'] / 1e6:.0f}"]
        for row in rows
    ]  # fmt: skip
    return table(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="torchvision:resnet18")
    parser.add_argument("--rounds", type=int, default=15)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(OUT.read_text()) if OUT.exists() else []
    rows = [row for row in kept if row["network"] != chosen.network]
    for row in measured(chosen.network, chosen.rounds):
        rows.append(row)
        print(json.dumps(row), flush=True)
    write(OUT, rows, "`python benchmarks/step.py`", summary(rows))


if __name__ == "__main__":
    main()
