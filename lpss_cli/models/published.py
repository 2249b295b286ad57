"""How published weights of torchvision and timm want their images shown to them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
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
        said: where all this comes from, in words.
    """

    weights: str
    is_file: bool
    resize: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    said: str = ""


def view(arch: str, sha256: str = "", side: int | None = None) -> View | None:
    """Return how a network of torchvision or timm is evaluated; None for other networks.

    Files downloaded from torchvision carry the beginning of their hash in their names, so that
    they are known by content. For any other weights it is the view of torchvision's default.

    Args:
        arch: the spec of a network that exists.
        sha256: of the file, in hex.
        side: of the images in pixels, where the shapes of the network say it.
    """
    library, _, name = arch.partition(":")
    if library == "timm":
        return _timm_view(name)
    if library != "torchvision":
        return None
    from torchvision import models

    choice = models.get_model_weights(name)
    found = [_view(name, weights, sha256) for weights in (choice.DEFAULT, *choice)]
    known = [v for v in found if v.is_file] or [v for v in found if side in (None, v.crop)]
    return known[0] if known else None


def _view(name: str, weights: Any, sha256: str) -> View:
    transform = weights.transforms()
    title = weights.name
    begin = weights.url.rpartition("-")[2].partition(".")[0]
    (resize,), (crop,) = transform.resize_size, transform.crop_size
    is_file = bool(sha256) and sha256.startswith(begin)
    return View(
        title,
        is_file,
        resize,
        crop,
        _HALVES if name in _RESCALING else tuple(transform.mean),
        _HALVES if name in _RESCALING else tuple(transform.std),
        transform.interpolation.value,
        f"this file is torchvision's {title}, evaluated so"
        if is_file
        else f"as torchvision evaluates its {title}",
    )


def _timm_view(name: str) -> View | None:
    """Return how timm evaluates the weights that it would take by default, if it has any."""
    # By name: timm's types say less than it does.
    images, models = (import_module(f"timm.{part}") for part in ("data", "models"))
    published: Any = models.get_pretrained_cfg(name, allow_unregistered=True)
    if published is None:
        return None
    found: dict[str, Any] = images.resolve_data_config(pretrained_cfg=published.to_dict())
    crop, way = int(found["input_size"][1]), str(found["interpolation"])
    title = published.tag or name
    return View(
        title,
        False,
        math.floor(crop / found["crop_pct"]),
        crop,
        tuple(found["mean"]),
        tuple(found["std"]),
        way if way in ("bilinear", "bicubic") else "bilinear",
        f"as timm evaluates its {title}",
    )
