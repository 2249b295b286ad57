"""A checkpoint without its dead ends: the same network, with more zeros."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from lpss_cli.checkpoints.fitting import load_into
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.errors import RunError
from lpss_cli.exports.compacting import dead_ends
from lpss_cli.reporting import weights_of

# Inputs on which the outputs before and after are compared.
_COMPARED = 256


def clean(checkpoint: Checkpoint, model: nn.Module, data: Data) -> tuple[Checkpoint, int]:
    """Zero what reaches no output, and say how many weights became zero by it.

    Args:
        checkpoint: of the network.
        model: the network with its weights; they are changed in place.
        data: its data; outputs are compared on the test part.

    Returns:
        The checkpoint with its tensors as they are now, and the number of new zeros among its
        prunable weights.

    Raises:
        RunError: the network names its tensors otherwise than the file.
    """
    example = next(iter(data.test.batches(_COMPARED)))[0]
    found = dead_ends(model, example)
    if found.keys() - checkpoint.state_dict.keys():
        raise RunError(
            f"the network of {checkpoint.path} names its weights otherwise than the file",
            "leave out --clean",
        )
    state = {**checkpoint.state_dict, **{name: t.clone() for name, t in found.items()}}
    cleaned = replace(checkpoint, state_dict=state)
    load_into(model, cleaned, str(checkpoint.meta.get("arch")))
    return cleaned, _zeros(cleaned) - _zeros(checkpoint)


def _zeros(checkpoint: Checkpoint) -> int:
    return sum(int((weight.tensor == 0).sum()) for weight in weights_of(checkpoint).values())
