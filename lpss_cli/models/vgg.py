"""VGG with batch normalisation, in its usual form for small images.

Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition"
(ICLR 2015). As is usual on CIFAR, global average pooling and one linear layer take the place
of the three wide layers, and every convolution is followed by batch normalisation.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.residual import kaiming

_WIDTHS = (64, 128, 256, 512, 512)
_CONVS_PER_STAGE = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W.

    A pooling that would leave less than one pixel is left out, so that 8x8 digits fit too.
    Convolutions have no bias and start from Kaiming's normal, fan-out; the classifier from
    PyTorch's default.
    """
    fan_in, height, width = image_shape(name, input_shape)
    side = min(height, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    depth = 0
    for stage, count in enumerate(_CONVS_PER_STAGE[name]):
        for _ in range(count):
            depth += 1
            conv = nn.Conv2d(fan_in, _WIDTHS[stage], 3, padding=1, bias=False)
            layers[f"conv{depth}"] = kaiming(conv)
            layers[f"bn{depth}"] = nn.BatchNorm2d(_WIDTHS[stage])
            layers[f"relu{depth}"] = nn.ReLU()
            fan_in = _WIDTHS[stage]
        if side >= 2:
            layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
            side //= 2
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["fc"] = nn.Linear(fan_in, outputs)
    return nn.Sequential(layers)
