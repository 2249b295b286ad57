"""Augmentation of whole batches on their device, with one random draw per example.

This is our own code because torchvision's transforms apply one draw to a whole batch, and take it
from torch's global generator. Here every example of a batch has its own draw, one call serves the
whole batch, and the draws come from a generator that the caller seeds: a batch is a function of
seed, epoch and index, so a resumed run sees the same images.

Each augmentation has two halves: a pure function of explicit offsets, and a closure that draws
them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lpss_cli.errors import InputError, nearest

if TYPE_CHECKING:
    from lpss_cli.data.sources import Augment

_PAD = 4  # pixels, for both named policies


def crop_at(x: Tensor, top: Tensor, left: Tensor, pad: int) -> Tensor:
    """Crop the reflect-padded images to their original size.

    Args:
        x: (B, C, H, W).
        top: (B,) int64 first row of each crop in the padded image, in [0, 2 pad].
        left: (B,) int64 first column, likewise.
        pad: pixels added on each side by reflection, in [0, min(H, W)).

    Returns:
        (B, C, H, W).
    """
    height, width = x.shape[-2:]
    padded = F.pad(x, (pad, pad, pad, pad), mode="reflect")
    # A view of every possible crop: (B, C, 2 pad + 1, 2 pad + 1, H, W), nothing is copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def flip_where(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the marked images left to right: x (B, C, H, W), flipped (B,) bool."""
    return torch.where(flipped[:, None, None, None], x.flip(3), x)


def cut_at(x: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Set a square of each image to 0, which is the mean after normalization.

    Args:
        x: (B, C, H, W).
        row: (B,) int64 center of each square. It covers [row - size // 2, … + size), clipped at
            the border, so that squares near the border are smaller.
        column: (B,) int64 center, likewise.
        size: side of the square in pixels, >= 0.

    Returns:
        (B, C, H, W).
    """

    def inside(length: int, center: Tensor) -> Tensor:
        offset = torch.arange(length, device=x.device) - (center[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    rows, columns = inside(x.shape[2], row), inside(x.shape[3], column)
    return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0.0)


def reflect_crop(pad: int) -> Augment:
    """Reflect-pad by ``pad`` pixels, then crop to the original size at a random position."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        top = _draw(2 * pad + 1, x, generator)
        return crop_at(x, top, _draw(2 * pad + 1, x, generator), pad)

    return apply


def hflip() -> Augment:
    """Mirror each image with probability 1/2."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        return flip_where(x, _draw(2, x, generator).bool())

    return apply


def cutout(size: int) -> Augment:
    """Cut one square hole per image, its center uniform over the image (DeVries & Taylor 2017)."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        row = _draw(x.shape[2], x, generator)
        return cut_at(x, row, _draw(x.shape[3], x, generator), size)

    return apply


def compose(*steps: Augment) -> Augment:
    """Apply one augmentation after the other, all drawing from the same generator."""

    def apply(x: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            x = step(x, generator)
        return x

    return apply


def _draw(bound: int, x: Tensor, generator: torch.Generator) -> Tensor:
    """Draw (B,) int64 in [0, bound), on the device of x."""
    return torch.randint(0, bound, (len(x),), generator=generator, device=x.device)


#: Policies by name, the choices of ``--augment``. ``cifar`` pads by 4 pixels, crops, and flips;
#: ``fashion`` does the same and then cuts out 6×6 pixels.
POLICIES: dict[str, Callable[[], Augment | None]] = {
    "none": lambda: None,
    "fashion": lambda: compose(reflect_crop(_PAD), hflip(), cutout(6)),
    "cifar": lambda: compose(reflect_crop(_PAD), hflip()),
}


def policy(name: str) -> Augment | None:
    """Return a policy by its name; None for ``none``.

    Raises:
        InputError: no such policy.
    """
    if name not in POLICIES:
        raise InputError(f"no augmentation called {name!r}", nearest(name, tuple(POLICIES)))
    return POLICIES[name]()


def for_shape(name: str, shape: tuple[int, ...]) -> Augment | None:
    """Return a named policy for inputs of that shape; None for ``none``.

    Raises:
        InputError: no such policy, inputs that are not images, or images too small for it.
    """
    augment = policy(name)
    if augment is not None and (len(shape) != 3 or min(shape[1:]) <= _PAD):
        raise InputError(
            f"augmentation {name!r} needs images of more than {_PAD} pixels a side, "
            f"not inputs of {shape}",
            "leave --augment out",
        )
    return augment
