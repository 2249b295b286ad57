"""Two hooks of an optimizer that do around its step what the engine does around its own.

Before a step, gradients are shown to the method and masked; after it, masks are held and changed.
"""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from lpss_cli import stepping
from lpss_cli.errors import InputError
from lpss_cli.method import Method
from lpss_cli.state import RunState, moved
from lpss_cli.watching import Watcher


class StepHooks:
    """The hooks of one optimizer, from now until ``remove``.

    Args:
        run: of the weights that the optimizer trains; ``run.optimizer`` is the one that is hooked.
        method: how the weights become sparse.
        watcher: told of the exact cut.
        schedule: set the learning rates by the method's schedule before every step.
    """

    def __init__(self, run: RunState, method: Method, watcher: Watcher, *, schedule: bool) -> None:
        self._run, self._method, self._watcher = run, method, watcher
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
        run.memory = moved(run.memory, run.device)
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
        if not stepping.ready_gradients(self._run, self._method):
            for group in self._optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # a step without gradients changes nothing

    def _after_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        stepping.finish_step(self._run, self._method)
        stepping.update_masks(self._run, self._method, self._watcher)

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
        stepping.set_rates(self._run, self._method)
        self._rates = [group["lr"] for group in groups]
