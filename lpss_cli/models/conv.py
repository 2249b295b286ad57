"""Conv-2, Conv-4 and Conv-6: the small VGG-like networks of the lottery tickets.

Frankle, Carbin, "The lottery ticket hypothesis" (ICLR 2019). On CIFAR-10 they have 4,301,642,
2,425,930 and 2,262,602 parameters. The paper starts from Glorot's normal; here it is PyTorch's
default.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from lpss_cli.models.checks import image_shape

_STAGES = {"conv2": (64,), "conv4": (64, 128), "conv6": (64, 128, 256)}


def build(name: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``(batch, channels, H, W)`` -> ``(batch, outputs)``; every pair of convs halves H and W."""
    widths = _STAGES[name]
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
