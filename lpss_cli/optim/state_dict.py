"""An optimizer's state by the names of the parameters, whatever their order.

PyTorch numbers the parameters by their position. A network whose code lists its layers in another
order has the same names in other positions, and would get the momenta of other weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lpss_cli.errors import InputError


def by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return options and state of an optimizer as plain containers and tensors.

    Returns:
        ``state``: name → what the optimizer keeps for that parameter; ``groups``: its groups, with
        names in place of parameters. A tied parameter has its first name; one that is not the
        network's has a number.
    """
    names = _names(optimizer, model)
    return {
        "state": {names[id(p)]: dict(kept) for p, kept in optimizer.state.items() if kept},
        "groups": [
            {**group, "params": [names[id(p)] for p in group["params"]]}
            for group in optimizer.param_groups
        ],
    }


def restore(optimizer: Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Go back to what :func:`by_name` returned; tensors go to their parameters' device.

    Raises:
        InputError: the parameters are grouped in another way.
    """
    names = _names(optimizer, model)
    group_of = {name: group for group in saved["groups"] for name in group["params"]}
    state: dict[int, Any] = {}
    groups, position = [], 0
    for group in optimizer.param_groups:
        own = [names[id(p)] for p in group["params"]]
        then = _same_group(own, group_of) if own else group
        positions = range(position, position + len(own))
        position += len(own)
        state |= {at: saved["state"][n] for at, n in zip(positions, own, strict=True)
                  if n in saved["state"]}  # fmt: skip
        groups.append({**then, "params": list(positions)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _same_group(own: list[str], group_of: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    then = group_of.get(own[0], {"params": []})
    if set(then["params"]) != set(own):
        raise InputError(
            f"the saved state groups the parameters in another way around {own[0]}",
            "start from the beginning, without --resume",
        )
    return then


def _names(optimizer: Optimizer, model: nn.Module) -> dict[int, str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = (parameter for group in optimizer.param_groups for parameter in group["params"])
    others = (parameter for parameter in every if id(parameter) not in names)
    return names | {id(parameter): f"#{number}" for number, parameter in enumerate(others)}
