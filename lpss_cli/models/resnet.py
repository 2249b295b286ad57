"""The CIFAR residual networks of He et al. (CVPR 2016), 6n + 2 layers deep.

The paper pads its shortcuts with zeros where the shape changes; here they are 1x1
convolutions, as in the networks that GSM prunes: its ResNet-56 has 852K kernel weights, which
is 851,504 with the convolutions and 848,944 without.
"""

from __future__ import annotations

from torch import nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.residual import residual_network

_BLOCKS_PER_STAGE = {"resnet20": 3, "resnet56": 9}


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W."""
    channels, _, _ = image_shape(name, input_shape)
    n = _BLOCKS_PER_STAGE[name]
    return residual_network(channels, 16, (n, n, n), outputs)
