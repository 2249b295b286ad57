"""Images in memory: from raw pixels to normalised tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lpss_cli.data import augment as augmentation
from lpss_cli.data import fingerprint
from lpss_cli.data.bundle import Data
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec
from lpss_cli.data.targets import Targets
from lpss_cli.errors import InputError

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Pixels:
    """Raw images of both parts.

    Attributes:
        train: (N, C, H, W) uint8.
        test: (M, C, H, W) uint8.
        targets: of both parts.
        white: the highest value a pixel can have; divides the pixels, so that values are in
            [0, 1] before normalisation.
        mean: per channel, published for this data; None: measured on the training part.
        std: the same.
        default_augment: the policy this data is usually trained with.
    """

    train: Tensor
    test: Tensor
    targets: Targets
    white: int = 255
    mean: Numbers | None = None
    std: Numbers | None = None
    default_augment: str | None = None


def per_channel(values: Numbers, channels: int, option: str) -> Numbers:
    """One number per channel, from one for all or one for each.

    Raises:
        InputError: another number of numbers.
    """
    if len(values) not in (1, channels):
        raise InputError(
            f"--{option} has {len(values)} numbers for {channels} channels",
            f"give 1 or {channels} numbers",
        )
    return values * channels if len(values) == 1 else values


def standard(mean: Numbers, std: Numbers, channels: int) -> tuple[Numbers, Numbers]:
    """Return mean and standard deviation per channel, of pixels in [0, 1].

    Raises:
        InputError: another number of numbers, or those of pixels in 0 to 255.
    """
    mean, std = per_channel(mean, channels, "mean"), per_channel(std, channels, "std")
    if max(mean) > 1:
        # A deviation that was not typed is one of pixels in [0, 1] already.
        wrong = {"--mean": mean} | ({"--std": std} if max(std) > 1 else {})
        divided = (f"{o} {','.join(f'{n / 255:.4g}' for n in v)}" for o, v in wrong.items())
        raise InputError(
            f"--mean {max(mean):g} is no mean of pixels in [0, 1]",
            f"if it is of pixels in 0 to 255, give {' '.join(divided)}",
        )
    return mean, std


def statistics(spec: DataSpec, raw: Pixels) -> tuple[Numbers, Numbers]:
    """Mean and standard deviation per channel: asked for, published, or measured."""
    channels = raw.train.shape[1]
    mean, std = spec.mean or raw.mean, spec.std or raw.std
    if mean is None or std is None:
        values = raw.train.double().div(raw.white).transpose(0, 1).flatten(1)
        deviations = values.std(dim=1, correction=0)
        mean = mean or tuple(values.mean(dim=1).tolist())
        # A channel of one colour has nothing to scale.
        std = std or tuple(torch.where(deviations == 0, 1.0, deviations).tolist())
    return standard(mean, std, channels)


def normalise(x: Tensor, white: int, mean: Numbers, std: Numbers) -> Tensor:
    """(x / white - mean) / std: (..., C, H, W) uint8 -> float32, one copy in all."""
    shape = (len(mean), 1, 1)
    scaled = x.to(torch.float32, copy=True).div_(white)
    return scaled.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def resizer(size: int | None, shape: tuple[int, ...]) -> Callable[[Tensor], Tensor] | None:
    """Make an antialiased resize to size × size, None where the images have that size.

    Applied to batches, not to the whole set: MNIST at 224 pixels would take 14 GB. Resizing and
    normalising commute, since the weights of the interpolation sum to 1.
    """
    if size is None or shape[-2:] == (size, size):
        return None

    def resize(x: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        resized: Tensor = functional.resize(x, [size, size], antialias=True)
        return resized

    return resize


def build(spec: DataSpec, name: str, raw: Pixels) -> Data:
    """Normalise raw images as the specification says.

    Raises:
        InputError: mean or std for another number of channels, or an augmentation that the
            images are too small for.
    """
    targets = raw.targets
    mean, std = statistics(spec, raw)
    channels, height, width = raw.train.shape[1:]
    resize = resizer(spec.image_size, (height, width))
    size = (height, width) if spec.image_size is None else (spec.image_size,) * 2
    chosen = spec.augment or raw.default_augment or "none"
    preprocessing: dict[str, Any] = {
        "kind": "image",
        "divide_by": raw.white,
        "image_size": list(size),
        "mean": list(mean),
        "std": list(std),
    }
    if targets.scaling:
        preprocessing["target"] = targets.scaling
    return Data(
        spec=replace(spec, mean=mean, std=std, augment=chosen),
        name=name,
        train=TensorSource(normalise(raw.train, raw.white, mean, std), targets.train, resize),
        test=TensorSource(normalise(raw.test, raw.white, mean, std), targets.test, resize),
        task=targets.task,
        input_shape=(channels, *size),
        outputs=targets.outputs,
        classes=targets.classes,
        preprocessing=preprocessing,
        fingerprint=fingerprint.of_arrays(
            *(t.numpy() for t in (raw.train, targets.train, raw.test, targets.test))
        ),
        augment=augmentation.for_shape(chosen, (channels, *size)),
        default_augment=raw.default_augment,
    )
