"""Checks of networks against data, and the words of their messages. Imports no torch."""

from __future__ import annotations

from lpss_cli.errors import InputError


def size_text(shape: tuple[int, ...]) -> str:
    """Return ``"3x32x32"`` for ``(3, 32, 32)``, for messages."""
    return "x".join(map(str, shape)) if shape else "a single number"


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """Check that samples are images and return their shape ``(channels, height, width)``.

    Args:
        name: the network that takes images, for the message.
        input_shape: shape of one sample.
        smallest: fewest pixels per side that the network can take.

    Raises:
        InputError: samples are not images, or the images are too small.
    """
    if len(input_shape) != 3:
        raise InputError(
            f"{name} needs images (channels x height x width), the data has samples of "
            f"{size_text(input_shape)}",
            "use --arch mlp, which takes any shape",
        )
    channels, height, width = input_shape
    if min(height, width) < smallest:
        raise InputError(
            f"{name} needs images of at least {smallest}x{smallest} pixels, the data has "
            f"{height}x{width}",
            f"use a network for small images (wrn12, vgg11, mlp), or --image-size {smallest}",
        )
    return channels, height, width


def plural(count: int, word: str) -> str:
    """Return ``1 output`` or ``2 outputs`` for words that take an s."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"
