"""What a method sees of a run is a short list, and no method uses anything else."""

import functools

import pytest
import torch
from helpers import blobs, network

from lpss_cli.training import method
from lpss_cli.training.run import MethodContext
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

VIEW = {
    "model", "optimizer", "device",
    "candidates", "weights", "masks", "row_dims", "fan_ins",
    "total", "masked", "sparsity", "start_sparsity", "targets", "from_checkpoint",
    "step", "total_steps", "epoch", "epochs", "steps_per_epoch", "progress", "final_prune_step",
    "is_update_step",
    "select", "set_masks", "prune_to_sparsity", "random_masks", "apply_masks",
    "batches", "loss", "loss_scale", "average", "decay_groups", "rng", "random_like",
    "method_state", "layer_info", "notes",
}  # fmt: skip
CHANGEABLE = {"final_prune_step", "method_state", "layer_info", "notes"}
HOOKS = ("prepare", "make_optimizer", "lr_scale", "scores", "sparsity_at", "on_prune",
         "on_gradients", "on_weights")  # fmt: skip


class View:
    """A run of which only the list is there."""

    def __init__(self, run):
        object.__setattr__(self, "_run", run)

    def __getattr__(self, name):
        assert name in VIEW, f"a method uses run.{name}"
        return getattr(self._run, name)

    def __setattr__(self, name, value):
        assert name in CHANGEABLE, f"a method sets run.{name}"
        setattr(self._run, name, value)


def test_the_list_is_what_the_context_has():
    trainer = Trainer(network(), blobs(), method.make("gmp"), TrainingSettings(1, 16))
    context = MethodContext(
        network(), trainer._sparse, trainer._clock, batches=trainer.run.batches, loss=torch.sum
    )
    names = {name for name in dir(context) if not name.startswith("_")}
    assert names | {"optimizer"} == VIEW
    assert not hasattr(context, "optimizer")  # it is the method's to make


def test_another_attribute_is_noticed():
    with pytest.raises(AssertionError, match=r"run\.history"):
        _ = View(None).history
    with pytest.raises(AssertionError, match=r"run\.sparsity"):
        View(None).sparsity = 0.5


CASES = [(name, {}) for name in sorted(method.registry())]
CASES += [
    (name, {"path": path})
    for name, cls in method.registry().items()
    for path in ("cubic", "controller")
    if hasattr(cls.Config, "path")
]


@pytest.mark.parametrize("keep_zeros", [False, True])
@pytest.mark.parametrize(("name", "path"), CASES)
def test_a_method_uses_the_list_alone(name, path, keep_zeros, monkeypatch):
    cls = method.get(name)

    def narrowed(hook):
        @functools.wraps(hook)
        def call(self, run, *args):
            return hook(self, run if isinstance(run, View) else View(run), *args)

        return call

    for hook in HOOKS:
        monkeypatch.setattr(cls, hook, narrowed(getattr(cls, hook)))
    options = {"frequency": 2} if "frequency" not in cls.ignores else {}
    settings = TrainingSettings(3, 16, sparsity=0.9, keep_zeros=keep_zeros)
    made = method.make(name, options | path)
    run = Trainer(network(), blobs(), made, settings).train()
    assert run.masked == 576
