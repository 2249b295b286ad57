"""What is said when a network and the data do not fit. Imports no torch."""

from __future__ import annotations

from lpss_cli.errors import InputError


def size_text(shape: tuple[int, ...]) -> str:
    """``(3, 32, 32)`` -> ``"3x32x32"``, for messages."""
    return "x".join(map(str, shape)) if shape else "a single number"


def image_shape(name: str, input_shape: tuple[int, ...], smallest: int = 1) -> tuple[int, int, int]:
    """Check that samples are images: ``(channels, height, width)``.

    Args:
        name: the network that wants images, for the message.
        input_shape: shape of one sample.
        smallest: fewest pixels the network can take per side.

    Raises:
        InputError: not an image, or one that is too small.
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
