"""Exact sparsity in a user's own training loop: plain PyTorch, Lightning or Accelerate.

The loop calls the optimizer's ``step``. Two hooks of that optimizer do around it what the trainer
does around its own: gradients are shown to the method and masked before the step, and the weights
are masked and the masks updated after it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.api import (
    Examples,
    Sparse,
    data_of,
    renamed_callback,
    result_of,
    settings_of,
    uncompiled,
)
from lpss_cli.data.tasks import Loss
from lpss_cli.errors import InputError, RunError
from lpss_cli.sparsity.targets import check_sparsity
from lpss_cli.training.batches import no_batches
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import Method, aliases, make
from lpss_cli.training.options import MethodOptions, TrainingOptions
from lpss_cli.training.run import Run
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils.options import keywords, only, options

# Options of a method that configure its optimizer or the schedule of the learning rate.
_OPTIMIZER_OPTIONS = ("lr", "momentum", "weight_decay", "warmup")


class Sparsifier:
    """Makes a model sparse while the user's own loop trains it.

    ::

        sparsifier = Sparsifier(model, steps=epochs * len(loader), sparsity=0.9)
        optimizer = sparsifier.optimizer
        …  # any loop that calls optimizer.step()
        result = sparsifier.finish()

    After every step masked weights are exactly zero. The final pruning comes where the method has
    it, for most after 70 % of the steps. Steps beyond those announced keep the masks.

    Args:
        model: any network, on its device or moved later. Its weights are the start, and weights
            that are zero stay zero.
        steps: optimizer steps of the whole training, an integer of at least 1.
        sparsity: zeros / prunable weights, in [0, 1), or a text as for ``--sparsity``.
        method: name of a method, as for ``lpss sparsify --method``.
        optimizer: the user's own optimizer, for methods that do not need theirs (``gmp``, ``set``,
            …). It holds all weights that are pruned and keeps its learning rates. Gradients are
            clipped only with ``clip=``.
        schedule: whether to set the learning rates by the method's schedule before every step;
            False if a scheduler sets them.
        layers: ``PATTERN=SPARSITY`` for layers with a target of their own.
        skip: globs on names of weights that stay dense.
        seed: seed for random masks.
        train: training examples, for methods that look at some (``snip``). With them, BatchNorm
            statistics are estimated again after the final pruning.
        loss: (outputs, targets) → scalar, for such methods; None: by the kind of the targets.
        batch_size: batch size for ``train``, unless it is a loader.
        callback: receives notes and warnings.
        method_options: options of the method, named like their flags: ``p="0.5", ranking="erk"``.

    Attributes:
        optimizer: the optimizer that the loop has to step.
        run: masks, present sparsity, finished steps; see :class:`Run`.

    Raises:
        InputError: an argument does not exist or does not fit; the model is unchanged.
    """

    optimizer: Optimizer
    run: Run

    @keywords(
        only(TrainingOptions, "sparsity")
        | options(MethodOptions)
        | only(TrainingOptions, "layers", "skip", "seed", "batch_size")
    )
    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        _chosen: Mapping[str, Any],
        optimizer: Optimizer | None = None,
        schedule: bool = True,
        train: Examples | None = None,
        loss: Loss | None = None,
        callback: Callback | None = None,
        **method_options: Any,
    ) -> None:
        callback = renamed_callback(callback, method_options)
        if not 1 <= steps < math.inf or steps != int(steps):  # often the result of a division
            raise InputError(
                f"steps={steps} is not an integer of 1 or more",
                "give the number of all optimizer steps: epochs * len(loader)",
            )
        method = _method_for(optimizer, _chosen["method"], method_options)
        check_sparsity(_chosen["sparsity"])
        self._arguments: dict[str, Any] = {
            "method": method.name,
            "steps": int(steps),
            "sparsity": _chosen["sparsity"],
            **{n: _text_of(v) for n, v in _present_names(method_options).items() if v is not None},
        }
        self._given_model = model
        self._trainer = Trainer(
            uncompiled(model),
            None if train is None else data_of(train, None, loss),
            method,
            settings_of({**_chosen, "epochs": 1}),
            steps=int(steps),
            device=None,
            callback=callback,
        )
        self.run = self._trainer.run
        self._prepare(optimizer, method.name, train is not None)
        self.optimizer = self.run.optimizer
        for text in self.run.notes:
            (callback or Callback()).on_note(text)
        self._hooks = _StepHooks(self._trainer, schedule=schedule and optimizer is None)

    def _prepare(self, optimizer: Optimizer | None, method: str, has_examples: bool) -> None:
        """Make the initial masks and the optimizer.

        Raises:
            InputError: the optimizer does not hold all weights, or the method needs examples.
        """

        def missing(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
            raise InputError(f"the method {method!r} looks at training examples", "pass train=…")

        if optimizer is not None:
            _check_holds(optimizer, self.run.weights)
        if not has_examples:
            self.run.batches = missing
        self._trainer.prepare(optimizer)
        if not has_examples:
            self.run.batches = no_batches  # the final pruning can do without

    def finish(self) -> Sparse:
        """End the training: check the zeros, let go of the optimizer, and report.

        If the loop ended before the final pruning, it happens here, with a warning: no training
        recovers from it.

        Raises:
            RunError: weights are not finite, or something else has changed masked weights.
        """
        run = self.run
        self._hooks.follow_model()
        if run.step < run.final_prune_step:
            warnings.warn(
                f"training ended after {run.step:,} of {run.total_steps:,} steps: the final "
                "pruning happens now, and no training recovers from it",
                stacklevel=2,
            )
            self._trainer.final_prune()
            run.final_prune_step = run.step
        for name, weight in run.weights.items():
            if bool((weight[~run.masks[name]] != 0).any()):
                raise RunError(
                    f"{name} is not zero where it is masked: something other than the optimizer's "
                    "step has changed it",
                    "load no weights from before the final pruning, and step no other optimizer "
                    "for them",
                )
        self._trainer.finish()
        self._hooks.remove()
        return replace(result_of(run.model, run), model=self._given_model)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the run continues, with the model and the optimizer."""
        return {**self.run.state_dict(), "made": self._arguments}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state, of a sparsifier that was made with the same arguments.

        Raises:
            InputError: it is not such a state, or it is of another network or of other arguments;
                nothing has changed then.
        """
        if not isinstance(state.get("masks"), Mapping):
            raise InputError(
                "this is not a state of a Sparsifier", "give what its state_dict() returned"
            )
        shapes = {name: mask.shape for name, mask in state["masks"].items()}
        if shapes != {name: mask.shape for name, mask in self.run.masks.items()}:
            raise InputError(
                "the saved state has masks of other weights",
                "make the same network, with the same skip",
            )
        saved = _present_names(state.get("made", self._arguments))
        _check_arguments(saved, self._arguments)
        self.run.load_state_dict(state)
        self._hooks.forget_learning_rates()


class _StepHooks:
    """Hooks of the run's optimizer, from now until ``remove``.

    Args:
        trainer: prepared; does what has to be done around a step.
        schedule: whether to set the learning rates by the method's schedule before every step.
    """

    def __init__(self, trainer: Trainer, *, schedule: bool) -> None:
        self._trainer, self._schedule = trainer, schedule
        self._optimizer = trainer.run.optimizer
        self._learning_rates: list[float] | None = None
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Let go of the optimizer."""
        for handle in self._handles:
            handle.remove()

    def forget_learning_rates(self) -> None:
        """Accept the present learning rates: they may be those of a saved state."""
        self._learning_rates = None

    def follow_model(self) -> None:
        """Move masks and optimizer state to the model's device, if it has moved."""
        if self._trainer.run.follow_model():
            self._optimizer.load_state_dict(self._optimizer.state_dict())

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.follow_model()
        self._set_learning_rates()
        if not any(map(callable, (*args, *kwargs.values()))):
            self._handle_gradients()
            return None
        # A closure computes the gradients within the step: handle them when it returns.
        return tuple(map(self._wrap, args)), {k: self._wrap(v) for k, v in kwargs.items()}

    def _wrap(self, argument: Any) -> Any:
        """Return a closure that also handles the gradients; any other argument as it is."""
        if not callable(argument):
            return argument

        def closure() -> Any:
            loss = argument()
            self._handle_gradients()
            return loss

        return closure

    def _handle_gradients(self) -> None:
        if not self._trainer.before_step():
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a step without gradients changes nothing

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._trainer.after_step()

    def _set_learning_rates(self) -> None:
        """Set the learning rates of the coming step.

        Raises:
            InputError: something else sets them, too.
        """
        run = self._trainer.run
        if not self._schedule or run.step >= run.total_steps:
            return
        groups = self._optimizer.param_groups
        present = [group["lr"] for group in groups]
        if self._learning_rates is not None and self._learning_rates != present:
            raise InputError(
                "something else changes the learning rates that the method's schedule sets",
                "pass schedule=False, or leave the other scheduler out",
            )
        self._trainer.set_learning_rates()
        self._learning_rates = [group["lr"] for group in groups]


