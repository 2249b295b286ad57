"""Multilayer perceptrons of any widths."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from lpss_cli.models.spec import mlp_widths


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Make the MLP of a resolved ``mlp:A-B-…-Z``: its ends are known to fit the data."""
    return mlp(mlp_widths(spec))


def mlp(widths: list[int]) -> nn.Sequential:
    """Stack linear layers ``fc1``, ``fc2``, … with ReLU between them; PyTorch's default init.

    Args:
        widths: inputs, hidden layers, outputs: two numbers or more.

    Returns:
        ``(batch, …)`` with ``widths[0]`` numbers per sample -> ``(batch, widths[-1])``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    last = len(widths) - 1
    for i, (fan_in, fan_out) in enumerate(pairwise(widths), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < last:
            layers[f"relu{i}"] = nn.ReLU()
    return nn.Sequential(layers)
