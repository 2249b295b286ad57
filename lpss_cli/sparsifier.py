"""Exact sparsity in a training loop of the user's own: PyTorch's, Lightning's, Accelerate's.

The loop calls the optimizer's ``step``; two hooks of that optimizer do around it what the engine
does around its own: gradients are shown to the method and masked before, masks are held after.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli.api import Examples, Sparse, data_of, result_of, texts, uncompiled
from lpss_cli.data import epoch_order
from lpss_cli.data.tasks import CLASSIFICATION, Loss
from lpss_cli.errors import InputError, RunError
from lpss_cli.sparsity.targets import check_sparsity, parse_sparsity
from lpss_cli.training import engine, setup
from lpss_cli.training.callbacks import Callback
from lpss_cli.training.method import Method, make
from lpss_cli.training.state import RunState, moved

# MERGED: An optimizer of the user's own: which methods it serves, and whether it holds the weights.
# Options that say how to make an optimizer or its schedule.
_OPTIMIZER = ("lr", "momentum", "weight_decay", "warmup")


def method_for(optimizer: Optimizer | None, name: str, options: dict[str, Any]) -> Method:
    """Return the method of that name; where an optimizer is given, one that it serves.

    Args:
        optimizer: the user's own, if there is one.
        name: of the method.
        options: of the method.

    Raises:
        InputError: the method trains with an optimizer of its own, or an option is the
            optimizer's business.
    """
    if optimizer is None:
        return make(name, options)
    given = [option for option in _OPTIMIZER if option in options]
    if given:
        raise InputError(
            f"{', '.join(given)} is the business of the optimizer that was given",
            "set it there, or leave optimizer out",
        )
    method = make(name, {"clip": 0.0, **options})
    own: Callable[..., Optimizer] = type(method).make_optimizer
    if own is not Method.make_optimizer:
        raise InputError(
            f"the method {name!r} trains with an optimizer of its own",
            "leave optimizer out and step sparsifier.optimizer, or pass method='gmp'",
        )
    return method


def check_holds(optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
    """Check that an optimizer trains all weights that are pruned: another would revive zeros.

    Raises:
        InputError: it does not; with the names of the others.
    """
    owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    others = [name for name, weight in weights.items() if id(weight) not in owned]
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


# MERGED: Two hooks of an optimizer that do around its step what the engine does around its own.
# MERGED: Before a step, gradients are shown to the method and masked; after it, masks are held
# MERGED: and changed.
class StepHooks:
    """The hooks of one optimizer, from now until ``remove``.

    Args:
        run: of the weights that the optimizer trains; ``run.optimizer`` is the one that is hooked.
        method: how the weights become sparse.
        callback: told of the exact cut.
        schedule: set the learning rates by the method's schedule before every step.
    """

    def __init__(
        self, run: RunState, method: Method, callback: Callback, *, schedule: bool
    ) -> None:
        self._run, self._method, self._watcher = run, method, callback
        self._optimizer, self._schedule = run.optimizer, schedule
        self._rates: list[float] | None = None
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]

    def remove(self) -> None:
        """Let go of the optimizer."""
        for handle in self._handles:
            handle.remove()

    def forget_rates(self) -> None:
        """Take the learning rates as they are now: they may be those of a saved state."""
        self._rates = None

    def follow_device(self) -> None:
        """Move masks and optimizer state to where the model has gone since the last step."""
        run = self._run
        if all(mask.device == run.weights[name].device for name, mask in run.masks.items()):
            return
        for name, weight in run.weights.items():
            run.masks[name] = run.masks[name].to(weight.device)
        run.method_state = moved(run.method_state, run.device)
        run.activity.seen = moved(run.activity.seen, run.device)
        run.loss_sum = run.loss_sum.to(run.device)
        self._optimizer.load_state_dict(self._optimizer.state_dict())

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self.follow_device()
        self._set_rates()
        closures = [part for part in (*args, *kwargs.values()) if callable(part)]
        if not closures:
            self._ready()
            return None
        # Gradients are made inside: they are masked when the closure returns.
        return tuple(map(self._wrapped, args)), {k: self._wrapped(v) for k, v in kwargs.items()}

    def _wrapped(self, part: Any) -> Any:
        if not callable(part):
            return part

        def closure() -> Any:
            loss = part()
            self._ready()
            return loss

        return closure

    def _ready(self) -> None:
        if not engine.before_step(self._run, self._method):
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a step without gradients changes nothing

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        engine.after_step(self._run, self._method)
        engine.update_masks(self._run, self._method, self._watcher)

    def _set_rates(self) -> None:
        """Set the learning rates of the coming step, and notice if something else does too."""
        if not self._schedule or self._run.step >= self._run.total_steps:
            return
        groups = self._optimizer.param_groups
        if self._rates is not None and self._rates != [group["lr"] for group in groups]:
            raise InputError(
                "something else changes the learning rates that the method's schedule sets",
                "pass schedule=False, or leave the other scheduler out",
            )
        engine.set_rates(self._run, self._method)
        self._rates = [group["lr"] for group in groups]


class Sparsifier:
    """Makes a model sparse while a loop of the user's own trains it.

    ::

        sparsifier = Sparsifier(model, steps=epochs * len(loader), sparsity=0.9)
        optimizer = sparsifier.optimizer
        …  # any loop that calls optimizer.step()
        result = sparsifier.finish()

    After every step masked weights are exactly zero; the exact cut comes where the method has it,
    for most at 70 % of the steps. Steps beyond those that were announced keep the masks.

    Args:
        model: any network, on its device or moved later; its weights are the start, and as many
            as are zero stay zero.
        steps: optimizer steps of the whole training, a whole number ≥ 1.
        sparsity: zeros / prunable weights, in [0, 1), or a text as ``--sparsity`` takes it.
        method: a name that ``lpss sparsify --method`` knows.
        optimizer: one of the user's own; for methods that need none of theirs (``gmp``, ``set``,
            …). It holds all weights that are pruned and keeps its learning rates; gradients are
            clipped only with ``clip=``.
        schedule: set the learning rates by the method's schedule before every step; False where
            a scheduler drives them.
        layers: ``PATTERN=SPARSITY`` of layers with a target of their own.
        skip: globs on names of weights that stay dense.
        seed: of random masks.
        train: training examples, for methods that look at some (``snip``); with them BatchNorm's
            statistics are estimated anew after the exact cut.
        loss: (outputs, targets) → scalar, for such methods; None: by the kind of the targets.
        batch_size: of ``train``, where that is no loader.
        callback: told of notes and warnings.
        options: the method's own, under the names of their flags: ``p="0.5", ranking="erk"``.

    Attributes:
        optimizer: what the loop has to step.
        run: masks, sparsity now, finished steps; see ``RunState``.

    Raises:
        InputError: something does not exist or fit; the model is as it was.
    """

    optimizer: Optimizer

    def __init__(
        self,
        model: nn.Module,
        steps: int,
        *,
        sparsity: float | str = 0.9,
        method: str = "lpss",
        optimizer: Optimizer | None = None,
        schedule: bool = True,
        layers: str | Sequence[str] = (),
        skip: str | Sequence[str] = (),
        seed: int = 0,
        train: Examples | None = None,
        loss: Loss | None = None,
        batch_size: int = 256,
        callback: Callback | None = None,
        **options: Any,
    ) -> None:
        if not 1 <= steps < math.inf or steps != int(steps):  # often the result of a division
            raise InputError(
                f"steps={steps} is no whole number of 1 or more",
                "give the number of all optimizer steps: epochs * len(loader)",
            )
        if "p" in options:
            options["p"] = texts(options["p"])
        self._method = method_for(optimizer, method, options)
        target = check_sparsity(parse_sparsity(sparsity, "sparsity"))
        self._made: dict[str, Any] = {"method": method, "steps": int(steps), "sparsity": target}
        self._made |= {
            name: ",".join(value) if name == "p" else str(value) for name, value in options.items()
        }
        self._watcher = callback or Callback()
        self._given, self._model = model, uncompiled(model)
        self._data = None if train is None else data_of(train, None, batch_size, loss)
        self._settings = setup.Settings(
            epochs=1,
            batch_size=batch_size,
            seed=seed,
            sparsity=target,
            layers=texts(layers),
            skip=texts(skip),
            keep_zeros=True,
        )
        self.run = self._start(int(steps), optimizer)
        self.optimizer = self.run.optimizer
        self._hooks = StepHooks(
            self.run, self._method, self._watcher, schedule=schedule and optimizer is None
        )

    def _start(self, steps: int, optimizer: Optimizer | None) -> RunState:
        settings = self._settings
        candidates, skipped = setup.choose(self._model, settings, self._watcher)
        if optimizer is not None:
            pruned = {n: w.tensor for n, w in candidates.items() if n not in skipped}
            check_holds(optimizer, pruned)
        task = CLASSIFICATION if self._data is None else self._data.task
        run = RunState(
            self._model,
            candidates,
            skipped,
            sparsity=settings.sparsity,
            layers=settings.layers,
            epochs=1,
            steps_per_epoch=steps,
            seed=settings.seed,
            batches=self._unseen if self._data is None else self._batches,
            loss=task.loss,
        )
        setup.prepare(run, self._method, self._watcher, keep_zeros=True, optimizer=optimizer)
        if self._data is None:
            run.batches = _none  # the exact cut can do without
        for text in run.notes:
            self._watcher.on_note(text)
        return run

    def finish(self) -> Sparse:
        """End the training: check the zeros, let go of the optimizer, and report.

        A loop that ended before the exact cut is cut here, with a warning: nothing recovers then.

        Raises:
            RunError: weights are not finite, or something else has changed masked ones.
        """
        run = self.run
        self._hooks.follow_device()
        if run.step < run.final_prune_step:
            warnings.warn(
                f"training ended after {run.step:,} of {run.total_steps:,} steps: the exact cut "
                "comes now, and nothing recovers from it",
                stacklevel=2,
            )
            engine.final_prune(run, self._method, self._watcher)
            run.final_prune_step = run.step
        for name, weight in run.weights.items():
            if bool((weight[~run.masks[name]] != 0).any()):
                raise RunError(
                    f"{name} is not zero where it is masked: something beside the optimizer's step "
                    "has changed it",
                    "load no weights of before the exact cut, and step no other optimizer for them",
                )
        engine.finish(run)
        self._hooks.remove()
        return replace(result_of(run.model, run), model=self._given)

    def state_dict(self) -> dict[str, Any]:
        """Return all that decides how the run goes on, the model and the optimizer included."""
        return {**self.run.state_dict(), "made": self._made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go back to a saved state, of a sparsifier that was made with the same arguments.

        Raises:
            InputError: it is no such state, or that of another network or of other arguments;
                nothing has changed then.
        """
        if not isinstance(state.get("masks"), Mapping):
            raise InputError(
                "this is no state of a Sparsifier", "give what its state_dict() returned"
            )
        shapes = {name: mask.shape for name, mask in state["masks"].items()}
        if shapes != {name: mask.shape for name, mask in self.run.masks.items()}:
            raise InputError(
                "the saved state has masks of other weights", "make the same network, skip alike"
            )
        _check_made(state.get("made", self._made), self._made)
        self.run.load_state_dict(state)
        self._hooks.forget_rates()

    def _unseen(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        raise InputError(
            f"the method {self._method.name!r} looks at training examples", "pass train=…"
        )

    def _batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        assert self._data is not None  # else others are asked
        source, settings = self._data.train, self._settings
        device = next(self._model.parameters()).device
        order = epoch_order(len(source), settings.seed, epoch)
        size = min(settings.batch_size, len(source))
        return source.batches(size, device=device, order=order, drop_last=True)


def _none(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    return iter(())


def _check_made(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse the state of a sparsifier that was made with other arguments."""
    others = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if others:
        was, own = (
            ", ".join(f"{n}={made[n]}" for n in others if n in made) or "the defaults"
            for made in (then, now)
        )
        raise InputError(
            f"the saved state is of {was}, and this sparsifier of {own}",
            "make it with the same arguments",
        )
