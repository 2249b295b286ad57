"""Exact sparsity in a training loop of the user's own: PyTorch's, Lightning's, Accelerate's.

The loop calls the optimizer's ``step``; two hooks of that optimizer do around it what the engine
does around its own: gradients are shown to the method and masked before, masks are held after.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lpss_cli import starting, stepping
from lpss_cli.api import Examples, Sparse, data_of, result_of, texts, uncompiled
from lpss_cli.data import epoch_order
from lpss_cli.errors import InputError, RunError
from lpss_cli.ownoptimizer import check_holds, method_for
from lpss_cli.state import RunState
from lpss_cli.stephooks import StepHooks
from lpss_cli.targets import check_sparsity, parse
from lpss_cli.tasks import CLASSIFICATION, Loss
from lpss_cli.watching import Watcher


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
        watcher: told of notes and warnings.
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
        watcher: Watcher | None = None,
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
        target = check_sparsity(parse(sparsity, "sparsity"))
        self._made: dict[str, Any] = {"method": method, "steps": int(steps), "sparsity": target}
        self._made |= {
            name: ",".join(value) if name == "p" else str(value) for name, value in options.items()
        }
        self._watcher = watcher or Watcher()
        self._given, self._model = model, uncompiled(model)
        self._data = None if train is None else data_of(train, None, batch_size, loss)
        self._settings = starting.Settings(
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
        candidates, skipped = starting.choose(self._model, settings, self._watcher)
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
        starting.prepare(run, self._method, self._watcher, keep_zeros=True, optimizer=optimizer)
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
        if run.step < run.cut_step:
            warnings.warn(
                f"training ended after {run.step:,} of {run.total_steps:,} steps: the exact cut "
                "comes now, and nothing recovers from it",
                stacklevel=2,
            )
            stepping.exact_cut(run, self._method, self._watcher)
            run.cut_step = run.step
        for name, weight in run.weights.items():
            if bool((weight[~run.masks[name]] != 0).any()):
                raise RunError(
                    f"{name} is not zero where it is masked: something beside the optimizer's step "
                    "has changed it",
                    "load no weights of before the exact cut, and step no other optimizer for them",
                )
        stepping.finish(run)
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
