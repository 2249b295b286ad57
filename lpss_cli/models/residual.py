"""The residual network that the WRNs of LpSS and the ResNets for CIFAR have in common.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016): basic blocks
with batch normalisation and ReLU *after* each convolution. The published parameter counts of
the LpSS networks fit this order and not the pre-activation one of the wide residual networks.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lpss_cli.models.checks import image_shape


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


# MERGED: The CIFAR residual networks of He et al. (CVPR 2016), 6n + 2 layers deep.
# MERGED: The paper pads its shortcuts with zeros where the shape changes; here they are 1x1
# MERGED: convolutions, as in the networks that GSM prunes: its ResNet-56 has 852K kernel weights,
# MERGED: which
# MERGED: is 851,504 with the convolutions and 848,944 without.
_BLOCKS_PER_STAGE = {"resnet20": 3, "resnet56": 9}


def build_resnet(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W."""
    channels, _, _ = image_shape(name, input_shape)
    n = _BLOCKS_PER_STAGE[name]
    return residual_network(channels, 16, (n, n, n), outputs)


# MERGED: The wide residual networks of the LpSS experiments, to the parameter.
# MERGED: | name    | first stage | blocks | data          | parameters |
# MERGED: |---------|-------------|--------|---------------|------------|
# MERGED: | wrn12   | 16 wide     | 1-2-2  | MNIST         |    170,298 |
# MERGED: | wrn18   | 16 wide     | 2-3-3  | Fashion-MNIST |    267,514 |
# MERGED: | wrn22-2 | 32 wide     | 3-4-3  | CIFAR-10      |  1,154,074 |
# MERGED: | wrn22-4 | 64 wide     | 3-4-3  | Tiny ImageNet |  4,644,120 |
# MERGED: The name counts the stem, two convolutions per block and the classifier; wide residual
# MERGED: networks are Zagoruyko, Komodakis, "Wide residual networks" (BMVC 2016).
_WRN_SHAPES = {
    "wrn12": (16, (1, 2, 2)),
    "wrn18": (16, (2, 3, 3)),
    "wrn22-2": (32, (3, 4, 3)),
    "wrn22-4": (64, (3, 4, 3)),
}


def build_wrn(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for any H and W."""
    channels, _, _ = image_shape(name, input_shape)
    width, blocks = _WRN_SHAPES[name]
    return residual_network(channels, width, blocks, outputs)
