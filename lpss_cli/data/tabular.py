"""A CSV table: one target column, the others features, a fixed split."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lpss_cli.data import splits
from lpss_cli.data.bundle import Data
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.splits import Split, split
from lpss_cli.data.targets import Targets, class_targets, scaled_targets
from lpss_cli.errors import InputError, nearest

# MERGED: Table columns as features: what is learnt from the training rows, and how it is applied.
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
    scaler: Scaler
    missing: int

    @property
    def features(self) -> list[str]:
        """The name of its one feature."""
        return [self.name]

    def apply(self, cells: Cells, lines: list[int]) -> Values:
        """(n, 1) standardised values.

        Raises:
            InputError: a cell that is no number, with its line.
        """
        mean = float(self.scaler.mean[0])
        values = np.empty((len(cells), 1))
        for row, cell in enumerate(cells):
            value = parse_number(cell) if cell else mean
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

    def apply(self, cells: Cells, _lines: list[int]) -> Values:
        """(n, number of categories) of 0 and 1."""
        index = {category: i for i, category in enumerate(self.categories)}
        values = np.zeros((len(cells), len(self.categories)))
        for row, cell in enumerate(cells):
            if cell in index:
                values[row, index[cell]] = 1.0
        return values


def fit_columns(name: str, cells: Cells) -> Numeric | Categorical:
    """Learn a column from its training cells: numeric if every cell present is a number.

    Raises:
        InputError: so many texts that it is an identifier.
    """
    present = [cell for cell in cells if cell]
    values = [parse_number(cell) for cell in present]
    numbers = [value for value in values if value is not None]
    if len(numbers) == len(present):
        # A column without any value is a constant: it becomes zeros.
        column = np.array(numbers or [0.0])[:, None]
        return Numeric(name, fit_scaler(column), len(cells) - len(present))
    categories = tuple(sorted(set(present)))
    if len(categories) > MAX_CATEGORIES or len(categories) == len(cells) > 20:
        raise InputError(
            f"column {name!r} has {len(categories)} different texts in {len(cells)} rows, "
            "like an identifier",
            f"leave it out with --drop {name}",
        )
    return Categorical(name, categories)


# MERGED: A CSV file as columns of text: reading it, and what can be wrong with it.
MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""Cells, in lower case, that stand for no value."""


