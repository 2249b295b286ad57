"""What data to load, as plain values: typed on the command line, and stored in checkpoints.

This module does not import PyTorch, so that the command line can read its names and defaults.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from lpss_cli.errors import InputError, nearest
from lpss_cli.utils import options as declarations
from lpss_cli.utils.options import DATA_PANEL, option

KNOWN = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
"""Data sets known by name; ``digits`` is embedded, the others are files in the data folder."""

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
"""Input shape and number of classes of the known data sets, for plans without the data."""

AUGMENTS = ("none", "fashion", "cifar")
"""Named augmentation policies; see ``lpss_cli.data.augment``."""

INTERPOLATIONS = ("bilinear", "bicubic")
"""How the images of a folder are resized."""

_LARGEST_IMAGE, _MOST_WORKERS = 16_384, 256

DATA_DIR_VARIABLE = "LPSS_DATA_DIR"
"""Environment variable that stands in for ``--data-dir``."""


def _numbers(value: Any, name: str) -> tuple[float, ...]:
    """Read ``0.5,0.5,0.5``, one number, or a list of numbers."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(map(float, parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(
            f"{name} {value!r} is not a list of numbers", f"write {name} 0.48,0.45,0.40"
        )
    return numbers


def _names(value: Any, name: str) -> tuple[str, ...]:
    """Read ``study,run``, or a list of strings."""
    if isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    try:
        names: tuple[str, ...] = declarations.conform(value, tuple[str, ...])
    except TypeError:
        expected = "a string or a list of strings"
        raise InputError(f"{name} {value!r} is not {expected}", f"give {expected}") from None
    return names


_option = partial(option, group=DATA_PANEL, advanced=True)


@dataclass(frozen=True)
class DataSpec:
    """Which data to load, and how to prepare them.

    Attributes:
        name: one of :data:`KNOWN`, a folder, a ``.csv`` or ``.npz`` file, or ``file.py:factory``.
        data_dir: folder of the known data sets; None: ``$LPSS_DATA_DIR``, else ``~/.cache/lpss``.
        target: table: the column to predict.
        drop: table: columns that are not features, such as identifiers.
        image_size: images: side of the square network input in pixels; None: the data's own.
        resize: folder: length of the shorter side before the center is cropped, in pixels; None:
            256/224 of the image size.
        interpolation: folder: one of :data:`INTERPOLATIONS`; None: bilinear.
        mean: images, arrays: per channel (or one for all), of values in [0, 1]; None: the data's.
        std: the same, > 0.
        workers: number of processes that read data too big for memory; 0: this process.
        split_seed: table: which of the repeated train/test splits, in [0, 2**32).
        augment: one of :data:`AUGMENTS`; None: the default of the data set.

    Raises:
        InputError: A value is out of range.
    """

    name: str = "digits"
    data_dir: str | None = _option(
        None,
        "folder of the known data sets",
        path=True,
        environment=DATA_DIR_VARIABLE,
        default_text="~/.cache/lpss",
        advanced=False,
    )
    target: str | None = _option(None, "column of a table to predict", advanced=False)
    drop: tuple[str, ...] = _option(
        (), "columns of a table to leave out, separated by commas", parse=_names
    )
    image_size: int | None = _option(
        None,
        "side of the images in pixels",
        low=1,
        high=_LARGEST_IMAGE,
        default_text="that of the data; 224 for folders",
    )
    resize: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = _option(
        None,
        "mean that is subtracted from the inputs, per channel, separated by commas",
        parse=_numbers,
        default_text="that of the data",
    )
    std: tuple[float, ...] | None = _option(
        None,
        "standard deviation that the inputs are divided by, per channel, separated by commas",
        parse=_numbers,
        default_text="that of the data",
    )
    workers: int = _option(
        0, "number of processes that read data too big for memory", low=0, high=_MOST_WORKERS
    )
    split_seed: int = _option(
        0,
        "which of the fixed train/test splits of a table",
        low=0,
        high=2**32 - 1,
        high_text="2^32 - 1",
    )
    augment: str | None = _option(
        None,
        "augmentation of training images",
        choices=AUGMENTS,
        default_text="cifar for CIFAR, else none",
    )

    def __post_init__(self) -> None:
        # The values may come from a file of unknown origin: none may exhaust the machine.
        declarations.check(self)
        if self.resize is not None and not 1 <= self.resize <= _LARGEST_IMAGE:
            raise InputError(
                f"a resize to {self.resize} is not possible", f"give 1 to {_LARGEST_IMAGE}"
            )
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"no interpolation called {self.interpolation!r}",
                nearest(self.interpolation, INTERPOLATIONS),
            )
        if self.std is not None and not all(0 < s < math.inf for s in self.std):
            raise InputError(f"--std {self.std} is not positive", "give numbers above 0")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise InputError(f"--mean {self.mean} is not finite", "give finite numbers")

    def unstandardized(self) -> DataSpec:
        """Return the specification with the values of arrays left as they are.

        Images and tables have their own conventions, and a given mean or std stays.
        """
        if not self.name.endswith(".npz") or self.mean is not None or self.std is not None:
            return self
        return replace(self, mean=(0.0,), std=(1.0,))

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers (lists for tuples), for checkpoints and JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> DataSpec:
        """Undo :meth:`to_dict`; unknown keys, those of a newer lpss, are ignored.

        Raises:
            InputError: A value is of the wrong type, or out of range.
        """
        kinds = declarations.kinds(cls)
        values: dict[str, Any] = {key: value for key, value in stored.items() if key in kinds}
        try:
            for key, value in values.items():
                if value is not None or key not in _OPTIONAL:
                    values[key] = declarations.conform(value, kinds[key])
            return cls(**values)
        except (TypeError, OverflowError) as error:
            raise InputError(
                f"the stored data specification is damaged: {error}", "pass --data"
            ) from error


#: Fields that may be None.
_OPTIONAL = {field.name for field in fields(DataSpec) if field.default is None}


def canonical_name(name: str) -> str:
    """Return the name of a known data set as lpss spells it: ``FashionMNIST`` -> ``fashion-mnist``.

    Paths stay as typed: an absolute path in a checkpoint would tell where its maker lives, and
    would not move with a folder.
    """
    key = name.lower().replace("-", "").replace("_", "")
    return {known.replace("-", ""): known for known in KNOWN}.get(key, name)


def data_root(spec: DataSpec) -> Path:
    """Return the folder of the known data sets: ``--data-dir``, the environment's, or the cache."""
    chosen = spec.data_dir or os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/lpss"
    return Path(chosen).expanduser()


def refuse(spec: DataSpec, what: str, *names: str) -> None:
    """Refuse options that mean nothing for this kind of data, rather than ignore them.

    Args:
        spec: what was asked for.
        what: the kind of data, for the message ("a table").
        names: fields that do not apply.

    Raises:
        InputError: one of them is set.
    """
    defaults = DataSpec()
    for name in names:
        if getattr(spec, name) != getattr(defaults, name):
            flag = declarations.options(DataSpec)[name].flag
            raise InputError(f"{flag} means nothing for {what} ({spec.name})", f"leave {flag} out")
