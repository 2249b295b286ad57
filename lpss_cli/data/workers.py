"""Worker processes that read data: they end with their parent, and return errors as values."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from lpss_cli.errors import InputError, LpssError, one_line
from lpss_cli.utils import signals


def worker_start_method() -> str | None:
    """Return how worker processes start: forked on Linux, otherwise Python's default.

    A dataset from ``file.py:factory`` lives in a module that a freshly started interpreter cannot
    import by name; a forked one has it already.
    """
    return "fork" if sys.platform == "linux" else None


def init_worker(_worker: int) -> None:
    """Leave signals to the parent, and end when it ends.

    Otherwise every worker would print its own traceback and fail the step that is to be finished,
    and a killed run would leave processes behind that hold memory and files (torch notices only
    after seconds, and only when idle).
    """
    signals.follow_parent()


class ErrorCapturingDataset:
    """A dataset that returns errors instead of raising them.

    torch re-raises a worker's exception with the whole traceback as its message. An error that
    travels as a value keeps its two lines.

    Args:
        dataset: map-style.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        try:
            return self.dataset[index]
        except LpssError as error:
            return error
        except Exception as error:
            failure = InputError(
                f"example {index} of the data cannot be read: {one_line(error)}",
                "repair or remove it; --debug with --workers 0 shows where",
            )
            failure.__cause__ = error
            return failure


def collate(items: list[Any]) -> tuple[Tensor, Tensor] | LpssError:
    """Stack a list of (x, y) into one (x, y), or return the first failure among them.

    Returns:
        x as from :func:`as_input` and y as from :func:`as_target`, each with a batch axis first.
    """
    for item in items:
        if isinstance(item, LpssError):
            return item
    try:
        x, y = default_collate(items)
        return as_input(x), as_target(y)
    except Exception as error:
        failure = InputError(
            f"the examples of the data do not fit into a batch: {one_line(error)}",
            "return (x, y) with x a tensor of one shape and y a number or tensor",
        )
        failure.__cause__ = error
        return failure


def as_input(x: Tensor) -> Tensor:
    """Convert inputs to what networks take: int64 for int32 and int64 (tokens), else float32.

    Values are never scaled: whoever made the tensor knows what they mean.
    """
    return x.long() if x.dtype in (torch.int32, torch.int64) else x.float()


def as_target(y: Tensor) -> Tensor:
    """Convert targets to what losses take: float32 for floating point, otherwise int64."""
    return y.float() if y.is_floating_point() else y.long()
