"""How torchvision's published weights want their images shown to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: Built with published weights, these networks first turn what was standardised for ImageNet into
#: (x - 0.5) / 0.5. Here they are built without that step, and the images are standardised so.
_RESCALING = ("googlenet", "inception_v3")
_HALVES = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class View:
    """What is done to an image before a network sees it.

    Attributes:
        weights: the published weights that are evaluated so.
        is_file: whether the file at hand is the published one, by its hash.
        resize: length of the shorter side in pixels, before the crop.
        crop: side of the square that is cut out of the middle.
        mean, std: per channel, of values in [0, 1].
        interpolation: of the resize: ``bilinear`` or ``bicubic``.
    """

    weights: str
    is_file: bool
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def view(arch: str, sha256: str = "", side: int | None = None) -> View | None:
    """Return how a network of torchvision is evaluated; None for other networks.

    Files downloaded from torchvision carry the beginning of their hash in their names, so that
    they are known by content. For any other weights it is the view of torchvision's default.

    Args:
        arch: the spec of a network that exists.
        sha256: of the file, in hex.
        side: of the images in pixels, where the shapes of the network say it.
    """
    library, _, name = arch.partition(":")
    if library != "torchvision":
        return None
    from torchvision import models

    choice = models.get_model_weights(name)
    found = [_view(name, weights, sha256) for weights in (choice.DEFAULT, *choice)]
    known = [v for v in found if v.is_file] or [v for v in found if side in (None, v.crop)]
    return known[0] if known else None


def _view(name: str, weights: Any, sha256: str) -> View:
    transform = weights.transforms()
    begin = weights.url.rpartition("-")[2].partition(".")[0]
    (resize,), (crop,) = transform.resize_size, transform.crop_size
    return View(
        weights.name,
        bool(sha256) and sha256.startswith(begin),
        resize,
        crop,
        _HALVES if name in _RESCALING else tuple(transform.mean),
        _HALVES if name in _RESCALING else tuple(transform.std),
        transform.interpolation.value,
    )
