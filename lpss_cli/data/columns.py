"""Table columns as features: what is learnt from the training rows, and how it is applied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from lpss_cli.data import standardise
from lpss_cli.data.csvfile import number
from lpss_cli.errors import InputError

MAX_CATEGORIES = 1000
Cells = list[str]


@dataclass(frozen=True)
class Numeric:
    """A column of numbers, standardised; a missing cell is the training mean, so 0.

    Attributes:
        name: the column.
        scaler: mean and scale (1,) of the training cells that are present.
        missing: how many training cells are missing.
    """

    name: str
    scaler: standardise.Scaler
    missing: int

    @property
    def features(self) -> list[str]:
        """The name of its one feature."""
        return [self.name]

    def apply(self, cells: Cells, lines: list[int]) -> standardise.Values:
        """(n, 1) standardised values.

        Raises:
            InputError: a cell that is no number, with its line.
        """
        mean = float(self.scaler.mean[0])
        values = np.empty((len(cells), 1))
        for row, cell in enumerate(cells):
            value = number(cell) if cell else mean
            if value is None:
                raise InputError(
                    f"column {self.name!r} holds numbers, but line {lines[row]} says {cell!r}",
                    "repair that cell, or leave the column out with --drop",
                )
            values[row] = value
        return self.scaler.apply(values)

    def describe(self) -> dict[str, Any]:
        """Plain values for the checkpoint; scale 0 = constant, always 0."""
        return {
            "mean": float(self.scaler.mean[0]),
            "scale": float(self.scaler.scale[0]),
            "missing": self.missing,
        }


@dataclass(frozen=True)
class Categorical:
    """A column of texts as one feature per text; a missing or unseen one is all zeros.

    Attributes:
        name: the column.
        categories: the texts of the training cells, sorted.
    """

    name: str
    categories: tuple[str, ...]

    @property
    def features(self) -> list[str]:
        """``column=text`` for each feature."""
        return [f"{self.name}={category}" for category in self.categories]

    def apply(self, cells: Cells, _lines: list[int]) -> standardise.Values:
        """(n, number of categories) of 0 and 1."""
        index = {category: i for i, category in enumerate(self.categories)}
        values = np.zeros((len(cells), len(self.categories)))
        for row, cell in enumerate(cells):
            if cell in index:
                values[row, index[cell]] = 1.0
        return values


def fit(name: str, cells: Cells) -> Numeric | Categorical:
    """Learn a column from its training cells: numeric if every cell present is a number.

    Raises:
        InputError: so many texts that it is an identifier.
    """
    present = [cell for cell in cells if cell]
    values = [number(cell) for cell in present]
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(present):
        # A column without any value is a constant: it becomes zeros.
        column = np.array(numbers or [0.0])[:, None]
        return Numeric(name, standardise.fit(column), len(cells) - len(present))
    categories = tuple(sorted(set(present)))
    if len(categories) > MAX_CATEGORIES or len(categories) == len(cells) > 20:
        raise InputError(
            f"column {name!r} has {len(categories)} different texts in {len(cells)} rows, "
            "like an identifier",
            f"leave it out with --drop {name}",
        )
    return Categorical(name, categories)
