"""Where in a saved object the state_dict is: people save it beside epochs and optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lpss_cli.errors import InputError

#: Names that training programs give the network's state_dict, the most telling first.
_USUAL = ("state_dict", "model_state_dict", "model")
# What a module may add to its state_dict by itself; it may be a mapping of tensors.
_EXTRA = "_extra_state"


def find(content: Mapping[Any, Any], path: object) -> tuple[Mapping[Any, Any], list[str]]:
    """Return the mapping that holds a network's tensors, and a note where its place is unusual.

    It is what has a usual name; else the only part that is a state_dict, if it holds more numbers
    than the tensors beside it; else all of it.

    Args:
        content: what ``torch.load`` gave.
        path: of the file, for messages.

    Raises:
        InputError: several parts are state_dicts, and none has a usual name.
    """
    for name in _USUAL:
        part = content.get(name)
        if isinstance(part, Mapping):
            return part, []
    parts = {}
    for name, value in content.items():
        part = _state_dict(value) if _may_hold(name) else None
        if part is not None:
            parts[name] = part
    if not parts:
        return content, []
    if len(parts) > 1:
        listed, first = ", ".join(map(repr, parts)), next(iter(parts))
        raise InputError(
            f"{path} holds several state_dicts: {listed}",
            f"save the one that is meant: torch.save(torch.load(FILE)[{first!r}], NEW)",
        )
    [(name, found)] = parts.items()
    if _numbers(content) >= _numbers(found):  # a state_dict, and something small beside it
        return content, []
    return found, [f"took the state_dict under {name!r}"]


def _may_hold(name: object) -> bool:
    return isinstance(name, str) and not name.endswith(_EXTRA)


def _state_dict(value: object) -> Mapping[Any, Any] | None:
    """Return the tensors of a module, or a mapping that holds tensors and nothing else."""
    from torch import Tensor, nn

    if isinstance(value, nn.Module):
        return value.state_dict()
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {n: t for n, t in value.items() if _may_hold(n)}
    whole = tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values())
    return tensors if whole else None


def _numbers(tensors: Mapping[Any, Any]) -> int:
    from torch import Tensor

    return sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, Tensor))
