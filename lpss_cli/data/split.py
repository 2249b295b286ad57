"""Random train/test splits, fixed by a seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lpss_cli.errors import InputError

Split = tuple[Tensor, Tensor]


def split(
    n: int,
    n_test: int,
    seed: int,
    labels: Tensor | None = None,
    classes: Sequence[str] = (),
) -> Split:
    """Part n examples in two.

    Args:
        n: number of examples.
        n_test: size of the second part, in [1, n).
        seed: in [0, 2**32).
        labels: (n,) class indices, to keep every class's share in both parts; None: don't.
        classes: their names, for the message.

    Returns:
        Indices (n - n_test,) and (n_test,), int64, ascending, together every example once.

    Raises:
        InputError: a part would be empty, or a class is too small to be in both.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < n_test < n:
        raise InputError(
            f"{n} examples cannot be split into {n - n_test} + {n_test}",
            "give more examples or another fraction",
        )
    if labels is not None:
        _check_classes(n, n_test, labels, classes)
    train, test = train_test_split(
        np.arange(n),
        test_size=n_test,
        random_state=seed,
        stratify=None if labels is None else labels.numpy(),
    )
    return torch.from_numpy(np.sort(train)), torch.from_numpy(np.sort(test))


def _check_classes(n: int, n_test: int, labels: Tensor, classes: Sequence[str]) -> None:
    """Say in our words what a stratified split cannot do."""
    present, counts = torch.unique(labels, return_counts=True)
    smallest = int(counts.argmin())
    index = int(present[smallest])
    if int(counts[smallest]) < 2:
        name = classes[index] if index < len(classes) else index
        raise InputError(
            f"class {name!r} has 1 row, and both parts of the split need one",
            "add a row of that class or remove it",
        )
    if min(n_test, n - n_test) < len(present):
        raise InputError(
            f"{n - n_test} + {n_test} rows are too few for {len(present)} classes in both parts",
            "give more rows, fewer classes or another fraction",
        )
