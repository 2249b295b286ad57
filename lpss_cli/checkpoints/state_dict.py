"""From what people save to the state_dict of the bare network.

:func:`find_state_dict` finds the state_dict in a saved object: people save it beside epochs and
optimizers. :func:`fold_state_dict` strips the prefixes of wrappers, brings names up to date, and
folds pruning masks and weight norms into the weights they belong to.
"""

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
# Keys under which training programs save the network's state_dict, the most specific one first.
_USUAL_KEYS = ("state_dict", "model_state_dict", "model")
# What a module may add to its state_dict by itself; it may be a mapping of tensors.
_EXTRA_STATE = "_extra_state"
# Names in published weights of torchvision, and what its networks call these tensors now.
_FORMER_NAMES = (
    (re.compile(r"(.*\bdenselayer\d+\.(?:norm|conv))\.([12]\.\w+)"), r"\1\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_1\.(\w+)"), r"\1.0.\2"),
    (re.compile(r"(.*\bencoder_layer_\d+\.mlp)\.linear_2\.(\w+)"), r"\1.3.\2"),
)


def find_state_dict(
    content: Mapping[Any, Any], path: object
) -> tuple[Mapping[Any, Any], list[str]]:
    """Find the mapping that holds a network's tensors.

    It is the value under one of the usual keys; else the only value that is a state_dict, if it
    holds more numbers than the tensors beside it; else the whole content.

    Args:
        content: what ``torch.load`` returned.
        path: name of the file, for messages.

    Returns:
        The mapping, and a note for the user if its key is unusual.

    Raises:
        InputError: several values are state_dicts, and none has a usual key.
    """
    for key in _USUAL_KEYS:
        value = content.get(key)
        if isinstance(value, Mapping):
            return value, []
    candidates = {}
    for key, value in content.items():
        tensors = _as_state_dict(value) if _may_name_tensors(key) else None
        if tensors is not None:
            candidates[key] = tensors
    if not candidates:
        return content, []
    if len(candidates) > 1:
        keys, first = ", ".join(map(repr, candidates)), next(iter(candidates))
        raise InputError(
            f"{path} holds several state_dicts: {keys}",
            f"save the one that is meant: torch.save(torch.load(FILE)[{first!r}], NEW)",
        )
    [(key, state)] = candidates.items()
    if _count(content) >= _count(state):  # content is a state_dict with something small beside it
        return content, []
    return state, [f"took the state_dict under {key!r}"]


def _may_name_tensors(key: object) -> bool:
    return isinstance(key, str) and not key.endswith(_EXTRA_STATE)


def _as_state_dict(value: object) -> Mapping[Any, Any] | None:
    """Return the tensors of a module, or of a mapping that holds tensors and nothing else."""
    from torch import Tensor, nn

    if isinstance(value, nn.Module):
        return value.state_dict()
    if not isinstance(value, Mapping) or not value:
        return None
    tensors = {n: t for n, t in value.items() if _may_name_tensors(n)}
    only_tensors = tensors and all(isinstance(tensor, Tensor) for tensor in tensors.values())
    return tensors if only_tensors else None


def _count(tensors: Mapping[Any, Any]) -> int:
    """Return how many numbers the tensors among a mapping's values hold."""
    from torch import Tensor

    return sum(tensor.numel() for tensor in tensors.values() if isinstance(tensor, Tensor))


@dataclass(frozen=True)
class Fold:
    """How to make one entry of the bare network's state_dict.

    Attributes:
        sources: names in the file of the entries that it is made from.
        combine: computes the entry from these; None for a single source, which is taken as it is.
    """

    sources: tuple[str, ...]
    combine: Callable[..., Tensor] | None = None


