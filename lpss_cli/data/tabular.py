"""CSV tables: one target column, the others are features, and a split that a seed fixes.

Columns of numbers are standardized and columns of text are one-hot encoded, with scikit-learn's
transformers fitted on the training rows. Reading the file is our own, so that an error names the
line and the column.
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpss_cli.data import splits
from lpss_cli.data.bundle import Data
from lpss_cli.data.scaling import FloatArray, Scaler
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.splits import Split, split
from lpss_cli.data.tasks import Targets, class_targets, scaled_targets
from lpss_cli.errors import InputError, nearest

TEST_FRACTION = 0.26
MAX_INTEGER_CLASSES = 20
MAX_CATEGORIES = 1000

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
"""Cells, in lower case, that stand for a missing value."""

Cells = list[str]


def load(spec: DataSpec) -> Data:
    """Read a table with a header.

    26 % of the rows (rounded) are the test part, fixed by ``split_seed`` and stratified for
    classification. Numbers are standardized and texts are one-hot encoded, both fitted on the
    training rows. The target is a class if it is text, or whole numbers with at most 20 distinct
    values (``1.0`` counts as whole). Otherwise it is a number, standardized by the training rows,
    with metrics in original units.

    Raises:
        InputError: no target or an unknown one, an unknown column to drop, a damaged file, a
            missing target value, a class with one row; with column and line.
    """
    refuse(spec, "a table", "image_size", "mean", "std")
    if spec.augment not in (None, "none"):
        refuse(spec, "a table", "augment")
    table = read_csv(Path(spec.name))
    target, names = _select_columns(spec, table)
    targets, parts = _make_targets(table, target, spec.split_seed)
    columns = [fit_column(name, _cells(table, name, parts[0])) for name in names]
    x_train, x_test = (_encode(table, columns, rows) for rows in parts)
    return Data(
        spec=spec,
        name=Path(spec.name).stem,
        train=TensorSource(x_train, targets.train),
        test=TensorSource(x_test, targets.test),
        task=targets.task,
        input_shape=(x_train.shape[1],),
        outputs=targets.outputs,
        classes=targets.classes,
        preprocessing=_describe(columns, target, targets),
        fingerprint=_fingerprint(table, [target, *names], parts),
    )


def _select_columns(spec: DataSpec, table: Table) -> tuple[str, list[str]]:
    """Return the target and the feature columns, in the table's order."""
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


def _make_targets(table: Table, target: str, seed: int) -> tuple[Targets, Split]:
    """Return the targets of both parts, and the rows of each."""
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


def _cells(table: Table, name: str, rows: torch.Tensor) -> Cells:
    cells = table.column(name)
    return [cells[row] for row in rows.tolist()]


def _encode(
    table: Table, columns: list[NumericColumn | CategoricalColumn], rows: torch.Tensor
) -> torch.Tensor:
    """Return the features of those rows: (n, F) float32."""
    lines = [table.lines[row] for row in rows.tolist()]
    blocks = [column.transform(_cells(table, column.name, rows), lines) for column in columns]
    return torch.from_numpy(np.concatenate(blocks, axis=1)).float()


def _describe(
    columns: list[NumericColumn | CategoricalColumn], target: str, targets: Targets
) -> dict[str, Any]:
    """Return everything that is needed to prepare a new row, in plain containers."""
    numeric = [column for column in columns if isinstance(column, NumericColumn)]
    categorical = [column for column in columns if isinstance(column, CategoricalColumn)]
    return {
        "kind": "table",
        "columns": [column.name for column in columns],
        "features": [feature for column in columns for feature in column.features],
        "numeric": {column.name: column.describe() for column in numeric},
        "categories": {column.name: list(column.categories) for column in categorical},
        "missing": sum(column.missing for column in numeric),
        "target": {"name": target, "classes": list(targets.classes), **targets.scaling},
    }


def _fingerprint(table: Table, names: list[str], parts: Split) -> str:
    """Hash the cells in use, training rows first: line ends and quoting do not matter."""
    indices = [table.columns.index(name) for name in names]
    rows = (table.rows[row] for part in parts for row in part.tolist())
    texts = ["\x1f".join(names), *("\x1f".join(row[i] for i in indices) for row in rows)]
    return splits.fingerprint_texts(texts)


