"""Feed-forward networks of the pruning literature: MLPs, LeNets, Conv-2/4/6 and VGGs.

They are plain chains of layers. The builders return ``(batch, *input_shape)`` -> ``(batch,
outputs)`` networks with PyTorch's default initialization unless they say otherwise.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from math import prod

from torch import nn

from lpss_cli.models.checks import image_shape

# Channels of each stage of two convolutions.
_CONV_STAGES = {"conv2": (64,), "conv4": (64, 128), "conv6": (64, 128, 256)}
# Channels and number of convolutions of each of the five stages.
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_CONVS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def build_mlp(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the MLP of a completed ``mlp:A-B-…-Z``; its ends are known to fit the data."""
    return mlp([int(width) for width in spec.partition(":")[2].split("-")])


def mlp(widths: list[int]) -> nn.Sequential:
    """Stack linear layers ``fc1``, ``fc2``, … with ReLU between them.

    Args:
        widths: of the input, the hidden layers and the output: two numbers or more.

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


def build_lenet(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build ``lenet300`` for any inputs, or ``lenet5`` for images.

    LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition" (Proc.
    IEEE 1998), in the variants that pruning papers count: on MNIST, LeNet-300-100 has 266,610
    parameters, and LeNet-5 as Caffe ships it, 20-50-500, has 431,080.
    """
    if name == "lenet300":
        return mlp([prod(input_shape), 300, 100, outputs])
    return _lenet5(input_shape, outputs)


def _lenet5(input_shape: tuple[int, ...], outputs: int) -> nn.Sequential:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``, for H and W of 16 or more.

    As in Caffe, only pooling follows the convolutions; the one ReLU is after fc1.
    """
    # ((16 - 4) / 2 - 4) / 2 = 1: 16 pixels leave one.
    channels, height, width = image_shape("lenet5", input_shape, smallest=16)
    pooled = [((side - 4) // 2 - 4) // 2 for side in (height, width)]
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(50 * prod(pooled), 500),
            relu1=nn.ReLU(),
            fc2=nn.Linear(500, outputs),
        )
    )


def build_conv(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build ``conv2``, ``conv4`` or ``conv6``; every pair of convolutions halves H and W.

    The small VGG-like networks of Frankle, Carbin, "The lottery ticket hypothesis" (ICLR 2019). On
    CIFAR-10 they have 4,301,642, 2,425,930 and 2,262,602 parameters. The paper initializes them
    with Glorot's normal distribution; here the initialization is PyTorch's default.
    """
    widths = _CONV_STAGES[name]
    shrink = 2 ** len(widths)
    fan_in, height, width = image_shape(name, input_shape, smallest=shrink)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for stage, fan_out in enumerate(widths):
        for i in (2 * stage + 1, 2 * stage + 2):
            layers[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, 3, padding=1)
            layers[f"relu{i}"] = nn.ReLU()
            fan_in = fan_out
        layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(fan_in * (height // shrink) * (width // shrink), 256)
    layers["fc1_relu"] = nn.ReLU()
    layers["fc2"] = nn.Linear(256, 256)
    layers["fc2_relu"] = nn.ReLU()
    layers["fc3"] = nn.Linear(256, outputs)
    return nn.Sequential(layers)


def build_vgg(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build ``vgg11``, ``vgg13``, ``vgg16`` or ``vgg19`` for images of any H and W.

    Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition" (ICLR
    2015), in the usual form for CIFAR: batch normalization follows every convolution, and global
    average pooling with one linear layer replaces the three wide layers. A pooling that would leave
    less than one pixel is left out, so that 8x8 digits fit as well.

    Convolutions have no bias and are initialized with :func:`kaiming`.
    """
    fan_in, height, width = image_shape(name, input_shape)
    side = min(height, width)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    depth = 0
    for stage, count in enumerate(_VGG_CONVS[name]):
        for _ in range(count):
            depth += 1
            conv = nn.Conv2d(fan_in, _VGG_WIDTHS[stage], 3, padding=1, bias=False)
            layers[f"conv{depth}"] = kaiming(conv)
            layers[f"bn{depth}"] = nn.BatchNorm2d(_VGG_WIDTHS[stage])
            layers[f"relu{depth}"] = nn.ReLU()
            fan_in = _VGG_WIDTHS[stage]
        if side >= 2:
            layers[f"pool{stage + 1}"] = nn.MaxPool2d(2)
            side //= 2
    layers |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten()}
    layers["fc"] = nn.Linear(fan_in, outputs)
    return nn.Sequential(layers)


def kaiming(conv: nn.Conv2d) -> nn.Conv2d:
    """Redraw the weight from Kaiming's normal distribution, std = sqrt(2 / fan-out); return it."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
