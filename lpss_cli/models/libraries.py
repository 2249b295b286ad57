"""Networks of torchvision and timm, fitted to the data's channels and classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar

from lpss_cli.errors import InputError, one_line
from lpss_cli.models.checks import image_shape, size_text

if TYPE_CHECKING:
    from torch import nn

#: Parts that some networks have for training alone, and are built without here: their auxiliary
#: classifiers would make the training output a tuple.
AUXILIARY = {
    "torchvision:googlenet": ("aux1.", "aux2."),
    "torchvision:inception_v3": ("AuxLogits.",),
}
_T = TypeVar("_T")


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """``torchvision:NAME`` or ``timm:NAME`` with random weights, the library's own init.

    The network is tried on one image, so that a size it cannot take is found here.

    Raises:
        InputError: library not installed, unknown name, images it cannot take.
    """
    from torch import Tensor

    shape = image_shape(spec, input_shape)
    try:
        network = create(spec, shape, outputs)
        answer = _try_once(network, shape)
    except InputError:
        raise
    # Every network refuses a size in its own way: with assertions, ValueErrors, RuntimeErrors.
    except Exception as error:
        raise InputError(
            f"{spec} cannot take images of {size_text(shape)}: {one_line(error)}",
            "give it the size it was made for: --image-size 224",
        ) from error
    if not isinstance(answer, Tensor) or answer.shape != (1, outputs):
        raise InputError(f"{spec} is not a classifier", "name a classification network")
    return network


def create(spec: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    """Make a network without trying whether it takes the images.

    Raises:
        InputError: library not installed, or unknown name.
    """
    library, _, name = spec.partition(":")
    maker = _from_torchvision if library == "torchvision" else _from_timm
    return maker(name, shape, outputs)


def without_auxiliary(spec: str, entries: Mapping[str, _T]) -> dict[str, _T]:
    """Return the entries of a network's state_dict that are not of auxiliary classifiers.

    Args:
        spec: the network; an empty one is any of those that have auxiliary classifiers.
        entries: by name.
    """
    known = {spec: AUXILIARY.get(spec, ())} if spec else AUXILIARY
    prefixes = tuple(prefix for prefixes in known.values() for prefix in prefixes)
    return {name: entry for name, entry in entries.items() if not name.startswith(prefixes)}


def is_sized(spec: str) -> bool:
    """Whether the size of the images decides a network's shapes."""
    library, _, name = spec.rpartition(":")
    # Those of torchvision have a parameter for every patch of the image.
    return name.startswith("vit_") if library == "torchvision" else not library


def is_installed(library: str) -> bool:
    """Whether a library is there, without loading it."""
    try:
        return find_spec(library) is not None
    except ValueError:  # it is there and not as it should be
        return False


def is_published(spec: str) -> bool:
    """Whether timm has weights for one of its networks."""
    timm = _library("timm", "pip install lpss-cli[timm]")
    return bool(timm.is_model_pretrained(spec.removeprefix("timm:")))


def _from_torchvision(name: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    models = _library("torchvision", "pip install torchvision").models
    names = models.list_models(module=models)  # classifiers: not detection, not segmentation
    if name not in names:
        raise _unknown("torchvision", name, names)
    options: dict[str, Any] = {}
    if f"torchvision:{name}" in AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    elif is_sized(f"torchvision:{name}") and shape[1] == shape[2]:
        options = {"image_size": shape[1]}
    network: nn.Module = models.get_model(name, weights=None, num_classes=outputs, **options)
    _fit_channels(network, shape[0])
    return network


def _from_timm(name: str, shape: tuple[int, int, int], outputs: int) -> nn.Module:
    timm = _library("timm", "pip install lpss-cli[timm]")
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())
    network: nn.Module = timm.create_model(
        name, pretrained=False, num_classes=outputs, in_chans=shape[0]
    )
    return network


def _fit_channels(network: nn.Module, channels: int) -> None:
    """Replace the first convolution by one for ``channels`` inputs, if it has others."""
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
    """Answer one black image, without touching BN statistics."""
    import torch

    network.eval()
    with torch.no_grad():
        answer: object = network(torch.zeros(1, *shape))
    network.train()
    return answer


def _library(name: str, install: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(f"{name} cannot be imported: {one_line(error)}", install) from error


def _unknown(library: str, name: str, names: list[str]) -> InputError:
    # Hundreds of names: show the nearest few, and how to see all.
    close = [f"{library}:{n}" for n in get_close_matches(name, names, n=3, cutoff=0.5)]
    module = "torchvision.models" if library == "torchvision" else library
    listing = f"all of them: python -c 'import {module} as m; print(m.list_models())'"
    do = f"did you mean {' or '.join(close)}? {listing}" if close else listing
    return InputError(f"{library} has no network {name!r}", do)


# MERGED: How published weights of torchvision and timm want their images shown to them.
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
