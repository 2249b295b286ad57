"""Loading a checkpoint's tensors into a network, and saying what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lpss_cli import models
from lpss_cli.checkpoints.state_dict import WRAPPERS
from lpss_cli.errors import InputError, one_line
from lpss_cli.models.info import needed
from lpss_cli.utils.arrays import count_non_finite

if TYPE_CHECKING:
    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.models import ModelInfo


def load_into(model: nn.Module, checkpoint: Checkpoint, info: ModelInfo) -> None:
    """Copy the checkpoint's tensors into a model, except those of auxiliary classifiers.

    Raises:
        InputError: names, shapes or kinds of numbers do not fit, with the first few of them; or
            values are not finite.
    """
    expected = model.state_dict()
    named = _with_own_prefix(checkpoint.state_dict, expected)
    state = {name: t for name, t in named.items() if not name.startswith(info.auxiliary)}
    refuse_misfits(expected, state, checkpoint.path, info.arch)
    refuse_not_finite(state, checkpoint.path)
    # The model's own state_dict knows the versions of its modules, and has counters that a file of
    # an older PyTorch does not have.
    expected.update(state)
    model.load_state_dict(expected)


def check_fits(checkpoint: Checkpoint, info: ModelInfo) -> None:
    """Check that the network that a file names fits its tensors before any memory is taken for it.

    Networks of a library are as large as their names say, and are not checked.

    Args:
        checkpoint: its tensors are compared by name, shape and kind of numbers.
        info: with the shape of the samples and the width of the last layer.

    Raises:
        InputError: the network does not fit, or there is no such network.
    """
    if models.family_of(info.arch).has_fixed_size:
        return
    assert info.input_shape is not None
    assert info.outputs is not None
    try:
        with torch.device("meta"):
            model = models.build(info.arch, info.input_shape, info.outputs)
    except InputError:
        raise
    except Exception as error:  # sizes that overflow when they are multiplied
        raise InputError(
            f"{checkpoint.path} names a network that cannot be built: {one_line(error)[:200]}",
            "pass --arch",
        ) from error
    expected = model.state_dict()
    state = network_part(checkpoint.state_dict, expected, lambda _: None)
    refuse_misfits(expected, state, checkpoint.path, info.arch)


def network_part(
    state: dict[str, Tensor], expected: Collection[str], note: Callable[[str], None]
) -> dict[str, Tensor]:
    """Return the part of a training program's file that is the network, under the network's names.

    A module that trains a network keeps it as an attribute: all its names begin with ``model.``, or
    whatever the attribute is called. Everything else in the module is left out.

    Args:
        state: the entries of the file.
        expected: names of the network's entries.
        note: called with what was taken and what was left out.
    """
    names = needed(expected)
    if not names or any(name in state for name in names):
        return state
    first = "." + names[0]
    prefixes = [
        prefix
        for prefix in (name.removesuffix(first) + "." for name in state if name.endswith(first))
        if all(prefix + name in state for name in names)
    ]
    if len(prefixes) != 1:
        return state
    [prefix] = prefixes
    part = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    others = [name for name in state if not name.startswith(prefix)]
    left_out = f"; left out: {', '.join(others[:3])}" if others else ""
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    note(f"took the part of the file under {prefix!r}{left_out}{more}")
    return part


def refuse_not_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse NaN and infinities.

    Raises:
        InputError: a tensor has some, with its name and their number.
    """
    for name, tensor in state.items():
        count = count_non_finite(tensor)
        if count:
            raise InputError(
                f"{path}: {name} holds {count} values that are not finite",
                "the file comes from a diverged run; take an earlier one",
            )


def refuse_misfits(
    expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, arch: str
) -> None:
    """Compare the entries of a network with those of a file.

    Raises:
        InputError: names, shapes or kinds of numbers differ, with the first few of them.
    """
    problems = [f"{n} is missing" for n in needed(expected) if n not in state]
    problems += [f"{n} is unknown" for n in state if n not in expected]
    common = [n for n in expected if n in state]
    problems += [
        f"{n} has shape {tuple(state[n].shape)}, not {tuple(expected[n].shape)}"
        for n in common
        if expected[n].shape != state[n].shape
    ]
    problems += [
        f"{n} is {_dtype(state[n])}, not {_dtype(expected[n])}"
        for n in common
        if _kind(expected[n]) != _kind(state[n])
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{path} does not fit {arch}: {'; '.join(problems[:3])}{more}",
            "give the --arch and --data the checkpoint was made with",
        )


def _with_own_prefix(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put back a prefix that looked like a wrapper's and is the network's own."""
    for prefix in WRAPPERS:
        is_own = bool(expected) and all(name.startswith(prefix) for name in expected)
        if is_own and not any(name.startswith(prefix) for name in state):
            return {prefix + name: tensor for name, tensor in state.items()}
    return state


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "floating" if tensor.is_floating_point() else "whole"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
