"""Which examples are used: random train/test splits, the order of an epoch, and fingerprints.

Everything here is a function of its arguments alone, the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.utils.seeds import derive_seed

Split = tuple[Tensor, Tensor]
"""Indices of the training and of the test examples."""


def split(
    n: int,
    n_test: int,
    seed: int,
    labels: Tensor | None = None,
    classes: Sequence[str] = (),
) -> Split:
    """Split n examples into two parts at random.

    Args:
        n: number of examples.
        n_test: size of the second part, in [1, n).
        seed: in [0, 2**32).
        labels: (n,) class indices, to keep the share of every class in both parts; None: any
            examples.
        classes: class names by index, for the message.

    Returns:
        Indices (n - n_test,) and (n_test,), int64, ascending; together every example once.

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
    """Check that a stratified split is possible, before scikit-learn does in its own words."""
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


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch, independent of torch's global generator.

    Returns:
        (n,) int64 permutation on the CPU, a function of (n, seed, epoch) alone.
    """
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(n, generator=generator)


def shard_order(order: Tensor, batch_size: int, begin: int, end: int) -> Tensor:
    """Return the share of one process in every full batch, in the order of the batches.

    Args:
        order: (n,) examples of an epoch, the same in all processes.
        batch_size: size of the global batch; a smaller last batch is left out.
        begin: the first position in every batch that belongs to the process.
        end: the position after its last one.

    Returns:
        (n // batch_size · (end - begin),) examples.
    """
    full = len(order) // batch_size
    return order[: full * batch_size].view(full, batch_size)[:, begin:end].flatten()


def fingerprint_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256 (hex) over type, shape and bytes of raw arrays, training before test.

    The values are raw, before any preprocessing: rounding differs between machines, the data
    does not.
    """
    digest = sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def fingerprint_texts(texts: Iterable[str]) -> str:
    """SHA-256 (hex) over texts, each with its end marked."""
    digest = sha256()
    for text in texts:
        digest.update(text.encode() + b"\x1e")
    return digest.hexdigest()


def fingerprint_files(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 (hex) over the sorted paths (relative to root) and sizes; no file is read."""
    return fingerprint_texts(
        sorted(f"{f.relative_to(root).as_posix()}\x1f{f.stat().st_size}" for f in files)
    )
