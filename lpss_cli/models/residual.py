"""The residual network that the WRNs of LpSS and the ResNets for CIFAR have in common.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016): basic blocks
with batch normalisation and ReLU *after* each convolution. The published parameter counts of
the LpSS networks fit this order and not the pre-activation one of the wide residual networks.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution + BN where the shape changes.

    ``(batch, fan_in, H, W)`` -> ``(batch, fan_out, ceil(H / stride), ceil(W / stride))``.
    """

    def __init__(self, fan_in: int, fan_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(fan_in, fan_out, stride)
        self.bn1 = nn.BatchNorm2d(fan_out)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(fan_out, fan_out)
        self.bn2 = nn.BatchNorm2d(fan_out)
        self.shortcut = _shortcut(fan_in, fan_out, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Add the two paths; a ReLU comes after the sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def residual_network(
    channels: int, width: int, blocks: tuple[int, int, int], outputs: int
) -> nn.Sequential:
    """Chain a 16-channel stem, stages ``width``, ``2 width``, ``4 width`` wide, a classifier.

    Stages two and three halve the image. Convolutions have no bias (BN has one) and start
    from Kaiming's normal, fan-out; the classifier from PyTorch's default.

    Args:
        channels: of the images.
        width: channels of the first stage.
        blocks: number of blocks in each stage.
        outputs: classes.

    Returns:
        ``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W.
    """
    stem = 16
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=_conv3x3(channels, stem), bn1=nn.BatchNorm2d(stem), relu1=nn.ReLU()
    )
    fan_in = stem
    for stage, count in enumerate(blocks):
        fan_out = width * 2**stage
        first = Block(fan_in, fan_out, stride=1 if stage == 0 else 2)
        rest = (Block(fan_out, fan_out, stride=1) for _ in range(count - 1))
        layers[f"layer{stage + 1}"] = nn.Sequential(first, *rest)
        fan_in = fan_out
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["fc"] = nn.Linear(fan_in, outputs)
    return nn.Sequential(layers)


def _conv3x3(fan_in: int, fan_out: int, stride: int = 1) -> nn.Conv2d:
    return kaiming(nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False))


def _shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    if fan_in == fan_out and stride == 1:
        return nn.Identity()
    conv = kaiming(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False))
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(fan_out)))


def kaiming(conv: nn.Conv2d) -> nn.Conv2d:
    """Redraw the weight from Kaiming's normal, std = sqrt(2 / fan-out), and hand the conv back."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
