"""Networks that are ready for their data: restored from a checkpoint, or not trained yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli import models
from lpss_cli.checkpoints.identify import check_data, complete_data_spec, identify
from lpss_cli.checkpoints.load_weights import check_fits, load_into, network_part
from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import Data
from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.resolve import data_spec, load_spec
from lpss_cli.models import ModelInfo
from lpss_cli.utils.torch_utils import counted_forward


def restore(
    checkpoint: Checkpoint, request: Request, note: Callable[[str], None] = lambda _: None
) -> tuple[nn.Module, ModelInfo, Data]:
    """Return a checkpoint's network with its weights, what is known about it, and its data.

    Args:
        checkpoint: an artifact of lpss, or a checkpoint of other origin. If it is the file of a
            whole training program, it holds only the network's part from now on.
        request: the network and data that were typed, if any.
        note: called with what was found out or assumed.

    Raises:
        InputError: the network or the data are unknown, or do not fit the weights or each other.
    """
    info = identify(checkpoint, request.arch, note)
    spec = complete_data_spec(data_spec(request, checkpoint), info, note)
    data = load_spec(spec, request)
    check_data(info, data, checkpoint)
    arch = models.resolve(info.arch, data.input_shape, data.outputs)
    info = replace(info, arch=arch, input_shape=data.input_shape, outputs=data.outputs)
    if request.arch is None:
        check_fits(checkpoint, info)
    model = build(info, data, request.seed)
    if not info.recorded:
        checkpoint.state_dict = network_part(checkpoint.state_dict, model.state_dict(), note)
    load_into(model, checkpoint, info)
    return model, replace(info, flops=dry_run(model, data, info.arch)), data


def untrained(request: Request, data: Data) -> tuple[nn.Module, ModelInfo]:
    """Build a freshly initialized network for data, and return what is known about it.

    Raises:
        InputError: the network is unknown or does not take the data.
    """
    arch = models.resolve(request.arch, data.input_shape, data.outputs)
    info = ModelInfo(arch, input_shape=data.input_shape, outputs=data.outputs)
    model = build(info, data, request.seed)
    return model, replace(info, flops=dry_run(model, data, info.arch))


def build(info: ModelInfo, data: Data, seed: int) -> nn.Module:
    """Build a network for data with random weights from a seed.

    Raises:
        InputError: the network does not exist or does not take the data.
    """
    torch.manual_seed(seed)
    return models.build(info.arch, data.input_shape, data.outputs)


def dry_run(model: nn.Module, data: Data, arch: str) -> float:
    """Try a network on two training examples, and count the operations of its forward pass.

    Args:
        model: left in training mode.
        data: only the training part is read.
        arch: names the network in messages.

    Returns:
        Floating-point operations per example.

    Raises:
        InputError: the network does not take the data, or has too few outputs, or outputs that the
            loss does not take.
    """
    x, y = next(iter(data.train.batches(2)))
    returned: Any = x
    try:
        returned, flops = counted_forward(model, x)
        with torch.no_grad():
            data.task.loss(returned, y)
        _check_outputs(returned, data, arch)
    except LpssError:
        raise
    except Exception as error:  # whatever the user's network raises
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
    return flops


def _check_outputs(outputs: Tensor, data: Data, arch: str) -> None:
    if data.task.name == "classification" and outputs.shape[-1] < data.outputs:
        raise InputError(
            f"{arch} has {outputs.shape[-1]} outputs for {data.outputs} classes",
            "give the last layer one output per class",
        )
