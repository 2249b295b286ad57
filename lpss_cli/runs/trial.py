"""Two examples through a network before any training: whether they fit, and what they cost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.data import Data
from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.utils import torch_utils


def flops(model: nn.Module, data: Data, arch: str) -> float:
    """Try two examples, and return the floating-point operations of one.

    Args:
        model: left in training mode.
        data: only the training part is touched.
        arch: names the network in messages.

    Raises:
        InputError: the network does not take the data, or has too few outputs or other ones.
    """
    x, y = next(iter(data.train.batches(2)))
    returned: Any = x
    try:
        count = torch_utils.forward_flops(model, x)
        with torch.no_grad():
            returned = model.eval()(x)
            data.task.loss(returned, y)
        _check_outputs(model(x), data, arch)
    except LpssError:
        raise
    except Exception as error:  # whatever a user's network raises
        if not isinstance(returned, Tensor):
            raise InputError(
                f"{arch} returns a {type(returned).__name__}, and the loss cannot take it: "
                f"{one_line(error)}",
                "let its forward return the outputs alone, or give data with a loss of its own: "
                "--data file.py:factory",
            ) from error
        raise InputError(
            f"{arch} does not take inputs of shape {tuple(x.shape[1:])}: {one_line(error)}",
            "give an --arch and --data that fit",
        ) from error
    finally:
        model.train()
    return count


def _check_outputs(outputs: Tensor, data: Data, arch: str) -> None:
    if data.task.name == "classification" and outputs.shape[-1] < data.outputs:
        raise InputError(
            f"{arch} has {outputs.shape[-1]} outputs for {data.outputs} classes",
            "give the last layer one output per class",
        )
