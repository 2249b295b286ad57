"""What to load, as plain values: typed on the command line, stored in checkpoints.

This module must not import torch: the command line reads its names and defaults.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from lpss_cli.errors import InputError, nearest

KNOWN = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100")
"""Data sets known by name; ``digits`` is embedded, the others are files under the data folder."""

SHAPES = {
    "digits": ((1, 8, 8), 10),
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "cifar100": ((3, 32, 32), 100),
}
"""Input shape and classes of the known data sets, for plans without the data."""

AUGMENTS = ("none", "fashion", "cifar")
"""Named augmentation policies, see ``lpss_cli.data.augment``."""

INTERPOLATIONS = ("bilinear", "bicubic")
"""How the images of a folder are resized."""

_LARGEST_IMAGE, _MOST_WORKERS = 16_384, 256

DATA_DIR_VARIABLE = "LPSS_DATA_DIR"
"""The environment variable that stands in for ``--data-dir``."""


@dataclass(frozen=True)
class DataSpec:
    """Which data, and how to prepare it.

    Attributes:
        name: one of :data:`KNOWN`, a folder, a ``.csv`` or ``.npz`` file, or ``file.py:factory``.
        data_dir: where the known data sets lie; None: ``$LPSS_DATA_DIR``, else ``~/.cache/lpss``.
        target: table: the column to predict.
        drop: table: columns that are not features (identifiers).
        image_size: images: side of the square network input in pixels; None: the data's own.
        resize: folder: length of the shorter side before the centre is cropped, in pixels; None:
            256/224 of the image size.
        interpolation: folder: one of :data:`INTERPOLATIONS`; None: bilinear.
        mean: images, arrays: per channel (or one for all), of values in [0, 1]; None: the data's.
        std: the same, > 0.
        workers: processes that read data too big for the memory; 0 = this process.
        split_seed: table: which of the repeated train/test splits, in [0, 2**32).
        augment: one of :data:`AUGMENTS`; None: the data set's default.

    Raises:
        InputError: a value out of its range.
    """

    name: str = "digits"
    data_dir: str | None = None
    target: str | None = None
    drop: tuple[str, ...] = ()
    image_size: int | None = None
    resize: int | None = None
    interpolation: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    workers: int = 0
    split_seed: int = 0
    augment: str | None = None

    def __post_init__(self) -> None:
        # The values may come from a file of unknown origin: none may exhaust the machine.
        if self.image_size is not None and not 1 <= self.image_size <= _LARGEST_IMAGE:
            raise InputError(
                f"image size {self.image_size} is not possible", f"give 1 to {_LARGEST_IMAGE}"
            )
        if self.resize is not None and not 1 <= self.resize <= _LARGEST_IMAGE:
            raise InputError(
                f"a resize to {self.resize} is not possible", f"give 1 to {_LARGEST_IMAGE}"
            )
        if self.interpolation is not None and self.interpolation not in INTERPOLATIONS:
            raise InputError(
                f"no interpolation called {self.interpolation!r}",
                nearest(self.interpolation, INTERPOLATIONS),
            )
        if not 0 <= self.workers <= _MOST_WORKERS:
            raise InputError(
                f"{self.workers} workers are not possible", f"give 0 to {_MOST_WORKERS}"
            )
        if not 0 <= self.split_seed < 2**32:
            raise InputError(f"split seed {self.split_seed} is out of range", "give 0 to 2**32-1")
        if self.std is not None and not all(0 < s < math.inf for s in self.std):
            raise InputError(f"std {self.std} is not positive", "give numbers above 0")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise InputError(f"mean {self.mean} is not finite", "give ordinary numbers")
        if self.augment is not None and self.augment not in AUGMENTS:
            raise InputError(f"no augmentation called {self.augment!r}", self._augment_hint())

    def unstandardised(self) -> DataSpec:
        """The same data with values left as they are, where that is a choice: arrays.

        Images and tables have their own conventions; a given mean or std stays.
        """
        if not self.name.endswith(".npz") or self.mean is not None or self.std is not None:
            return self
        return replace(self, mean=(0.0,), std=(1.0,))

    def _augment_hint(self) -> str:
        return nearest(str(self.augment), AUGMENTS)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers (lists for tuples), for checkpoints and JSON."""
        plain = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> DataSpec:
        """Undo :meth:`to_dict`; unknown keys (a newer lpss) are ignored.

        Raises:
            InputError: a value of the wrong kind.
        """
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in plain.items() if key in known}
        try:
            return cls(**{key: _CASTS[key](value) for key, value in values.items()})
        except (TypeError, OverflowError) as error:
            raise InputError(
                f"the stored data specification is damaged: {error}", "pass --data"
            ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _maybe_text(value: Any) -> str | None:
    return None if value is None else _text(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value


def _maybe_whole(value: Any) -> int | None:
    return None if value is None else _whole(value)


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected a list, found {value!r}")
    return tuple(map(_text, value))


def _maybe_numbers(value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(v, int | float) for v in value):
        raise TypeError(f"expected a list of numbers, found {value!r}")
    return tuple(map(float, value))


_CASTS: dict[str, Callable[[Any], Any]] = {
    "name": _text,
    "data_dir": _maybe_text,
    "target": _maybe_text,
    "drop": _texts,
    "image_size": _maybe_whole,
    "resize": _maybe_whole,
    "interpolation": _maybe_text,
    "mean": _maybe_numbers,
    "std": _maybe_numbers,
    "workers": _whole,
    "split_seed": _whole,
    "augment": _maybe_text,
}


def canonical_name(name: str) -> str:
    """Spell a known data set our way (``FashionMNIST`` -> ``fashion-mnist``).

    Paths stay as typed: an absolute path inside a checkpoint would tell where its maker lives
    and would not move with a folder.
    """
    key = name.lower().replace("-", "").replace("_", "")
    return {known.replace("-", ""): known for known in KNOWN}.get(key, name)


def data_root(spec: DataSpec) -> Path:
    """Return the folder of the known sets: ``--data-dir``, the environment, or the cache."""
    chosen = spec.data_dir or os.environ.get(DATA_DIR_VARIABLE) or "~/.cache/lpss"
    return Path(chosen).expanduser()


def refuse(spec: DataSpec, what: str, *options: str) -> None:
    """Refuse options that mean nothing for this kind of data, rather than ignore them.

    Args:
        spec: what was asked.
        what: the kind of data, for the message ("a table").
        options: names of the fields that do not apply.

    Raises:
        InputError: one of them is set.
    """
    defaults = DataSpec()
    for option in options:
        if getattr(spec, option) != getattr(defaults, option):
            flag = "--" + option.replace("_", "-")
            raise InputError(f"{flag} means nothing for {what} ({spec.name})", f"leave {flag} out")
