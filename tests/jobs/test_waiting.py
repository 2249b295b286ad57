"""Between topology updates no step waits for the device: nothing of a tensor is read by Python.

A GPU works behind the program. Reading a number from it, or the number of entries that a condition
chooses, makes the program wait until all work is done. On a CPU the same calls are made, so they
can be counted there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from helpers import blobs, network
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lpss_cli.optim import native
from lpss_cli.training import method
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.run import Run
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

aten = torch.ops.aten
# Their result, or its size, is known to Python only when the device has finished.
WAITING = {
    aten._local_scalar_dense, aten.item, aten.is_nonzero, aten.equal, aten.nonzero,
    aten.nonzero_numpy, aten.masked_select, aten._unique2, aten.unique_dim, aten.bincount,
    aten.repeat_interleave,
}  # fmt: skip
# What Python reads from memory without an operation of PyTorch's.
READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.cpu}


class Operations(TorchDispatchMode):
    """Adds the operations that wait to a count."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        by_mask = packet in (aten.index, aten.index_put, aten.index_put_) and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if packet in WAITING or by_mask:
            self.seen[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Readings(TorchFunctionMode):
    """Adds the calls that read memory to the same count."""

    def __init__(self, seen: Counter[str]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in READING:
            self.seen[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def waits(job: Callable[[], object]) -> Counter[str]:
    seen: Counter[str] = Counter()
    with Operations(seen), Readings(seen):
        job()
    return seen


class Steps(Callback):
    """Watches every step but the first, and notes which of them changed the masks."""

    def __init__(self) -> None:
        self.waits: dict[int, Counter[str]] = {}
        self.updates: set[int] = set()  # finished steps at that moment
        self._open = ExitStack()

    def on_step(self, run: Run) -> None:
        """End the count of one step and begin that of the next."""
        self._open.close()
        if run.step < run.total_steps:
            seen = self.waits[run.step + 1] = Counter()
            self._open.enter_context(Operations(seen))
            self._open.enter_context(Readings(seen))

    def before_final_prune(self, run: Run) -> None:
        """Note the exact cut, which changes no mask where the sparsity is constant."""
        self.updates.add(run.step)

    def on_epoch(self, run: Run) -> None:
        """Leave out the end of an epoch: it looks at the loss and measures Hoyer."""
        self.on_step(run)


X = torch.tensor([1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    "job",
    [
        X[0].item, X.tolist, X.numpy, X.cpu, X.nonzero, X.unique,
        lambda: float(X[0]), lambda: int(X[0]), lambda: bool(X[0]), lambda: X[X > 0],
        lambda: "yes" if (X > 0).any() else "no", lambda: torch.equal(X, X),
        lambda: X.clone().__setitem__(X > 0, X[:2]), lambda: f"{X[0]:.2f}",
        lambda: list(range(X[2].int())),
    ],
)  # fmt: skip
def test_what_waits_is_noticed(job):
    assert waits(job)


def test_what_does_not_wait_is_not():
    index = torch.tensor([0, 2])
    assert not waits(
        lambda: (X[index], X.where(X > 0, 1.0), X.masked_fill(X > 0, 0), X.max(), len(X))
    )


@pytest.mark.parametrize("name", sorted(method.registry()))
def test_no_step_between_updates_waits(name, monkeypatch):
    """Three epochs of eight steps of each method, on the path that a GPU takes."""
    monkeypatch.setattr(native, "fits", lambda rows: False)
    monkeypatch.setattr("lpss_cli.methods.gsm._SAMPLE", 100)  # as in a network of usual size
    callback = Steps()

    def noted(way: Callable[..., Any]) -> Callable[..., Any]:
        def call(run: Run, *args: Any) -> Any:
            callback.updates.add(run.step)
            return way(run, *args)

        return call

    for way in ("select", "set_masks"):
        monkeypatch.setattr(Run, way, noted(getattr(Run, way)))
    settings = TrainingSettings(epochs=3, batch_size=16, sparsity=0.9)
    options = {} if "frequency" in method.get(name).ignores else {"frequency": 6}
    Trainer(network(), blobs(), method.make(name, options), settings, callback=callback).train()
    # The optimizer starts its state with the first step; an update belongs to a step's end, or to
    # the gradients of the next one.
    updates = {step + late for step in callback.updates for late in (0, 1)}
    ordinary = {step: seen for step, seen in callback.waits.items() if step not in {1, *updates}}
    assert len(ordinary) >= 8
    assert any(callback.waits[step] for step in callback.updates if step in callback.waits)
    assert {step: dict(seen) for step, seen in ordinary.items() if seen} == {}
