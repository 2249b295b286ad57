"""What a network's state_dict looks like, found out without taking memory for the network.

A network is built once with impossible numbers of classes and channels. Where those turn up in its
shapes, a file may have any number; where they do not, the file has to have the network's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import build, zoo

#: Primes that no layer has for a width.
_OUTPUTS, _CHANNELS = 1009, 1013
#: Two image sides that every network takes; where the shapes differ, they depend on the side.
_SIDES = (224, 448)
_FILLED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
#: Older PyTorch did not count batches, and nothing here needs the count.
COUNTER = ".num_batches_tracked"


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


@dataclass(frozen=True)
class Fit:
    """A network that a state_dict is of.

    Attributes:
        arch: its spec.
        outputs: width of the last layer.
        channels: of the images it takes; None where it takes any shape.
        side: of the images in pixels, where the shapes say it.
    """

    arch: str
    outputs: int
    channels: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Template:
    """The shapes of a network's entries; a text stands for a number that is free.

    ``outputs`` and ``channels`` are the same number wherever they stand, ``image`` is any: it
    depends on the size of the images, which is checked when these are known.
    """

    arch: str
    shapes: Mapping[str, tuple[int | str, ...]]

    def compare(self, shapes: Shapes) -> tuple[Fit | None, list[str]]:
        """Compare with the shapes of a file: the fit, or else what differs, entry by entry."""
        problems = [f"{name} is missing" for name in self.shapes if name not in shapes]
        problems += [f"{name} is unknown" for name in shapes if name not in self.shapes]
        free: dict[str, int] = {}
        for name, expected in self.shapes.items():
            if name in shapes and not _fits(expected, shapes[name], free):
                wanted = tuple(free.get(str(size), size) for size in expected)
                wanted_text = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
                problems.append(f"{name} has shape {tuple(shapes[name])}, not ({wanted_text})")
        if problems or "outputs" not in free:
            return None, problems
        fit = Fit(self.arch, free["outputs"], free.get("channels"), self._side(shapes))
        return fit, []

    def _side(self, shapes: Shapes) -> int | None:
        """Return the image side that a table of positions is for, one for a patch and one more."""
        tables = [n for n, s in self.shapes.items() if len(s) == 3 and s[1] == "image"]
        patches = [shapes[n][-1] for n, s in self.shapes.items() if len(s) == 4]
        return patches[0] * isqrt(shapes[tables[0]][1] - 1) if tables and patches else None


def _fits(expected: tuple[int | str, ...], shape: Shape, free: dict[str, int]) -> bool:
    """Whether a shape is as expected; notes what the free numbers are."""
    if len(shape) != len(expected) or 0 in shape:
        return False
    for size, wanted in zip(shape, expected, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                return False
        elif wanted != "image" and free.setdefault(wanted, size) != size:
            return False
    return True


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


def needed(names: Iterable[str]) -> list[str]:
    """Return the names that a network cannot do without."""
    return [name for name in names if not name.endswith(COUNTER)]