# --- Columns as features: fitted on the training rows, then applied to both parts. ---


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers, standardized; a missing cell counts as the training mean, so 0.

    Attributes:
        name: the column.
        scaler: fitted on the training cells that are present.
        missing: number of training cells that are missing.
    """

    name: str
    scaler: Scaler
    missing: int

    @property
    def features(self) -> list[str]:
        """The name of its one feature."""
        return [self.name]

    def transform(self, cells: Cells, lines: list[int]) -> FloatArray:
        """Return standardized values (n, 1).

        Raises:
            InputError: a cell is not a number; with its line.
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
        return self.scaler.transform(values)

    def describe(self) -> dict[str, Any]:
        """Return plain values for the checkpoint; scale 0 marks a constant column, always 0."""
        return {
            "mean": float(self.scaler.mean[0]),
            "scale": float(self.scaler.scale[0]),
            "missing": self.missing,
        }


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of texts, one-hot encoded; a missing or unseen text is all zeros.

    Attributes:
        name: the column.
        encoder: scikit-learn's ``OneHotEncoder``, fitted on the training cells that are present.
    """

    name: str
    encoder: Any

    @property
    def categories(self) -> list[str]:
        """The distinct texts of the training cells, sorted."""
        return [str(category) for category in self.encoder.categories_[0]]

    @property
    def features(self) -> list[str]:
        """``column=text`` for each feature."""
        return [f"{self.name}={category}" for category in self.categories]

    def transform(self, cells: Cells, _lines: list[int]) -> FloatArray:
        """Return zeros and ones (n, number of categories)."""
        encoded: FloatArray = self.encoder.transform(_as_column(cells))
        return encoded


def fit_column(name: str, cells: Cells) -> NumericColumn | CategoricalColumn:
    """Fit a column on its training cells: numeric if every cell present is a number.

    Raises:
        InputError: so many distinct texts that it is an identifier.
    """
    from sklearn.preprocessing import OneHotEncoder

    present = [cell for cell in cells if cell]
    numbers = [value for cell in present if (value := parse_number(cell)) is not None]
    if len(numbers) == len(present):
        # A column without any value counts as a constant: it becomes zeros.
        values = np.array(numbers or [0.0])[:, None]
        return NumericColumn(name, Scaler.fit(values), len(cells) - len(present))
    distinct = len(set(present))
    if distinct > MAX_CATEGORIES or distinct == len(cells) > 20:
        raise InputError(
            f"column {name!r} has {distinct} different texts in {len(cells)} rows, "
            "like an identifier",
            f"leave it out with --drop {name}",
        )
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return CategoricalColumn(name, encoder.fit(_as_column(present)))


def _as_column(cells: Cells) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Return texts as (n, 1) Python objects: arrays of texts would cut trailing NULs off."""
    return np.array(cells, dtype=object).reshape(-1, 1)


# --- The file: reading it as text, and what can be wrong with it. ---


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
    rows: list[Cells]
    lines: list[int]

    def column(self, name: str) -> Cells:
        """Return the cells of one column.

        Raises:
            InputError: no such column.
        """
        if name not in self.columns:
            raise InputError(f"{self.path} has no column {name!r}", nearest(name, self.columns))
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def read_csv(path: Path) -> Table:
    """Read a comma-separated UTF-8 file with a header.

    Raises:
        InputError: it is empty, has no header, is not comma-separated or not UTF-8, or a row
            has another number of cells than the header (with its line).
    """
    rows: list[Cells] = []
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


def parse_number(cell: str) -> float | None:
    """Return the finite number that a cell holds, otherwise None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


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


def _check_row(path: Path, columns: tuple[str, ...], row: Cells, line: int) -> None:
    if len(row) != len(columns):
        raise InputError(
            f"line {line} of {path} has {len(row)} cells, and the header has {len(columns)}",
            "repair that line (a text with a comma needs quotes)",
        )
