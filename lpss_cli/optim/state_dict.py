"""The state of an optimizer by the names of its parameters, whatever their order.

PyTorch numbers the parameters by position. A network whose code lists its layers in another order
has the same names at other positions, and would get the momenta of other weights.

``torch.distributed.checkpoint.state_dict`` names the state too, but cannot take its place:

- It makes an optimizer without state take a step, with gradients of 0 and a learning rate of 0,
  both to read its state and to load one. The hooks of a ``Sparsifier`` would count that step as one
  of the training, Adam counts it too, and ``LpSGD`` with ``radius="unit"`` rewrites the weights.
- An optimizer of the user's own may hold parameters of several models: it raises a KeyError.
- It drops the state of a parameter that has been frozen since, and by default it refuses the state
  of an optimizer in which a parameter has had no gradient yet.
- It accepts parameters that were grouped in another way, without a word.
- Its import takes longer than that of the rest of this package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lpss_cli.errors import InputError


def by_name(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """Return the options and the state of an optimizer as plain containers and tensors.

    Returns:
        ``state``: name of a parameter → what the optimizer keeps for it; ``groups``: the groups of
        the optimizer, with names in place of parameters. A tied parameter has its first name; one
        that is not in the model is numbered (``#0``).
    """
    names = _names(optimizer, model)
    return {
        "state": {names[id(p)]: dict(state) for p, state in optimizer.state.items() if state},
        "groups": [
            {**group, "params": [names[id(p)] for p in group["params"]]}
            for group in optimizer.param_groups
        ],
    }


def restore(optimizer: Optimizer, model: nn.Module, saved: Mapping[str, Any]) -> None:
    """Load what :func:`by_name` returned; tensors move to the device of their parameter.

    Raises:
        InputError: the parameters were grouped in another way.
    """
    names = _names(optimizer, model)
    saved_groups = {name: group for group in saved["groups"] for name in group["params"]}
    state: dict[int, Any] = {}
    groups, position = [], 0
    for group in optimizer.param_groups:
        own_names = [names[id(p)] for p in group["params"]]
        saved_group = _same_group(own_names, saved_groups) if own_names else group
        positions = range(position, position + len(own_names))
        position += len(own_names)
        state |= {
            index: saved["state"][name]
            for index, name in zip(positions, own_names, strict=True)
            if name in saved["state"]
        }
        groups.append({**saved_group, "params": list(positions)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _same_group(names: list[str], saved_groups: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the saved group that holds exactly the parameters of these names."""
    group = saved_groups.get(names[0], {"params": []})
    if set(group["params"]) != set(names):
        raise InputError(
            f"the saved state groups the parameters in another way around {names[0]}",
            "start from the beginning, without --resume",
        )
    return group


def _names(optimizer: Optimizer, model: nn.Module) -> dict[int, str]:
    """Return the id of every parameter of the model and of the optimizer → its name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    trained = (parameter for group in optimizer.param_groups for parameter in group["params"])
    others = (parameter for parameter in trained if id(parameter) not in names)
    return names | {id(parameter): f"#{number}" for number, parameter in enumerate(others)}
