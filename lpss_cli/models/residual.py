"""Residual networks for small images: the ResNets of the CIFAR experiments and LpSS's WRNs.

He, Zhang, Ren, Sun, "Deep residual learning for image recognition" (CVPR 2016): basic blocks with
batch normalization and ReLU *after* each convolution. The published parameter counts of the LpSS
networks fit this order and not the pre-activation order of Zagoruyko, Komodakis, "Wide residual
networks" (BMVC 2016).
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.classic import kaiming

_RESNET_BLOCKS = {"resnet20": 3, "resnet56": 9}
# Channels of the first stage and number of blocks of each stage.
_WRN_STAGES = {
    "wrn12": (16, (1, 2, 2)),
    "wrn18": (16, (2, 3, 3)),
    "wrn22-2": (32, (3, 4, 3)),
    "wrn22-4": (64, (3, 4, 3)),
}


def build_resnet(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build ``resnet20`` or ``resnet56`` of He et al., 6n + 2 layers deep.

    The paper pads its shortcuts with zeros where the shape changes; here they are 1x1 convolutions,
    as in the networks that GSM prunes: its ResNet-56 has 852K kernel weights, which is 851,504 with
    the convolutions and 848,944 without.
    """
    channels, _, _ = image_shape(name, input_shape)
    n = _RESNET_BLOCKS[name]
    return residual_network(channels, 16, (n, n, n), outputs)


def build_wrn(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build a wide residual network of the LpSS experiments, exact to the parameter.

    | name    | first stage | blocks | data          | parameters |
    |---------|-------------|--------|---------------|------------|
    | wrn12   | 16 wide     | 1-2-2  | MNIST         |    170,298 |
    | wrn18   | 16 wide     | 2-3-3  | Fashion-MNIST |    267,514 |
    | wrn22-2 | 32 wide     | 3-4-3  | CIFAR-10      |  1,154,074 |
    | wrn22-4 | 64 wide     | 3-4-3  | Tiny ImageNet |  4,644,120 |

    The name counts the stem, two convolutions per block and the classifier.
    """
    channels, _, _ = image_shape(name, input_shape)
    width, blocks = _WRN_STAGES[name]
    return residual_network(channels, width, blocks, outputs)


def residual_network(
    channels: int, width: int, blocks: tuple[int, int, int], outputs: int
) -> nn.Sequential:
    """Chain a 16-channel stem, stages ``width``, ``2 width`` and ``4 width`` wide, a classifier.

    The second and the third stage halve the image. Convolutions have no bias, since batch
    normalization has one, and are initialized with :func:`~lpss_cli.models.classic.kaiming`; the
    classifier has PyTorch's default initialization.

    Args:
        channels: of the images.
        width: channels of the first stage.
        blocks: number of blocks in each stage.
        outputs: number of classes.

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


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: a 1x1 convolution with BN where the shape changes.

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
        """Add the convolutions' output to the shortcut's; a ReLU follows the sum."""
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


def _conv3x3(fan_in: int, fan_out: int, stride: int = 1) -> nn.Conv2d:
    return kaiming(nn.Conv2d(fan_in, fan_out, 3, stride, padding=1, bias=False))


def _shortcut(fan_in: int, fan_out: int, stride: int) -> nn.Module:
    if fan_in == fan_out and stride == 1:
        return nn.Identity()
    conv = kaiming(nn.Conv2d(fan_in, fan_out, 1, stride, bias=False))
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(fan_out)))
