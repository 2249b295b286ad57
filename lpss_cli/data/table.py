"""A CSV table: one target column, the others features, a fixed split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpss_cli.data import columns as features
from lpss_cli.data import csvfile, fingerprint
from lpss_cli.data.bundle import Data
from lpss_cli.data.csvfile import Table, number
from lpss_cli.data.sources import TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.split import Split, split
from lpss_cli.data.targets import Targets, class_targets, scaled_targets
from lpss_cli.errors import InputError

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
    table = csvfile.read(Path(spec.name))
    target, names = _choose_columns(spec, table)
    targets, parts = _targets(table, target, spec.split_seed)
    fitted = [features.fit(name, _cells(table, name, parts[0])) for name in names]
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
    values = np.array([np.nan if (v := number(cell)) is None else v for cell in cells])
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
    return fingerprint.of_texts(texts)


def _encode(
    table: Table, fitted: list[features.Numeric | features.Categorical], rows: torch.Tensor
) -> torch.Tensor:
    """(n, F) float32 features of those rows."""
    lines = [table.lines[row] for row in rows.tolist()]
    blocks = [column.apply(_cells(table, column.name, rows), lines) for column in fitted]
    return torch.from_numpy(np.concatenate(blocks, axis=1)).float()


def _describe(
    fitted: list[features.Numeric | features.Categorical], target: str, targets: Targets
) -> dict[str, Any]:
    """All that is needed to prepare a new row, in plain containers."""
    numeric = [c for c in fitted if isinstance(c, features.Numeric)]
    categorical = [c for c in fitted if isinstance(c, features.Categorical)]
    return {
        "kind": "table",
        "columns": [column.name for column in fitted],
        "features": [feature for column in fitted for feature in column.features],
        "numeric": {column.name: column.describe() for column in numeric},
        "categories": {column.name: list(column.categories) for column in categorical},
        "missing": sum(column.missing for column in numeric),
        "target": {"name": target, "classes": list(targets.classes), **targets.scaling},
    }
