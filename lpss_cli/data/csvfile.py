"""A CSV file as columns of text: reading it, and what can be wrong with it."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from lpss_cli.errors import InputError, nearest

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


def number(cell: str) -> float | None:
    """Return the finite number a cell holds, else None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def read(path: Path) -> Table:
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
    if all(number(name) is not None for name in columns):
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
