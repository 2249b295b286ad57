"""An optimizer of the user's own: which methods it serves, and whether it holds the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lpss_cli.errors import InputError
from lpss_cli.method import Method, make

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
