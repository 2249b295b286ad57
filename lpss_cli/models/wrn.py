"""The wide residual networks of the LpSS experiments, to the parameter.

| name    | first stage | blocks | data          | parameters |
|---------|-------------|--------|---------------|------------|
| wrn12   | 16 wide     | 1-2-2  | MNIST         |    170,298 |
| wrn18   | 16 wide     | 2-3-3  | Fashion-MNIST |    267,514 |
| wrn22-2 | 32 wide     | 3-4-3  | CIFAR-10      |  1,154,074 |
| wrn22-4 | 64 wide     | 3-4-3  | Tiny ImageNet |  4,644,120 |

The name counts the stem, two convolutions per block and the classifier; wide residual
networks are Zagoruyko, Komodakis, "Wide residual networks" (BMVC 2016).
"""

from __future__ import annotations

from torch import nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.residual import residual_network

_SHAPES = {
    "wrn12": (16, (1, 2, 2)),
    "wrn18": (16, (2, 3, 3)),
    "wrn22-2": (32, (3, 4, 3)),
    "wrn22-4": (64, (3, 4, 3)),
}


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W."""
    channels, _, _ = image_shape(name, input_shape)
    width, blocks = _SHAPES[name]
    return residual_network(channels, width, blocks, outputs)
