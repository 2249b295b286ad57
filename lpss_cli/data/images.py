"""The image sets known by name: the embedded digits, and torchvision's."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lpss_cli.data.bundle import Data
from lpss_cli.data.pixels import Numbers, Pixels, build
from lpss_cli.data.spec import DataSpec, data_root, refuse
from lpss_cli.data.split import split
from lpss_cli.data.targets import class_targets
from lpss_cli.errors import InputError, one_line


@dataclass(frozen=True)
class _Published:
    """A torchvision data set: its class there, and the normalisation everyone uses."""

    title: str
    dataset: str
    mean: Numbers
    std: Numbers
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

DIGITS_TEST = 360
"""Test images of the digits; the other 1437 are for training."""


def load(spec: DataSpec) -> Data:
    """Load a data set of :data:`lpss_cli.data.spec.KNOWN` into memory.

    Raises:
        InputError: its files are absent and cannot be downloaded, or they are damaged.
    """
    refuse(spec, "images", "target", "drop", "split_seed")
    if spec.name == "digits":
        return build(spec, spec.name, _digits())
    return build(spec, spec.name, _published(_TORCHVISION[spec.name], data_root(spec)))


def _digits() -> Pixels:
    """scikit-learn's 1797 digits of 8×8 pixels in 0..16, split once and for all."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(bunch.target).long()
    train, test = split(len(labels), DIGITS_TEST, seed=0, labels=labels)
    classes = tuple(str(digit) for digit in range(10))
    targets = class_targets(labels[train], labels[test], classes)
    return Pixels(pixels[train], pixels[test], targets, white=16)


def _published(known: _Published, root: Path) -> Pixels:
    """Both parts of a torchvision data set."""
    train, test = (_part(known, root, train) for train in (True, False))
    targets = class_targets(
        torch.as_tensor(train.targets), torch.as_tensor(test.targets), tuple(train.classes)
    )
    return Pixels(
        _channels_first(train.data),
        _channels_first(test.data),
        targets,
        mean=known.mean,
        std=known.std,
        default_augment=known.augment,
    )


def _channels_first(data: Any) -> Tensor:
    """Turn torchvision's (N, H, W) tensors or (N, H, W, C) arrays into (N, C, H, W) uint8."""
    pixels: Tensor = torch.as_tensor(data)
    return pixels.unsqueeze(1) if pixels.ndim == 3 else pixels.permute(0, 3, 1, 2)


def _part(known: _Published, root: Path, train: bool) -> Any:
    """One part as torchvision's dataset, downloaded if its files are absent."""
    from torchvision import datasets

    make = getattr(datasets, known.dataset)
    try:
        return make(root, train=train, download=False)
    except RuntimeError:
        pass  # torchvision's way to say that the files are absent
    except Exception as error:
        raise InputError(
            f"cannot read {known.title} under {root}: {one_line(error)}",
            "remove the damaged files and run again, or pass --data-dir",
        ) from error
    try:
        # Anything it prints goes to stderr: stdout belongs to the results.
        with contextlib.redirect_stdout(sys.stderr):
            return make(root, train=train, download=True)
    except Exception as error:
        raise InputError(
            f"cannot download {known.title}: {_reason(error)}",
            f"put the files under {root} or pass --data-dir",
        ) from error


def _reason(error: Exception) -> str:
    """Return the last line of torchvision's account: what the last mirror said."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
