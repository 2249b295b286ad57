"""What LpSGD and a whole sparse epoch cost on a GPU, against fused SGD and the dense epoch.

    python benchmarks/gpu.py                       # ResNet-50's weights; WRN-22-2, 3x32x32 images
    python benchmarks/gpu.py --device cpu --network lenet300 --arch lenet300 --examples 512

Two parts. A step: all weights of two or more dimensions of a network with normal gradients, and one
step of each optimizer in turn; the goal is 1.5 times fused SGD. An epoch: images of random numbers
already on the device, trained through the engine, dense and LpSS to 90 % in turn, with topology
updates and without the step of the exact cut; the goal is 1.05 times dense. Times on a GPU are
those of the wall with the device synchronised before each reading, for a machine with nothing else
to do; on a CPU they are CPU times. The median of the rounds counts, and the ratio is the median of
the rounds' own. Writes benchmarks/results/gpu.json and .md, or what --out names.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch
from torch.optim import SGD, Optimizer

from lpss_cli import models
from lpss_cli.api import data_of
from lpss_cli.optim.lpsgd import LpSGD
from lpss_cli.sparsity.prunable import prunable_weights
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import make
from lpss_cli.training.run import Run
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

OUT = Path("benchmarks/results/gpu.json")
EVERY_P = (1.0714, 1.15, 0.5)
SGD_NAME, DENSE = "SGD, fused", "dense"


def now(device: torch.device) -> float:
    """Seconds, when the device has done all it was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def compared(times: dict[str, list[float]], first: str) -> list[dict]:
    """Median of every kind of run, and of its ratios to the first."""
    rows = []
    for name, own in times.items():
        ratios = [a / b for a, b in zip(own, times[first], strict=True)]
        rows.append(
            {
                "what": name,
                "median_ms": 1e3 * statistics.median(own),
                "ratio": statistics.median(ratios),
                "ratio_low": min(ratios),
                "ratio_high": max(ratios),
            }
        )
    return rows


def steps(network: str, device: torch.device, rounds: int) -> list[dict]:
    """One step of each optimizer on the weights of a network, in turn."""
    with torch.device("meta"):
        model = models.build(network, _shape(network), 1000)
    shapes = [weight.tensor.shape for weight in prunable_weights(model).values()]

    def weights() -> list[torch.Tensor]:
        made = []
        for shape in shapes:
            made.append(torch.randn(shape, device=device).mul_(math.sqrt(2 / math.prod(shape[1:]))))
            made[-1].grad = torch.randn(shape, device=device).mul_(1e-3)
        return made

    torch.manual_seed(0)
    optimizers: dict[str, Optimizer] = {
        SGD_NAME: SGD(weights(), 0.01, momentum=0.9, nesterov=True, fused=True)
    }
    optimizers |= {f"LpSGD, p = {p:g}": LpSGD(weights(), p=p) for p in EVERY_P}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for counted in range(-3, rounds):
        for name, optimizer in optimizers.items():
            start = now(device)
            optimizer.step()
            if counted >= 0:
                times[name].append(now(device) - start)
    return compared(times, SGD_NAME)


def _shape(network: str) -> tuple[int, int, int]:
    return (3, 224, 224) if ":" in network else (1, 28, 28)


class Clock(Callback):
    """Adds up the time of a run, its first steps and its exact cut left out."""

    def __init__(self, device: torch.device, warm_up: int) -> None:
        self.seconds, self._device, self._warm_up = 0.0, device, warm_up
        self._at_cut, self._last = False, 0.0

    def before_final_prune(self, run: Run) -> None:
        """Leave the present step out."""
        self._at_cut = True

    def on_step(self, run: Run) -> None:
        """Read the clock around what is left out, and at the end; it makes a GPU wait."""
        if run.step == self._warm_up:
            self._last = now(self._device)
        if run.step == run.final_prune_step - 1 or run.step == run.total_steps:
            self.seconds += now(self._device) - self._last
        if self._at_cut:
            self._last, self._at_cut = now(self._device), False


def epochs(arch: str, device: torch.device, given: argparse.Namespace) -> list[dict]:
    """Whole epochs of a network on random images, dense and LpSS in turn."""
    shape = (3, 32, 32) if arch.startswith("wrn") else (1, 28, 28)
    torch.manual_seed(0)
    examples = torch.randn(given.examples, *shape), torch.randint(10, (given.examples,))
    data = data_of(examples, None, None)  # goes to the device once

    def timed(name: str) -> float:
        torch.manual_seed(0)
        model = models.build(arch, shape, 10)
        settings = TrainingSettings(
            2,
            given.batch_size,
            sparsity=0.0 if name == DENSE else 0.9,
            precision=given.precision,
        )
        clock = Clock(device, warm_up=3)
        Trainer(model, data, make(name), settings, device=device, callback=clock).train()
        return clock.seconds

    times: dict[str, list[float]] = {DENSE: [], "lpss": []}
    for counted in range(-1, given.epoch_rounds):
        for name, own in times.items():
            seconds = timed(name)
            if counted >= 0:
                own.append(seconds)
    return compared(times, DENSE)


def summary(found: dict) -> str:
    lines = [
        f"{found['device']}, PyTorch {found['torch']}", "",
        "| part | what | ms | ratio | lowest to highest |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for part in ("step", "epoch"):
        for row in found[part]:
            spread = f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}"
            cells = [found[f"{part}_of"], row["what"], f"{row['median_ms']:.2f}",
                     f"{row['ratio']:.2f}", spread]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--network", default="torchvision:resnet50", help="of the step")
    parser.add_argument("--arch", default="wrn22-2", help="of the epoch")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--examples", type=int, default=25_600)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=50, help="of steps")
    parser.add_argument("--epoch-rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=OUT)
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu tries the program out")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    found = {
        "device": name, "torch": torch.__version__,
        "step_of": given.network, "step": steps(given.network, device, given.rounds),
        "epoch_of": f"{given.arch}, batch {given.batch_size}, {given.precision}",
        "epoch": epochs(given.arch, device, given),
    }  # fmt: skip
    given.out.write_text(json.dumps(found, indent=1) + "\n")
    text = f"`python benchmarks/gpu.py`\n\n{summary(found)}\n"
    given.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
