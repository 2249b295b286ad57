"""Image sets that fit into memory: those known by name, and how raw pixels are normalized.

The digits are embedded in scikit-learn; MNIST, Fashion-MNIST and CIFAR come from torchvision.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.data import augment as augmentation
from lpss_cli.data import splits
from lpss_cli.data.bundle import Data
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec, data_root, refuse
from lpss_cli.data.splits import split
from lpss_cli.data.tasks import Targets, class_targets
from lpss_cli.errors import InputError, one_line

ChannelValues = tuple[float, ...]
"""One number per channel, or one for all channels."""

DIGITS_TEST = 360
"""Test images of the digits; the other 1437 are for training."""


@dataclass(frozen=True)
class _Published:
    """A torchvision data set: its class there, and the normalization in general use."""

    title: str
    dataset: str
    mean: ChannelValues
    std: ChannelValues
    augment: str | None = None


_TORCHVISION = {
    "mnist": _Published("MNIST", "MNIST", (0.1307,), (0.3081,)),
    "fashion-mnist": _Published("Fashion-MNIST", "FashionMNIST", (0.2860,), (0.3530,)),
    "cifar10": _Published(
        "CIFAR-10", "CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), "cifar"
    ),
    "cifar100": _Published(
        "CIFAR-100", "CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), "cifar"
    ),
}


@dataclass(frozen=True)
class RawImages:
    """Raw images of both parts.

    Attributes:
        train: (N, C, H, W) uint8.
        test: (M, C, H, W) uint8.
        targets: of both parts.
        max_value: the highest value that a pixel can have; divides the pixels, so that they are
            in [0, 1] before normalization.
        mean: per channel, as published for this data; None: measured on the training part.
        std: the same.
        default_augment: the augmentation policy that is usual for this data.
    """

    train: Tensor
    test: Tensor
    targets: Targets
    max_value: int = 255
    mean: ChannelValues | None = None
    std: ChannelValues | None = None
    default_augment: str | None = None


def load(spec: DataSpec) -> Data:
    """Load a data set of :data:`lpss_cli.data.spec.KNOWN` into memory.

    Raises:
        InputError: its files are absent and cannot be downloaded, or they are damaged.
    """
    refuse(spec, "images", "target", "drop", "split_seed")
    if spec.name == "digits":
        return build_image_data(spec, spec.name, _load_digits())
    raw = _load_published(_TORCHVISION[spec.name], data_root(spec))
    return build_image_data(spec, spec.name, raw)


def build_image_data(spec: DataSpec, name: str, raw: RawImages) -> Data:
    """Normalize raw images as the specification says.

    Raises:
        InputError: mean or std for another number of channels, or an augmentation that the
            images are too small for.
    """
    targets = raw.targets
    mean, std = channel_statistics(spec, raw)
    channels, height, width = raw.train.shape[1:]
    resize = resizer(spec.image_size, (height, width))
    size = (height, width) if spec.image_size is None else (spec.image_size,) * 2
    augment = spec.augment or raw.default_augment or "none"
    preprocessing: dict[str, Any] = {
        "kind": "image",
        "divide_by": raw.max_value,
        "image_size": list(size),
        "mean": list(mean),
        "std": list(std),
    }
    if targets.scaling:
        preprocessing["target"] = targets.scaling
    x_train, x_test = (normalize(x, raw.max_value, mean, std) for x in (raw.train, raw.test))
    return Data(
        spec=replace(spec, mean=mean, std=std, augment=augment),
        name=name,
        train=TensorSource(x_train, targets.train, resize),
        test=TensorSource(x_test, targets.test, resize),
        task=targets.task,
        input_shape=(channels, *size),
        outputs=targets.outputs,
        classes=targets.classes,
        preprocessing=preprocessing,
        fingerprint=splits.fingerprint_arrays(
            *(t.numpy() for t in (raw.train, targets.train, raw.test, targets.test))
        ),
        augment=augmentation.for_shape(augment, (channels, *size)),
        default_augment=raw.default_augment,
    )


def channel_statistics(spec: DataSpec, raw: RawImages) -> tuple[ChannelValues, ChannelValues]:
    """Return mean and standard deviation per channel: requested, published, or measured.

    Raises:
        InputError: see :func:`check_statistics`.
    """
    channels = raw.train.shape[1]
    mean, std = spec.mean or raw.mean, spec.std or raw.std
    if mean is None or std is None:
        values = raw.train.double().div(raw.max_value).transpose(0, 1).flatten(1)
        deviations = values.std(dim=1, correction=0)
        mean = mean or tuple(values.mean(dim=1).tolist())
        # A channel of a single color has nothing to scale.
        std = std or tuple(torch.where(deviations == 0, 1.0, deviations).tolist())
    return check_statistics(mean, std, channels)


def check_statistics(
    mean: ChannelValues, std: ChannelValues, channels: int
) -> tuple[ChannelValues, ChannelValues]:
    """Return mean and standard deviation per channel, of pixels in [0, 1].

    Raises:
        InputError: another number of values than channels, or values of pixels in 0 to 255.
    """
    mean, std = per_channel(mean, channels, "mean"), per_channel(std, channels, "std")
    if max(mean) > 1:
        # A deviation that was not typed belongs to pixels in [0, 1] already.
        wrong = {"--mean": mean} | ({"--std": std} if max(std) > 1 else {})
        divided = (f"{o} {','.join(f'{n / 255:.4g}' for n in v)}" for o, v in wrong.items())
        raise InputError(
            f"--mean {max(mean):g} is not a mean of pixels in [0, 1]",
            f"if it is of pixels in 0 to 255, give {' '.join(divided)}",
        )
    return mean, std


def per_channel(values: ChannelValues, channels: int, option: str) -> ChannelValues:
    """Return one number per channel, from one for all or one for each.

    Raises:
        InputError: another number of values.
    """
    if len(values) not in (1, channels):
        raise InputError(
            f"--{option} has {len(values)} numbers for {channels} channels",
            f"give 1 or {channels} numbers",
        )
    return values * channels if len(values) == 1 else values


def normalize(x: Tensor, max_value: int, mean: ChannelValues, std: ChannelValues) -> Tensor:
    """(x / max_value - mean) / std: (..., C, H, W) uint8 -> float32, with a single copy."""
    shape = (len(mean), 1, 1)
    scaled = x.to(torch.float32, copy=True).div_(max_value)
    return scaled.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def resizer(size: int | None, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """Return an antialiased resize to size × size, or None if the images have that size.

    It is applied to batches, not to the whole set: MNIST at 224 pixels would take 14 GB. Resizing
    and normalizing commute, since the weights of the interpolation sum to 1.
    """
    if size is None or shape[-2:] == (size, size):
        return None

    def resize(x: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        resized: Tensor = functional.resize(x, [size, size], antialias=True)
        return resized

    return resize


def _load_digits() -> RawImages:
    """Return scikit-learn's 1797 digits of 8×8 pixels in 0..16, with a fixed split."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = split(len(labels), DIGITS_TEST, seed=0, labels=labels)
    classes = tuple(str(digit) for digit in range(10))
    targets = class_targets(labels[train], labels[test], classes)
    return RawImages(pixels[train], pixels[test], targets, max_value=16)