@dataclass(frozen=True)
class Table:
    """Rows of text under unique column names.

    Attributes:
        path: the file, for messages.
        columns: the names in the header, in order.
        rows: one list of cells per row, as long as ``columns``; missing cells are "".
        lines: the line of each row in the file, counted from 1.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def column(self, name: str) -> list[str]:
        """Return the cells of one column.

        Raises:
            InputError: no such column.
        """
        if name not in self.columns:
            raise InputError(f"{self.path} has no column {name!r}", nearest(name, self.columns))
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def parse_number(cell: str) -> float | None:
    """Return the finite number a cell holds, else None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read_csv(path: Path) -> Table:
    """Read a comma-separated UTF-8 file with a header.

    Raises:
        InputError: it is empty, has no header, is not comma-separated or not UTF-8, or a row
            has another number of cells than the header (with its line).
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        # utf-8-sig: spreadsheets put a byte order mark first, which would be part of a name.
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            columns = tuple(cell.strip() for cell in next(reader, []))
            _check_header(path, columns)
            for row in reader:
                if not row:
                    continue  # a blank line, usually the last one
                _check_row(path, columns, row, reader.line_num)
                cells = (cell.strip() for cell in row)
                rows.append(["" if cell.lower() in MISSING else cell for cell in cells])
                lines.append(reader.line_num)
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise InputError(f"{path} cannot be read: {error}", "save it as UTF-8 CSV") from error
    if not rows:
        raise InputError(f"{path} has a header but no rows", "give a table with data")
    return Table(path, columns, rows, lines)


def _check_header(path: Path, columns: tuple[str, ...]) -> None:
    if not any(columns):
        raise InputError(f"{path} is empty", "give a table with a header and rows")
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        raise InputError(f"{path} is not separated by commas", "save it with commas")
    if all(parse_number(name) is not None for name in columns):
        raise InputError(
            f"the first line of {path} holds numbers, not column names", "add a header line"
        )
    if "" in columns:
        raise InputError(f"column {columns.index('') + 1} of {path} has no name", "name it")
    repeated = [name for name in columns if columns.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has two columns called {repeated[0]!r}", "rename one")


def _check_row(path: Path, columns: tuple[str, ...], row: list[str], line: int) -> None:
    if len(row) != len(columns):
        raise InputError(
            f"line {line} of {path} has {len(row)} cells and the header {len(columns)}",
            "repair that line (a text with a comma needs quotes)",
        )


TEST_FRACTION = 0.26
MAX_INTEGER_CLASSES = 20


def load(spec: DataSpec) -> Data:
    """Read a table with a header.

    26 % of the rows (rounded) are the test part, fixed by ``split_seed``, stratified for
    classification. Numbers are standardised and texts become one feature each, by the training
    rows alone. The target is a class if it is text, or whole numbers with at most 20 different
    values (``1.0`` counts as whole); else a number, standardised by the training rows, with
    metrics in original units.

    Raises:
        InputError: no or an unknown target, an unknown column to drop, a damaged file, a
            missing target value, a class with one row; with column and line.
    """
    refuse(spec, "a table", "image_size", "mean", "std")
    if spec.augment not in (None, "none"):
        refuse(spec, "a table", "augment")
    table = read_csv(Path(spec.name))
    target, names = _choose_columns(spec, table)
    targets, parts = _targets(table, target, spec.split_seed)
    fitted = [fit_columns(name, _cells(table, name, parts[0])) for name in names]
    x_train, x_test = (_encode(table, fitted, rows) for rows in parts)
    return Data(
        spec=spec,
        name=Path(spec.name).stem,
        train=TensorSource(x_train, targets.train),
        test=TensorSource(x_test, targets.test),
        task=targets.task,
        input_shape=(x_train.shape[1],),
        outputs=targets.outputs,
        classes=targets.classes,
        preprocessing=_describe(fitted, target, targets),
        fingerprint=_fingerprint(table, [target, *names], parts),
    )


def _choose_columns(spec: DataSpec, table: Table) -> tuple[str, list[str]]:
    """Return the target and the feature columns in their order."""
    if spec.target is None:
        raise InputError(
            f"{table.path} needs the name of the column to predict",
            f"pass --target with one of: {', '.join(table.columns)}",
        )
    for name in (spec.target, *spec.drop):
        table.column(name)
    if spec.target in spec.drop:
        raise InputError(f"column {spec.target!r} is both --target and --drop", "leave one out")
    names = [name for name in table.columns if name != spec.target and name not in spec.drop]
    if not names:
        raise InputError(f"{table.path} has no column left to learn from", "drop fewer columns")
    return spec.target, names


def _targets(table: Table, target: str, seed: int) -> tuple[Targets, Split]:
    """Targets of both parts, and the rows that make them."""
    cells = table.column(target)
    if "" in cells:
        line = table.lines[cells.index("")]
        raise InputError(
            f"the target {target!r} is missing in line {line} of {table.path}", "remove that row"
        )
    n_test = round(TEST_FRACTION * len(cells))
    values = np.array([np.nan if (v := parse_number(cell)) is None else v for cell in cells])
    numeric = bool(np.isfinite(values).all())
    distinct = np.unique(values) if numeric else np.array([])
    if numeric and not (
        len(distinct) <= MAX_INTEGER_CLASSES and (distinct == np.round(distinct)).all()
    ):
        train, test = split(len(cells), n_test, seed)
        return scaled_targets(values[train.numpy()], values[test.numpy()]), (train, test)
    if numeric:
        classes = tuple(str(int(value)) for value in distinct)
        cells = [str(int(value)) for value in values]
    else:
        classes = tuple(sorted(set(cells)))
    index = {name: i for i, name in enumerate(classes)}
    labels = torch.tensor([index[cell] for cell in cells])
    train, test = split(len(cells), n_test, seed, labels, classes)
    return class_targets(labels[train], labels[test], classes), (train, test)


def _cells(table: Table, name: str, rows: torch.Tensor) -> list[str]:
    cells = table.column(name)
    return [cells[row] for row in rows.tolist()]


def _fingerprint(table: Table, names: list[str], parts: Split) -> str:
    """Over the cells in use, training rows first: line ends and quoting do not matter."""
    places = [table.columns.index(name) for name in names]
    rows = (table.rows[row] for part in parts for row in part.tolist())
    texts = ["\x1f".join(names), *("\x1f".join(row[i] for i in places) for row in rows)]
    return splits.fingerprint_texts(texts)


def _encode(table: Table, fitted: list[Numeric | Categorical], rows: torch.Tensor) -> torch.Tensor:
    """(n, F) float32 features of those rows."""
    lines = [table.lines[row] for row in rows.tolist()]
    blocks = [column.apply(_cells(table, column.name, rows), lines) for column in fitted]
    return torch.from_numpy(np.concatenate(blocks, axis=1)).float()


def _describe(fitted: list[Numeric | Categorical], target: str, targets: Targets) -> dict[str, Any]:
    """All that is needed to prepare a new row, in plain containers."""
    numeric = [c for c in fitted if isinstance(c, Numeric)]
    categorical = [c for c in fitted if isinstance(c, Categorical)]
    return {
        "kind": "table",
        "columns": [column.name for column in fitted],
        "features": [feature for column in fitted for feature in column.features],
        "numeric": {column.name: column.describe() for column in numeric},
        "categories": {column.name: list(column.categories) for column in categorical},
        "missing": sum(column.missing for column in numeric),
        "target": {"name": target, "classes": list(targets.classes), **targets.scaling},
    }


# MERGED: Zero mean and unit variance, by the training part alone.
Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaler:
    """What one set of features is standardised with.

    Attributes:
        mean: (F,) of the training part.
        scale: (F,) standard deviations (population, ddof = 0); 0 for a feature that is constant
            in training: it carries nothing and becomes 0 everywhere, also where the test part
            differs, since the network never learnt what a difference means.
    """

    mean: Values
    scale: Values

    def apply(self, x: Values) -> Values:
        """Standardised values: x (N, F) -> (N, F)."""
        safe = np.where(self.scale == 0, 1.0, self.scale)
        return np.where(self.scale == 0, 0.0, (x - self.mean) / safe)


def fit_scaler(x: Values) -> Scaler:
    """Measure the training part: x (N, F), N >= 1, finite."""
    # Not std == 0: the mean of equal numbers may be off by a rounding.
    constant = x.max(axis=0) == x.min(axis=0)
    return Scaler(x.mean(axis=0), np.where(constant, 0.0, x.std(axis=0)))