def fold_state_dict(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Strip wrappers' prefixes, update names, and fold pruning masks and weight norms.

    Returns:
        The bare network's state_dict, and a note for the user on each change.
    """
    folds, notes = plan_folds(state)
    folded = {}
    for name, fold in folds.items():
        sources = [state[source] for source in fold.sources]
        folded[name] = fold.combine(*sources) if fold.combine else sources[0]
    return folded, notes


def plan_folds(state: Mapping[str, TensorSpec]) -> tuple[dict[str, Fold], list[str]]:
    """Find out what :func:`fold_state_dict` would do, without any values.

    Returns:
        How to make each entry of the bare network's state_dict, and the notes.
    """
    sources, notes = _bare_names(state)
    specs = {name: state[source] for name, source in sources.items()}
    folds: dict[str, Fold] = {}
    for name in sources:
        target, fold = _plan_fold(name, specs)
        if fold is None:
            continue
        if target != name:
            notes.append(f"folded {target}")
        folds[target] = Fold(tuple(sources[part] for part in fold.sources), fold.combine)
    return folds, notes


def _bare_names(names: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the bare network's name of each entry → the file's name, and the notes."""
    notes: list[str] = []
    sources = {name: name for name in names}
    for prefix in (*WRAPPERS, *WRAPPERS):
        if sources and all(name.startswith(prefix) for name in sources):
            sources = {name.removeprefix(prefix): source for name, source in sources.items()}
            notes.append(f"stripped the prefix {prefix!r}")
    # The prefix of a part of the network that was compiled by itself stands within the names.
    stripped = {name.replace(_COMPILED, ""): source for name, source in sources.items()}
    if len(stripped) == len(sources) and list(stripped) != list(sources):
        sources = stripped
        notes.append(f"stripped {_COMPILED!r} within names")
    current = {_current_name(name): source for name, source in sources.items()}
    if len(current) == len(sources) and list(current) != list(sources):
        sources = current
        notes.append("renamed tensors to torchvision's current names")
    return sources, notes


def _current_name(name: str) -> str:
    """Return the name that torchvision's networks use now."""
    for former, current in _FORMER_NAMES:
        if match := former.fullmatch(name):
            return match.expand(current)
    return name


def _plan_fold(name: str, specs: Mapping[str, TensorSpec]) -> tuple[str, Fold | None]:
    """Return the folded entry's name and how to make it; None for the second half of a pair."""
    base, _, suffix = name.rpartition("_")
    if suffix in ("orig", "mask"):
        pair = f"{base}_orig", f"{base}_mask"
        orig, mask = map(specs.get, pair)
        if base not in specs and _is_mask_of(mask, orig):
            return base, Fold(pair, _apply_mask) if suffix == "orig" else None
    match = re.fullmatch(r"(?:(.*)\.)?parametrizations\.(\w+)\.original([01])", name)
    if match:
        pair = f"{name[:-1]}0", f"{name[:-1]}1"
        target = f"{match[1]}.{match[2]}" if match[1] else match[2]
        if target not in specs and _is_norm_of(*map(specs.get, pair)):
            return target, Fold(pair, _weight_norm) if match[3] == "0" else None
    if suffix in ("g", "v"):
        pair = f"{base}_g", f"{base}_v"
        if base not in specs and _is_norm_of(*map(specs.get, pair)):
            return base, Fold(pair, _weight_norm) if suffix == "g" else None
    return name, Fold((name,))


def _is_mask_of(mask: TensorSpec | None, orig: TensorSpec | None) -> bool:
    return mask is not None and orig is not None and mask.shape == orig.shape


def _is_norm_of(g: TensorSpec | None, v: TensorSpec | None) -> bool:
    """Return whether g has the shape of v's norms: one number, or one for each index of one dim.

    Other pairs with such names are ordinary parameters.
    """
    if g is None or v is None or not (g.is_floating_point() and v.is_floating_point()):
        return False
    kept = [size for size in g.shape if size != 1]
    fits = g.dim() == v.dim() and all(a in (1, b) for a, b in zip(g.shape, v.shape, strict=True))
    return v.dim() >= 2 and (g.dim() == 0 or (fits and len(kept) <= 1))


def _apply_mask(orig: Tensor, mask: Tensor) -> Tensor:
    return orig * mask.to(orig.dtype)  # PyTorch multiplies some dtypes only by their own


def _weight_norm(g: Tensor, v: Tensor) -> Tensor:
    """Return ``g v/‖v‖`` with the norm over all dimensions that g does not have."""
    from torch.linalg import vector_norm

    # PyTorch computes no norms of 8-bit floating-point numbers.
    g, v = (part.float() if part.element_size() == 1 else part for part in (g, v))
    dims = [d for d in range(v.dim()) if g.dim() == 0 or (g.shape[d] == 1 and v.shape[d] != 1)]
    return g * (v / vector_norm(v, dim=dims, keepdim=True) if dims else v.sign())
