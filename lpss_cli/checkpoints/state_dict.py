"""The names of a foreign state_dict, as the bare network would have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from torch import Tensor

#: What DistributedDataParallel and torch.compile put before every name.
WRAPPERS = ("module.", "_orig_mod.")
_COMPILED = "_orig_mod."
#: Names that published weights of torchvision still have, and what the networks call them now.
_FORMER = (
    (re.compile(r"(.*\bdenselayer\d+\.(?:norm|conv))\.([12]\.\w+)"), r"\1\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_1\.(\w+)"), r"\1.0.\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_2\.(\w+)"), r"\1.3.\2"),
)


@dataclass(frozen=True)
class Fold:
    """How to make one entry of the bare network's state_dict.

    Attributes:
        names: the entries it is made of, as the file calls them.
        combine: makes its values of theirs; None: the values of the only one.
    """

    names: tuple[str, ...]
    combine: Callable[..., Tensor] | None = None


def fold(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip wrappers' prefixes, update names, and fold prune masks and weight norms.

    Returns:
        The bare network's state_dict, and a note for people on each thing that was done.
    """
    folds, notes = plan(state)
    folded = {}
    for name, one in folds.items():
        parts = [state[part] for part in one.names]
        folded[name] = one.combine(*parts) if one.combine else parts[0]
    return folded, notes


def plan(state: Mapping[str, TensorSpec]) -> tuple[dict[str, Fold], list[str]]:
    """Find out what :func:`fold` would do, without any values.

    Returns:
        How each entry of the bare network's state_dict is made, and the notes.
    """
    own, notes = _renamed(state)
    forms = {name: state[first] for name, first in own.items()}
    folds: dict[str, Fold] = {}
    for name in own:
        target, found = _entry(name, forms)
        if found is None:
            continue
        if target != name:
            notes.append(f"folded {target}")
        folds[target] = Fold(tuple(own[part] for part in found.names), found.combine)
    return folds, notes


def _renamed(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the bare network's name of each entry → the file's, and the notes."""
    notes: list[str] = []
    own = {name: name for name in names}
    for prefix in (*WRAPPERS, *WRAPPERS):
        if own and all(name.startswith(prefix) for name in own):
            own = {name.removeprefix(prefix): first for name, first in own.items()}
            notes.append(f"stripped the prefix {prefix!r}")
    # A compiled part of a network: its prefix stands within the names.
    bare = {name.replace(_COMPILED, ""): first for name, first in own.items()}
    if len(bare) == len(own) and list(bare) != list(own):
        own = bare
        notes.append(f"stripped {_COMPILED!r} within names")
    current = {_current(name): first for name, first in own.items()}
    if len(current) == len(own) and list(current) != list(own):
        own = current
        notes.append("renamed what torchvision calls otherwise now")
    return own, notes


def _current(name: str) -> str:
    """Return the name that torchvision's networks use now."""
    for former, now in _FORMER:
        if match := former.fullmatch(name):
            return match.expand(now)
    return name


def _entry(name: str, state: Mapping[str, TensorSpec]) -> tuple[str, Fold | None]:
    """One entry of the folded state_dict; None for the second half of a pair."""
    base, _, end = name.rpartition("_")
    if end in ("orig", "mask"):
        pair = f"{base}_orig", f"{base}_mask"
        orig, mask = map(state.get, pair)
        if base not in state and _is_mask_of(mask, orig):
            return base, Fold(pair, _masked) if end == "orig" else None
    new = re.fullmatch(r"(?:(.*)\.)?parametrizations\.(\w+)\.original([01])", name)
    if new:
        pair = f"{name[:-1]}0", f"{name[:-1]}1"
        target = f"{new[1]}.{new[2]}" if new[1] else new[2]
        if target not in state and _is_norm_of(*map(state.get, pair)):
            return target, Fold(pair, _weight_norm) if new[3] == "0" else None
    if end in ("g", "v"):
        pair = f"{base}_g", f"{base}_v"
        if base not in state and _is_norm_of(*map(state.get, pair)):
            return base, Fold(pair, _weight_norm) if end == "g" else None
    return name, Fold((name,))


def _is_mask_of(mask: TensorSpec | None, orig: TensorSpec | None) -> bool:
    return mask is not None and orig is not None and mask.shape == orig.shape


def _is_norm_of(g: TensorSpec | None, v: TensorSpec | None) -> bool:
    """Whether g has the shape of v's norms, one number for all or for each index of one dimension.

    Other pairs with such names are parameters like any other.
    """
    if g is None or v is None or not (g.is_floating_point() and v.is_floating_point()):
        return False
    kept = [size for size in g.shape if size != 1]
    fits = g.dim() == v.dim() and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return v.dim() >= 2 and (g.dim() == 0 or (fits and len(kept) <= 1))


def _masked(orig: Tensor, mask: Tensor) -> Tensor:
    return orig * mask.to(orig.dtype)  # PyTorch multiplies some kinds by their own kind alone


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Return ``g v/‖v‖`` with the norm over all dimensions that g does not have."""
    from torch.linalg import vector_norm

    # It has no norms of numbers of 8 bits.
    g, v = (part.float() if part.element_size() == 1 else part for part in (g, v))
    dims = [d for d in range(v.dim()) if g.dim() == 0 or (g.shape[d] == 1 and v.shape[d] != 1)]
    return g * (v / vector_norm(v, dim=dims, keepdim=True) if dims else v.sign())


# MERGED: Where in a saved object the state_dict is: people save it beside epochs and optimizers.
#: Names that training programs give the network's state_dict, the most telling first.
_USUAL = ("state_dict", "model_state_dict", "model")
# What a module may add to its state_dict by itself; it may be a mapping of tensors.
_EXTRA = "_extra_state"


def find_state_dict(
    content: Mapping[Any, Any], path: object
) -> tuple[Mapping[Any, Any], list[str]]:
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
