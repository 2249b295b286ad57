"""Random train/test splits, fixed by a seed."""

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


# MERGED: Which data a run used: a hash that changes when the data does.
def fingerprint_arrays(*arrays: npt.NDArray[np.generic]) -> str:
    """SHA-256 (hex) over type, shape and bytes of raw arrays, train before test.

    Raw values, before any preprocessing: rounding differs between machines, the data does not.
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
    """SHA-256 (hex) over path relative to root and size in bytes, sorted: no file is read."""
    return fingerprint_texts(
        sorted(f"{f.relative_to(root).as_posix()}\x1f{f.stat().st_size}" for f in files)
    )


# MERGED: Seeds and orders that depend on nothing but the numbers they are made from.
def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order of the examples in one epoch, independent of torch's global generator.

    Returns:
        (n,) int64 permutation on the CPU, a function of (n, seed, epoch) alone.
    """
    generator = torch.Generator().manual_seed(derive_seed("order", seed, epoch))
    return torch.randperm(n, generator=generator)


def shard_order(order: Tensor, batch_size: int, begin: int, end: int) -> Tensor:
    """Return what one of several processes takes of every full batch, in the order of the batches.

    Args:
        order: (n,) examples of an epoch, the same in all processes.
        batch_size: of the global batch; a smaller last batch is left out.
        begin: the process's first place in every batch.
        end: the place after its last.

    Returns:
        (n // batch_size · (end - begin),) examples.
    """
    full = len(order) // batch_size
    return order[: full * batch_size].view(full, batch_size)[:, begin:end].flatten()
