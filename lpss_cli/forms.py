"""What is known of tensors without their values: names, shapes, kinds of numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lpss_cli.arrays import is_floating


class Form(Protocol):
    """The part of a PyTorch tensor that does not touch its values: a tensor is one of these."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extent of every dimension."""

    def dim(self) -> int:
        """Count the dimensions."""

    def numel(self) -> int:
        """Count the entries."""

    def element_size(self) -> int:
        """Return the bytes of one entry."""

    def is_floating_point(self) -> bool:
        """Whether the numbers are real floating-point ones."""


@dataclass(frozen=True)
class StandIn:
    """A tensor that is still in its file.

    Attributes:
        shape: extent of every dimension.
        dtype: kind of its numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def dim(self) -> int:
        """Count the dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Count the entries."""
        return math.prod(self.shape)

    def element_size(self) -> int:
        """Return the bytes of one entry."""
        return self.dtype.itemsize

    def is_floating_point(self) -> bool:
        """Whether the numbers are real floating-point ones."""
        return is_floating(self.dtype)
