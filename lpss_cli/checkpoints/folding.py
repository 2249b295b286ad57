"""The names of a foreign state_dict, as the bare network would have them."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor
from torch.linalg import vector_norm

#: What DistributedDataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
_COMPILED = "_orig_mod."
#: Names that published weights of torchvision still have, and what the networks call them now.
_FORMER = (
    (re.compile(r"(.*\bdenselayer\d+\.(?:norm|conv))\.([12]\.\w+)"), r"\1\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_1\.(\w+)"), r"\1.0.\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_2\.(\w+)"), r"\1.3.\2"),
)


def fold(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip wrappers' prefixes, update names, and fold prune masks and weight norms.

    Returns:
        The bare network's state_dict, and a note for people on each thing that was done.
    """
    notes: list[str] = []
    for prefix in (*WRAPPERS, *WRAPPERS):
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): t for name, t in state.items()}
            notes.append(f"stripped the prefix {prefix!r}")
    # A compiled part of a network: its prefix stands within the names.
    bare = {name.replace(_COMPILED, ""): tensor for name, tensor in state.items()}
    if len(bare) == len(state) and list(bare) != list(state):
        state = bare
        notes.append(f"stripped {_COMPILED!r} within names")
    current = {_current(name): tensor for name, tensor in state.items()}
    if len(current) == len(state) and list(current) != list(state):
        state = current
        notes.append("renamed what torchvision calls otherwise now")
    folded: dict[str, Tensor] = {}
    for name, tensor in state.items():
        target, value = _entry(name, tensor, state)
        if target is None or value is None:
            continue
        if target != name:
            notes.append(f"folded {target}")
        folded[target] = value
    return folded, notes


def _current(name: str) -> str:
    """Return the name that torchvision's networks use now."""
    for former, now in _FORMER:
        if match := former.fullmatch(name):
            return match.expand(now)
    return name


def _entry(
    name: str, tensor: Tensor, state: Mapping[str, Tensor]
) -> tuple[str | None, Tensor | None]:
    """One entry of the folded state_dict; (None, None) for the second half of a pair."""
    base, _, end = name.rpartition("_")
    if end in ("orig", "mask"):
        orig, mask = (state.get(f"{base}_{half}") for half in ("orig", "mask"))
        if base not in state and orig is not None and mask is not None and _is_mask_of(mask, orig):
            return (base, orig * mask) if end == "orig" else (None, None)
    new = re.fullmatch(r"(?:(.*)\.)?parametrizations\.(\w+)\.original([01])", name)
    if new:
        g, v = (state.get(name[:-1] + half) for half in "01")
        target = f"{new[1]}.{new[2]}" if new[1] else new[2]
        if target not in state and g is not None and v is not None and _is_norm_of(g, v):
            return (target, _weight_norm(v, g)) if new[3] == "0" else (None, None)
    if end in ("g", "v"):
        g, v = (state.get(f"{base}_{half}") for half in "gv")
        if base not in state and g is not None and v is not None and _is_norm_of(g, v):
            return (base, _weight_norm(v, g)) if end == "g" else (None, None)
    return name, tensor


def _is_mask_of(mask: Tensor | None, orig: Tensor | None) -> bool:
    return mask is not None and orig is not None and mask.shape == orig.shape


def _is_norm_of(g: Tensor | None, v: Tensor | None) -> bool:
    """Whether g has the shape of v's norms, one number for all or for each index of one dimension.

    Other pairs with such names are parameters like any other.
    """
    if g is None or v is None or not (g.is_floating_point() and v.is_floating_point()):
        return False
    kept = [size for size in g.shape if size != 1]
    fits = g.dim() == v.dim() and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return v.dim() >= 2 and (g.dim() == 0 or (fits and len(kept) <= 1))


def _weight_norm(v: Tensor, g: Tensor) -> Tensor:
    """Return ``g v/‖v‖`` with the norm over all dimensions that g does not have."""
    dims = [d for d in range(v.dim()) if g.dim() == 0 or (g.shape[d] == 1 and v.shape[d] != 1)]
    return g * (v / vector_norm(v, dim=dims, keepdim=True) if dims else v.sign())
