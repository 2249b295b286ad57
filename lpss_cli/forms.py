"""What is known of tensors without their values: names, shapes, kinds of numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lpss_cli.arrays import is_floating
from lpss_cli.patterns import speaks_of_weights


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


def prunable_names(state_dict: Mapping[str, Form]) -> list[str]:
    """Guess the prunable weights of a state_dict that comes without its network.

    Floating-point tensors of two or more dimensions whose names do not speak of embeddings,
    norms, tokens or positions.
    """
    return [
        name
        for name, tensor in state_dict.items()
        if tensor.dim() >= 2 and tensor.is_floating_point() and speaks_of_weights(name)
    ]


def bias_names(state_dict: Mapping[str, Form], prunable: Collection[str]) -> list[str]:
    """Return the biases that are added to what prunable weights give, in the state_dict's order.

    ``X.bias`` is that of ``X.weight`` and ``X.in_proj_bias`` that of ``X.in_proj_weight``; norms
    have none of these, for their weights are not prunable.
    """
    known = {f"{name.removesuffix('weight')}bias" for name in prunable if name.endswith("weight")}
    return [
        name
        for name, tensor in state_dict.items()
        if name in known and tensor.dim() == 1 and tensor.is_floating_point()
    ]
