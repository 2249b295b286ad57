"""What is known about a network apart from its weights, as plain values. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Older versions of PyTorch did not count batches, and no network needs the count.
COUNTER = ".num_batches_tracked"


def needed(names: Iterable[str]) -> list[str]:
    """Return the names of a state_dict that the network cannot do without."""
    return [name for name in names if not name.endswith(COUNTER)]


@dataclass(frozen=True)
class Fit:
    """A known network that the names and shapes of a state_dict fit.

    Attributes:
        arch: spec of the network.
        outputs: width of the last layer.
        channels: channels of the images that it takes; None if it takes inputs of any shape.
        side: side of these images in pixels; None if the shapes do not determine it.
    """

    arch: str
    outputs: int
    channels: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class ImagePreprocessing:
    """How images are prepared for the evaluation of a network.

    Attributes:
        weights: the published weights that are evaluated this way.
        is_file: whether the checkpoint is the published file itself, known by its hash.
        resize: length of the shorter side in pixels before the crop.
        crop: side of the square that is cropped from the center, in pixels.
        mean, std: per channel, of values in [0, 1].
        interpolation: of the resize: ``bilinear`` or ``bicubic``.
        source: where these values come from, for messages.
    """

    weights: str
    is_file: bool
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    source: str = ""


@dataclass(frozen=True)
class ModelInfo:
    """Everything that is found out about a checkpoint's network, once.

    Attributes:
        arch: spec of the network.
        fit: how the tensors fit this network; None if it is the user's code, does not fit, or if
            lpss's own record names it.
        recorded: whether the checkpoint has a record of lpss, which also names its data.
        input_shape: shape of one sample, if the record or the data say so.
        outputs: width of the last layer, if the record, the tensors or the data say so.
        classes: names of the outputs, in order; empty if unknown.
        auxiliary: prefixes of the names of auxiliary classifiers, which only training needs. Their
            entries are not loaded.
        preprocessing: how images are prepared for the network; None if unknown.
        flops: floating-point operations of a forward pass per sample; 0 before the network has been
            tried on its data.
    """

    arch: str
    fit: Fit | None = None
    recorded: bool = False
    input_shape: tuple[int, ...] | None = None
    outputs: int | None = None
    classes: tuple[str, ...] = ()
    auxiliary: tuple[str, ...] = ()
    preprocessing: ImagePreprocessing | None = None
    flops: float = 0.0
