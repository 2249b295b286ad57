"""The two LeNets of the pruning literature.

LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition"
(Proc. IEEE 1998), in the variants every pruning paper counts: LeNet-300-100 with 266,610
parameters, and the LeNet-5 that Caffe ships, 20-50-500, with 431,080.
"""

from __future__ import annotations

from collections import OrderedDict
from math import prod

from torch import nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.mlp import mlp


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Make ``lenet300`` or ``lenet5``; PyTorch's default init in both."""
    if name == "lenet300":
        return mlp([prod(input_shape), 300, 100, outputs])
    return _lenet5(input_shape, outputs)


def _lenet5(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """``(batch, channels, height, width)`` -> ``(batch, outputs)``, sides of 16 or more.

    As in Caffe, the convolutions are followed by pooling alone: the one ReLU is after fc1.
    """
    # ((16 - 4) / 2 - 4) / 2 = 1: sixteen pixels leave one.
    channels, height, width = image_shape("lenet5", input_shape, smallest=16)
    left = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * prod(left), 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, outputs),
        )
    )
