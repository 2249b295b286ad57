"""Multilayer perceptrons of any widths."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from math import prod

from torch import nn

from lpss_cli.models.checks import image_shape
from lpss_cli.models.residual import kaiming
from lpss_cli.models.spec import mlp_widths


def build_mlp(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
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


# MERGED: Conv-2, Conv-4 and Conv-6: the small VGG-like networks of the lottery tickets.
# MERGED: Frankle, Carbin, "The lottery ticket hypothesis" (ICLR 2019). On CIFAR-10 they have
# MERGED: 4,301,642,
# MERGED: 2,425,930 and 2,262,602 parameters. The paper starts from Glorot's normal; here it is
# MERGED: PyTorch's
# MERGED: default.
_CONV_STAGES = {"conv2": (64,), "conv4": (64, 128), "conv6": (64, 128, 256)}


def build_conv(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``; every pair of convs halves H and W."""
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


# MERGED: The two LeNets of the pruning literature.
# MERGED: LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition"
# MERGED: (Proc. IEEE 1998), in the variants every pruning paper counts: LeNet-300-100 with 266,610
# MERGED: parameters, and the LeNet-5 that Caffe ships, 20-50-500, with 431,080.
def build_lenet(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
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


# MERGED: VGG with batch normalisation, in its usual form for small images.
# MERGED: Simonyan, Zisserman, "Very deep convolutional networks for large-scale image recognition"
# MERGED: (ICLR 2015). As is usual on CIFAR, global average pooling and one linear layer take the
# MERGED: place
# MERGED: of the three wide layers, and every convolution is followed by batch normalisation.
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_CONVS_PER_STAGE = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}


def build_vgg(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
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
