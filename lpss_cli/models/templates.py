"""What a network's state_dict looks like, found out without taking memory for the network.

A network is built once with impossible numbers of classes and channels. Where those turn up in its
shapes, a file may have any number; where they do not, the file has to have the network's own.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lpss_cli.models import build, zoo
from lpss_cli.models.shapes import Shape, Template, needed

#: Primes that no layer has for a width.
_OUTPUTS, _CHANNELS = 1009, 1013
#: Two image sides that every network takes; where the shapes differ, they depend on the side.
_SIDES = (224, 448)
_FILLED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


class _WithoutMemory(TorchFunctionMode):
    """Gives parameters and buffers a shape and no memory.

    ``torch.device("meta")`` would do so to everything, and some networks work out their widths
    with small tensors.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLED:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@cache
def template(arch: str) -> Template:
    """Return the template of a network of images: ``resnet20``, ``torchvision:resnet18``, ….

    Raises:
        InputError: there is no such network, or its library is not installed.
    """
    with _WithoutMemory(), warnings.catch_warnings():
        # torchvision speaks of what it will do otherwise in some later version.
        warnings.simplefilter("ignore")
        first = second = _shapes(_make(arch, _SIDES[0]))
        if zoo.is_sized(arch):
            second = _shapes(_make(arch, _SIDES[1]))
    return Template(arch, {n: _freed(shape, second[n]) for n, shape in first.items()})


def _make(arch: str, side: int) -> nn.Module:
    shape = (_CHANNELS, side, side)
    return zoo.create(arch, shape, _OUTPUTS) if ":" in arch else build(arch, shape, _OUTPUTS)


def _shapes(network: nn.Module) -> dict[str, Shape]:
    state = network.state_dict()
    return {name: tuple(state[name].shape) for name in needed(state)}


def _freed(shape: Shape, other: Shape) -> tuple[int | str, ...]:
    names = {_OUTPUTS: "outputs", _CHANNELS: "channels"}
    return tuple(names.get(a, a) if a == b else "image" for a, b in zip(shape, other, strict=True))
