"""Helpers for the tests of data: real data, errors, and a small table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from lpss_cli.data import DataSpec, Source, load
from lpss_cli.errors import InputError

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LPSS_DATA_DIR") or ROOT.parent / "shared" / "data")


def real(part: str) -> Path:
    """Return a file or folder of real data; skip the test where there is none."""
    if not (REAL / part).exists():
        pytest.skip(f"no {part} under {REAL}: point LPSS_DATA_DIR to it")
    return REAL / part


def refused(spec: DataSpec, what: str, do: str = "") -> None:
    """Check that loading fails with an error of two parts, each of them a single line."""
    with pytest.raises(InputError) as caught:
        load(spec)
    error = caught.value
    assert what in error.what
    assert do in error.do
    assert error.do
    assert "\n" not in error.what + error.do


def everything(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all examples of a source as one batch."""
    return next(iter(source.batches(len(source))))


# Python 3.12 warns that forking a process with threads may deadlock; the workers only read.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


HEADER = "id,size,color,flat,y"


def table_rows(n: int = 50) -> list[str]:
    """Return rows with a target y of two classes; color is 'red' or 'blue', flat is constant."""
    return [
        f"{i},{i * 0.5},{'red' if i % 3 else 'blue'},0.1,{'yes' if i % 5 else 'no'}"
        for i in range(n)
    ]


def write_table(root: Path, rows: list[str] | None = None, header: str = HEADER) -> str:
    """Write a table and return its path."""
    path = root / "table.csv"
    path.write_text("\n".join([header, *(table_rows() if rows is None else rows)]) + "\n")
    return str(path)


def table(root: Path, rows: list[str] | None = None, **options) -> DataSpec:
    """Write a table and return its specification."""
    return DataSpec(write_table(root, rows), **{"target": "y", "drop": ("id",), **options})