def _load_published(published: _Published, root: Path) -> RawImages:
    """Return both parts of a torchvision data set."""
    train, test = (_load_part(published, root, train) for train in (True, False))
    targets = class_targets(
        torch.as_tensor(train.targets), torch.as_tensor(test.targets), tuple(train.classes)
    )
    return RawImages(
        _channels_first(train.data),
        _channels_first(test.data),
        targets,
        mean=published.mean,
        std=published.std,
        default_augment=published.augment,
    )


def _load_part(published: _Published, root: Path, train: bool) -> Any:
    """Return one part as torchvision's dataset, downloaded if its files are absent."""
    from torchvision import datasets

    dataset = getattr(datasets, published.dataset)
    try:
        return dataset(root, train=train, download=False)
    except RuntimeError:
        pass  # torchvision's way to say that the files are absent
    except Exception as error:
        raise InputError(
            f"cannot read {published.title} under {root}: {one_line(error)}",
            "remove the damaged files and run again, or pass --data-dir",
        ) from error
    try:
        # Anything that it prints goes to stderr: stdout belongs to the results.
        with contextlib.redirect_stdout(sys.stderr):
            return dataset(root, train=train, download=True)
    except Exception as error:
        raise InputError(
            f"cannot download {published.title}: {_last_line(error)}",
            f"put the files under {root} or pass --data-dir",
        ) from error


def _last_line(error: Exception) -> str:
    """Return the last line of torchvision's message: what the last mirror said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _channels_first(data: Any) -> Tensor:
    """Turn torchvision's (N, H, W) tensors or (N, H, W, C) arrays into (N, C, H, W) uint8."""
    pixels: Tensor = torch.as_tensor(data)
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)
