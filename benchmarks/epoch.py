"""What a whole sparse training run costs, against the dense one of the same loop.

    python benchmarks/epoch.py --data-dir DIR [--case lenet300] [--rounds 5]

Each round trains the same network with every method in turn, from scratch, with everything the
engine does: batches, schedules, masks, topology updates. The median of the rounds counts, and the
ratio is the median of the rounds' own ratios to dense. A second ratio is that to the forward and
backward passes alone, of the same network on the same batches, augmented beforehand: what loading,
augmentation, optimizer and masks add. The step of the exact cut is shown apart: it comes once,
however long the run, and re-estimates BatchNorm's statistics on 50 batches. Times are the process's
own (CPU) on one thread, so that other programs of a shared machine disturb them through caches and
memory alone. Under LPSS_COMPILE=0 LpSGD is measured without a compiler.
Writes benchmarks/results/epoch.json and .md; the rows of other cases in it stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

import torch
from tables import FOLDER, table, write

from lpss_cli import models
from lpss_cli.data import DataSpec, load
from lpss_cli.optim import native
from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.run import Run
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils import torch_utils

OUT = FOLDER / "epoch.json"
SPARSITY = 0.9
DENSE = "dense"
ALONE = "forward and backward alone"
LPSS = {"lpss": ("lpss", {}), "lpss, p = 0.5": ("lpss", {"p": ("0.5",)})}


@dataclass(frozen=True)
class Case:
    """A network, its data and how long to train.

    Attributes:
        name: for people.
        steps: in one epoch; None for all the data there are.
        methods: label → method and its options, beside dense.
    """

    name: str
    arch: str
    data: str
    epochs: int
    methods: dict[str, tuple[str, dict[str, Any]]]
    steps: int | None = None
    precision: str = "fp32"


CASES = {
    "lenet300": Case(
        "LeNet-300 MNIST, 4 epochs", "lenet300", "mnist", 4,
        {**LPSS, "gmp": ("gmp", {}), "gsm": ("gsm", {})},
    ),
    "wrn18": Case(
        "WRN-18 Fashion-MNIST, 30 steps, bf16", "wrn18", "fashion-mnist", 1,
        {"lpss": ("lpss", {})}, 30, "bf16",
    ),
}  # fmt: skip


class Clock(Callback):
    """Adds up the CPU time of a run, its exact cut apart."""

    def __init__(self) -> None:
        self.run = self.cut = 0.0
        self._at_cut = False

    def on_start(self, run: Run) -> None:
        """Begin to count."""
        self._last = time.process_time()

    def before_final_prune(self, run: Run) -> None:
        """Count the present step apart."""
        self._at_cut = True

    def on_step(self, run: Run) -> None:
        """Count the step."""
        now = time.process_time()
        if self._at_cut:
            self.cut = now - self._last
        else:
            self.run += now - self._last
        self._last, self._at_cut = now, False


def timed(case: Case, data: Any, name: str, options: dict[str, Any]) -> Clock:
    """Train once."""
    torch.manual_seed(0)
    model = models.build(case.arch, data.input_shape, data.outputs)
    settings = TrainingSettings(
        case.epochs, 256, sparsity=0.0 if name == DENSE else SPARSITY, precision=case.precision
    )
    clock = Clock()
    Trainer(model, data, method.make(name, options), settings, callback=clock).train()
    return clock


def alone(case: Case, data: Any) -> Clock:
    """Take the forward and backward passes of a run, one less for its cut, and nothing else."""
    torch.manual_seed(0)
    model = models.build(case.arch, data.input_shape, data.outputs).train()
    torch_utils.to_channels_last(model)
    order = torch.randperm(len(data.train))
    source = data.train.batches(256, order=order, drop_last=True, augment=data.augment)
    batches, clock = list(source), Clock()
    began = time.process_time()
    for x, y in islice(cycle(batches), case.epochs * len(batches) - 1):
        model.zero_grad(set_to_none=True)
        with torch_utils.autocast(x.device, case.precision):
            outputs = model(x)
        data.task.loss(outputs.float(), y).backward()
    clock.run = time.process_time() - began
    return clock


def measured(case: Case, rounds: int, root: str) -> Iterator[dict]:
    data = load(DataSpec(case.data, data_dir=root))
    if case.steps is not None:
        data = replace(data, train=data.train.subset(torch.arange(256 * case.steps)))
    methods = {DENSE: (DENSE, {}), **case.methods}
    clocks: dict[str, list[Clock]] = {label: [] for label in (ALONE, *methods)}
    timed(case, data, DENSE, {})  # what is loaded once counts for nothing
    for _ in range(rounds):
        clocks[ALONE].append(alone(case, data))
        for label, (name, options) in methods.items():
            clocks[label].append(timed(case, data, name, options))
        print({label: round(own[-1].run, 2) for label, own in clocks.items()}, flush=True)
    for label, own in clocks.items():
        ratios = [a.run / b.run for a, b in zip(own, clocks[DENSE], strict=True)]
        against_alone = [a.run / b.run for a, b in zip(own, clocks[ALONE], strict=True)]
        yield {
            "case": case.name,
            "method": label,
            "compiled": native.library() is not None,
            "rounds": rounds,
            "median_s": statistics.median(clock.run for clock in own),
            "cut_s": None if label == ALONE else statistics.median(clock.cut for clock in own),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "ratio_alone": statistics.median(against_alone),
        }


def summary(rows: list[dict]) -> str:
    head = ["run", "method", "LpSGD compiled", "s", "× dense", "lowest to highest",
            "× forward and backward", "exact cut, s"]  # fmt: skip
    cells = []
    for row in rows:
        compiled = "yes" if row["compiled"] else "no"
        cells.append(
            [row["case"], row["method"], compiled if "lpss" in row["method"] else "-",
             f"{row['median_s']:.2f}", f"{row['ratio']:.2f}",
             f"{row['ratio_low']:.2f} to {row['ratio_high']:.2f}",
             f"{row['ratio_alone']:.2f}" if "ratio_alone" in row else "-",
             "-" if row["cut_s"] is None else f"{row['cut_s']:.2f}"]
        )  # fmt: skip
    return table(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--case", choices=CASES, default="lenet300")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(OUT.read_text()) if OUT.exists() else []
    new = list(measured(CASES[given.case], given.rounds, given.data_dir))
    replaced = {(row["case"], row["method"], row["compiled"]) for row in new}
    rows = [r for r in kept if (r["case"], r["method"], r["compiled"]) not in replaced] + new
    write(OUT, rows, "`python benchmarks/epoch.py --data-dir DIR`", summary(rows))


if __name__ == "__main__":
    main()
