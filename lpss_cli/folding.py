"""The names of a foreign state_dict, as the bare network would have them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.linalg import vector_norm

_WRAPPERS = ("module.", "_orig_mod.")


def fold(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip wrappers' prefixes and fold prune masks and weight norms.

    Returns:
        The bare network's state_dict, and a note for people on each thing that was done.
    """
    notes: list[str] = []
    for prefix in (*_WRAPPERS, *_WRAPPERS):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): t for name, t in state.items()}
            notes.append(f"stripped the prefix {prefix!r}")
    folded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target, value = _entry(name, tensor, state)
        if target is None or value is None:
            continue
        if target != name:
            notes.append(f"folded {target}")
        folded[target] = value
    return folded, notes


def _entry(
    name: str, tensor: Tensor, state: Mapping[str, Tensor]
) -> tuple[str | None, Tensor | None]:
    """One entry of the folded state_dict; (None, None) for the second half of a pair."""
    if name.endswith("_orig") and f"{name[:-5]}_mask" in state:
        return name[:-5], tensor * state[f"{name[:-5]}_mask"]
    if name.endswith("_mask") and f"{name[:-5]}_orig" in state:
        return None, None
    new = re.fullmatch(r"(?:(.*)\.)?parametrizations\.(\w+)\.original([01])", name)
    if new and new[3] == "0" and f"{name[:-1]}1" in state:
        target = f"{new[1]}.{new[2]}" if new[1] else new[2]
        return target, _weight_norm(state[f"{name[:-1]}1"], tensor)
    if new and new[3] == "1":
        return None, None
    if name.endswith(("_g", "_v")):
        g, v = (state.get(name[:-2] + end) for end in ("_g", "_v"))
        if g is not None and v is not None and _is_norm_of(g, v):
            return (name[:-2], _weight_norm(v, g)) if name.endswith("_g") else (None, None)
    return name, tensor


def _is_norm_of(g: Tensor, v: Tensor) -> bool:
    """Whether g has the shape of v's norms, one number for all or for each index of one dimension.

    Other pairs named ``_g`` and ``_v`` are parameters like any other.
    """
    kept = [size for size in g.shape if size != 1]
    fits = g.dim() == v.dim() and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return v.dim() >= 2 and (g.dim() == 0 or (fits and len(kept) <= 1))


def _weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """Return ``g v/‖v‖`` with the norm over all dimensions that g does not have."""
    dims = [d for d in range(v.dim()) if g.dim() == 0 or (g.shape[d] == 1 and v.shape[d] != 1)]
    return g * (v / vector_norm(v, dim=dims, keepdim=True) if dims else v.sign())