def _method_for(optimizer: Optimizer | None, name: str, options: dict[str, Any]) -> Method:
    """Return the method of that name; with a user's optimizer, one that works with it.

    Raises:
        InputError: the method trains with an optimizer of its own, or an option configures the
            optimizer.
    """
    if optimizer is None:
        return make(name, options)
    misplaced = [option for option in _OPTIMIZER_OPTIONS if option in options]
    if misplaced:
        raise InputError(
            f"the optimizer already sets {', '.join(misplaced)}",
            "set it there, or leave optimizer out",
        )
    method = make(name, {"clip": 0.0, **options})
    make_optimizer: Callable[..., Optimizer] = type(method).make_optimizer
    if make_optimizer is not Method.make_optimizer:
        raise InputError(
            f"the method {name!r} trains with an optimizer of its own",
            "leave optimizer out and step sparsifier.optimizer, or pass method='gmp'",
        )
    return method


def _check_holds(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
    """Check that an optimizer trains all weights that are pruned; another would revive zeros.

    Raises:
        InputError: it does not, with the names of the others.
    """
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [name for name, weight in weights.items() if id(weight) not in trained]
    if weights and len(others) == len(weights):
        raise InputError(
            "the optimizer trains none of the model's weights",
            "make it from this model's parameters",
        )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"the optimizer does not train {', '.join(others[:3])}{more}",
            "give one that holds all weights, in groups if they differ; or leave some out: skip=…",
        )


def _check_arguments(saved: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Refuse the state of a sparsifier that was made with other arguments.

    Raises:
        InputError: an argument differs.
    """
    names = [n for n in {**saved, **present} if _bare(saved.get(n)) != _bare(present.get(n))]
    if names:
        then, now = (
            ", ".join(f"{n}={arguments[n]}" for n in names if n in arguments) or "the defaults"
            for arguments in (saved, present)
        )
        raise InputError(
            f"the saved state is of {then}, and this sparsifier of {now}",
            "make it with the same arguments",
        )


def _present_names(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments with the options of methods under the names that they have now."""
    keys = aliases()
    return {keys.get(name, name): value for name, value in arguments.items()}


def _text_of(value: Any) -> str:
    """Return the value of an option as a text; several values are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _bare(argument: Any) -> Any:
    """Return a text without brackets and quotes: old states hold several values as a tuple's."""
    if not isinstance(argument, str):
        return argument
    return re.sub(r"[\[\]()' ]", "", argument).rstrip(",")
