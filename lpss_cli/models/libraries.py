"""Networks of torchvision and timm: made for the data, and shown images as they are published.

Importing this module imports neither library, nor torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from lpss_cli.errors import InputError, one_line
from lpss_cli.models.checks import size_text
from lpss_cli.models.info import ImagePreprocessing

if TYPE_CHECKING:
    from torch import nn

#: Networks of torchvision with auxiliary classifiers, which make the output in training a tuple,
#: and the prefixes of their tensors. They are created without them.
AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
#: Networks of torchvision that, built with published weights, first turn inputs standardized for
#: ImageNet into (x - 0.5) / 0.5. They are created without that step here, so their images are
#: standardized like that from the start.
_RESCALING = ("googlenet", "inception_v3")
_HALVES = (0.5, 0.5, 0.5)


def build(
    spec: str,
    create: Callable[[str, tuple[int, ...], int], nn.Module],
    shape: tuple[int, int, int],
    outputs: int,
) -> nn.Module:
    """Create a network and try it on one image, so that an impossible image size is found here.

    Args:
        spec: ``torchvision:NAME`` or ``timm:NAME``.
        create: called with ``(spec, shape, outputs)``.
        shape: ``(channels, height, width)`` of the images.
        outputs: number of classes.

    Raises:
        InputError: the library is not installed, the name is unknown, the network does not take
            such images, or it is not a classifier.
    """
    from torch import Tensor

    try:
        network = create(spec, shape, outputs)
        scores = _try_once(network, shape)
    except InputError:
        raise
    # Every network refuses a size in its own way: AssertionError, ValueError, RuntimeError, ….
    except Exception as error:
        raise InputError(
            f"{spec} cannot take images of {size_text(shape)}: {one_line(error)}",
            "give it the size it was made for: --image-size 224",
        ) from error
    if not isinstance(scores, Tensor) or scores.shape != (1, outputs):
        raise InputError(f"{spec} is not a classifier", "name a classification network")
    return network


def create_torchvision(spec: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Create a classifier of torchvision with its own random initialization.

    Raises:
        InputError: torchvision cannot be imported, or the name is unknown.
    """
    models = _library("torchvision", "pip install torchvision").models
    name = spec.partition(":")[2]
    names = models.list_models(module=models)  # classifiers: not detection, not segmentation
    if name not in names:
        raise _unknown("torchvision", name, names)
    options: dict[str, Any] = {}
    if name in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    elif depends_on_image_size(name) and shape[1] == shape[2]:
        options = {"image_size": shape[1]}
    network: nn.Module = models.get_model(name, weights=None, num_classes=outputs, **options)
    _fit_channels(network, shape[0])
    return network


def depends_on_image_size(name: str) -> bool:
    """Return whether a network of torchvision has a parameter for every patch of the image."""
    return name.startswith("vit_")


def create_timm(spec: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Create a network of timm with its own random initialization.

    Raises:
        InputError: timm cannot be imported, or the name is unknown.
    """
    timm = _timm()
    name = spec.partition(":")[2]
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    network: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=outputs, in_chans=shape[0]
    )
    return network


def is_installed(library: str) -> bool:
    """Return whether a library is installed, without importing it."""
    try:
        return find_spec(library) is not None
    except ValueError:  # an entry of sys.modules without a spec
        return False


def is_published_by_timm(name: str) -> bool:
    """Return whether timm has weights for one of its networks."""
    return bool(_timm().is_model_pretrained(name))


def torchvision_preprocessing(
    name: str, sha256: str = "", side: int | None = None
) -> ImagePreprocessing | None:
    """Return how torchvision evaluates the weights of a network.

    Files downloaded from torchvision carry the beginning of their hash in their names, so they are
    known by their content. For any other weights it is the preprocessing of torchvision's default.

    Args:
        name: of a network that exists.
        sha256: of the file, in hex.
        side: of the images in pixels, if the shapes of the network determine it.
    """
    from torchvision import models

    choices = models.get_model_weights(name)
    published = [_of_weights(name, weights, sha256) for weights in (choices.DEFAULT, *choices)]
    matching = [p for p in published if p.is_file] or [
        p for p in published if side in (None, p.crop)
    ]
    return matching[0] if matching else None


def _of_weights(name: str, weights: Any, sha256: str) -> ImagePreprocessing:
    transform = weights.transforms()
    (resize,), (crop,) = transform.resize_size, transform.crop_size
    hash_in_url = weights.url.rpartition("-")[2].partition(".")[0]
    is_file = bool(sha256) and sha256.startswith(hash_in_url)
    return ImagePreprocessing(
        weights.name,
        is_file,
        resize,
        crop,
        _HALVES if name in _RESCALING else tuple(transform.mean),
        _HALVES if name in _RESCALING else tuple(transform.std),
        transform.interpolation.value,
        f"this file is torchvision's {weights.name}, evaluated so"
        if is_file
        else f"as torchvision evaluates its {weights.name}",
    )


def timm_preprocessing(name: str) -> ImagePreprocessing | None:
    """Return how timm evaluates its default weights of a network, if it has any."""
    # Imported by name: timm's annotations are incomplete.
    data, models = (import_module(f"timm.{part}") for part in ("data", "models"))
    published: Any = models.get_pretrained_cfg(name, allow_unregistered=True)
    if published is None:
        return None
    config: dict[str, Any] = data.resolve_data_config(pretrained_cfg=published.to_dict())
    crop, interpolation = int(config["input_size"][1]), str(config["interpolation"])
    title = published.tag or name
    return ImagePreprocessing(
        title,
        False,
        math.floor(crop / config["crop_pct"]),
        crop,
        tuple(config["mean"]),
        tuple(config["std"]),
        interpolation if interpolation in ("bilinear", "bicubic") else "bilinear",
        f"as timm evaluates its {title}",
    )


def _fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution if it has another number of input channels."""
    from torch import nn

    convs = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    path, old = next(convs)
    if old.in_channels == channels:
        return
    kernel, stride = (old.kernel_size[0], old.kernel_size[1]), (old.stride[0], old.stride[1])
    new = nn.Conv2d(
        channels,
        old.out_channels,
        kernel,
        stride,
        padding=old.padding,  # type: ignore[arg-type]  # a tuple of two, typed as of any length
        bias=old.bias is not None,
    )
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)


def _try_once(network: nn.Module, shape: tuple[int, int, int]) -> object:
    """Return the output for one black image, leaving the statistics of BatchNorm alone."""
    import torch

    network.eval()
    with torch.no_grad():
        output: object = network(torch.zeros(1, *shape))
    network.train()
    return output


def _timm() -> Any:
    return _library("timm", "pip install lpss-cli[timm]")


def _library(name: str, install: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported: {one_line(error)}", install) from error


def _unknown(library: str, name: str, names: list[str]) -> InputError:
    # There are hundreds of names: show the nearest few, and how to list all.
    close = [f"{library}:{n}" for n in get_close_matches(name, names, n=3, cutoff=0.5)]
    module = "torchvision.models" if library == "torchvision" else library
    listing = f"all of them: python -c 'import {module} as m; print(m.list_models())'"
    do = f"did you mean {' or '.join(close)}? {listing}" if close else listing
    return InputError(f"{library} has no network {name!r}", do)
