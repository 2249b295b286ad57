"""A checkpoint's tensors into a network: what fits, and in words what does not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lpss_cli import models
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.checkpoints.state_dict import WRAPPERS
from lpss_cli.errors import InputError, one_line
from lpss_cli.models.libraries import without_auxiliary
from lpss_cli.models.signatures import needed
from lpss_cli.utils.arrays import count_non_finite


def load_into(model: nn.Module, checkpoint: Checkpoint, arch: str) -> None:
    """Copy the checkpoint's tensors into a model.

    Raises:
        InputError: keys, shapes or kinds of numbers that do not fit, with the first few of them;
            or values that are not finite.
    """
    own = model.state_dict()
    theirs = without_auxiliary(arch, _with_own_prefix(checkpoint.state_dict, own))
    refuse_misfits(own, theirs, checkpoint.path, arch)
    refuse_not_finite(theirs, checkpoint.path)
    # Into the network's own: it knows the versions of its modules, and counters that a file of an
    # older PyTorch does not have.
    own.update(theirs)
    model.load_state_dict(own)


def part_of(
    state: dict[str, Tensor], own: Collection[str], note: Callable[[str], None]
) -> dict[str, Tensor]:
    """Return the part of a training program's file that is the network, under its own names.

    A module that trains a network keeps it as an attribute: all its names begin with ``model.``,
    or whatever the attribute is called. What else the module has is left out.

    Args:
        state: the file's entries.
        own: names of the network's entries.
        note: told which part was taken, and what was left out.
    """
    needed_names = needed(own)
    if not needed_names or any(name in state for name in needed_names):
        return state
    first = "." + needed_names[0]
    found = [
        prefix
        for prefix in (name.removesuffix(first) + "." for name in state if name.endswith(first))
        if all(prefix + name in state for name in needed_names)
    ]
    if len(found) != 1:
        return state
    [prefix] = found
    part = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    others = [name for name in state if not name.startswith(prefix)]
    left = f"; left out: {', '.join(others[:3])}" if others else ""
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    note(f"took the part of the file under {prefix!r}{left}{more}")
    return part


def refuse_not_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Look for NaN and infinities.

    Raises:
        InputError: there are some; with the tensor and their number.
    """
    for name, tensor in state.items():
        count = count_non_finite(tensor)
        if count:
            raise InputError(
                f"{path}: {name} holds {count} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )


def refuse_misfits(
    own: Mapping[str, Tensor], theirs: Mapping[str, Tensor], path: Path, arch: str
) -> None:
    """Compare a network's entries with a file's.

    Raises:
        InputError: names, shapes or kinds of numbers differ; with the first few of them.
    """
    counter = ".num_batches_tracked"  # older PyTorch did not count, and nothing needs it
    problems = [f"{n} is missing" for n in own if n not in theirs and not n.endswith(counter)]
    problems += [f"{n} is unknown" for n in theirs if n not in own]
    both = [n for n in own if n in theirs]
    problems += [
        f"{n} has shape {tuple(theirs[n].shape)}, not {tuple(own[n].shape)}"
        for n in both
        if own[n].shape != theirs[n].shape
    ]
    problems += [
        f"{n} is {_dtype(theirs[n])}, not {_dtype(own[n])}"
        for n in both
        if _family(own[n]) != _family(theirs[n])
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{path} does not fit {arch}: {'; '.join(problems[:3])}{more}",
            "give the --arch and --data the checkpoint was made with",
        )


def _with_own_prefix(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a prefix back that looked like a wrapper's and is the network's own."""
    for prefix in WRAPPERS:
        ours = bool(own) and all(name.startswith(prefix) for name in own)
        if ours and not any(name.startswith(prefix) for name in state):
            return {prefix + name: tensor for name, tensor in state.items()}
    return state


def _family(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def check_fits(
    arch: str, input_shape: tuple[int, ...], outputs: int, checkpoint: Checkpoint
) -> None:
    """Check that the network a file names fits its tensors, before any memory is taken for it.

    Raises:
        InputError: it does not, or there is no such network.
    """
    try:
        with torch.device("meta"):
            model = models.build(arch, input_shape, outputs)
    except InputError:
        raise
    except Exception as error:  # sizes beyond anything that can be multiplied
        raise InputError(
            f"{checkpoint.path} names a network that cannot be built: {one_line(error)[:200]}",
            "pass --arch",
        ) from error
    own = model.state_dict()
    theirs = part_of(checkpoint.state_dict, own, lambda _: None)
    refuse_misfits(own, theirs, checkpoint.path, arch)
