"""CSV tables."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from data_helpers import everything, real, refused, table, table_rows

from lpss_cli.data import DataSpec, load


def test_table(tmp_path):
    data = load(table(tmp_path))
    assert (len(data.train), len(data.test)) == (37, 13)
    assert data.classes == ("no", "yes")
    assert data.preprocessing["columns"] == ["size", "color", "flat"]
    assert data.preprocessing["features"] == ["size", "color=blue", "color=red", "flat"]
    x, y = everything(data.train)
    assert x.shape == (37, 4)
    assert data.input_shape == (4,)
    assert x[:, 0].mean().item() == pytest.approx(0, abs=1e-6)
    assert torch.equal(x[:, 1] + x[:, 2], torch.ones(37))
    assert x[:, 3].tolist() == [0.0] * 37
    # Features and target still belong to the same row.
    numeric = data.preprocessing["numeric"]["size"]
    row = (x[:, 0].double() * numeric["scale"] + numeric["mean"]) * 2
    assert [int(i % 5 > 0) for i in row.round().long().tolist()] == y.tolist()
    json.dumps(data.preprocessing)


def test_what_a_table_stores_is_enough_to_prepare_a_row(tmp_path):
    """The names of these entries are those of every artifact before."""
    stored = load(table(tmp_path)).preprocessing
    assert list(stored) == [
        "kind", "columns", "features", "numeric", "categories", "missing", "target",
    ]  # fmt: skip
    assert stored["numeric"]["flat"] == {"mean": pytest.approx(0.1), "scale": 0.0, "missing": 0}
    assert stored["categories"] == {"color": ["blue", "red"]}
    assert stored["target"] == {"name": "y", "classes": ["no", "yes"]}
    numbers = [f"{i},{i},red,0.1,{i}.5" for i in range(50)]
    target = load(table(tmp_path, numbers)).preprocessing["target"]
    assert list(target) == ["name", "classes", "mean", "scale"]
    assert json.loads(json.dumps(stored)) == stored


def test_texts_stay_whole(tmp_path):
    rows = [f"0,1,{'a' if i % 2 else 'a' + chr(0)},0,{i % 3}" for i in range(40)]
    data = load(table(tmp_path, rows))
    assert data.preprocessing["categories"]["color"] == ["a", "a\0"]
    x, _ = everything(data.train)
    assert x[:, 1:3].sum(dim=1).tolist() == [1.0] * len(x)


def test_table_splits_are_fixed_and_repeated_by_seed(tmp_path):
    spec = table(tmp_path)
    first, again, other = load(spec), load(spec), load(replace(spec, split_seed=1))
    assert torch.equal(everything(first.test)[0], everything(again.test)[0])
    assert not torch.equal(everything(first.test)[0], everything(other.test)[0])
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert first.test.labels.sum() == other.test.labels.sum()  # stratified


def test_line_ends_quotes_and_a_byte_order_mark_do_not_matter(tmp_path):
    plain = load(table(tmp_path))
    path = tmp_path / "table.csv"
    text = path.read_text().replace("red", '"red"').replace("\n", "\r\n") + "\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    odd = load(DataSpec(str(path), target="y", drop=("id",)))
    assert odd.fingerprint == plain.fingerprint
    assert torch.equal(everything(odd.train)[0], everything(plain.train)[0])


def test_test_rows_do_not_leak(tmp_path):
    rows = table_rows()
    before = load(table(tmp_path))
    numeric = before.preprocessing["numeric"]["size"]
    x = everything(before.test)[0][:, 0].double() * numeric["scale"] + numeric["mean"]
    test_rows = (x * 2).round().long().tolist()
    for i in test_rows:
        cells = rows[i].split(",")
        rows[i] = ",".join([cells[0], "1e9", "green", "77", cells[4]])
    after = load(table(tmp_path, rows))
    assert torch.equal(everything(before.train)[0], everything(after.train)[0])
    got = everything(after.test)[0]
    assert got[:, 1:].abs().sum() == 0  # an unseen category and a constant column: all zeros
    assert (got[:, 0] > 1e6).all()
    assert after.preprocessing["categories"] == {"color": ["blue", "red"]}


def test_missing_cells(tmp_path):
    rows = table_rows()
    train_rows = [r for r in range(50) if r % 2]
    for i in train_rows:
        cells = rows[i].split(",")
        rows[i] = ",".join([cells[0], "NA", "?", cells[3], cells[4]])
    data = load(table(tmp_path, rows))
    x = torch.cat([everything(s)[0] for s in (data.train, data.test)])
    empty = x[:, 1:3].sum(dim=1) == 0
    assert int(empty.sum()) == 25
    assert x[empty, 0].abs().max() == 0  # the training mean
    assert 0 < data.preprocessing["missing"] <= 25


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        ([str(i % 3) for i in range(50)], "classification", ("0", "1", "2")),
        ([str(10 * (i % 3)) for i in range(50)], "classification", ("0", "10", "20")),
        ([f"{i % 2}.0" for i in range(50)], "classification", ("0", "1")),
        ([str(i % 20) for i in range(100)], "classification", tuple(str(i) for i in range(20))),
        ([str(i % 21) for i in range(100)], "regression", ()),
        ([f"{i}.5" for i in range(50)], "regression", ()),
        (["x" if i % 2 else "3" for i in range(50)], "classification", ("3", "x")),
    ],
)
def test_what_a_target_is(tmp_path, values, task, classes):
    data = load(table(tmp_path, [f"0,{i},c,0,{v}" for i, v in enumerate(values)]))
    assert (data.task.name, data.classes) == (task, classes)
    assert data.outputs == (len(classes) or 1)


def test_regression_in_original_units(tmp_path):
    data = load(table(tmp_path, [f"0,{i},c,0,{i * 100 + 0.5}" for i in range(50)]))
    _, y = everything(data.train)
    assert y.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    target = data.preprocessing["target"]
    metrics = data.task.metrics(torch.zeros_like(y), y)
    assert metrics["rmse"] == pytest.approx(target["scale"], rel=1e-5)
    assert len(data.holdout(0.2, 0).test) == 7


@pytest.mark.parametrize(
    ("options", "what", "do"),
    [
        ({"target": None}, "needs the name of the column to predict", "id, size, color, flat, y"),
        ({"target": "colr"}, "has no column 'colr'", "did you mean 'color'?"),
        ({"drop": ("id", "sise")}, "has no column 'sise'", "did you mean 'size'?"),
        ({"drop": ("y",)}, "both --target and --drop", ""),
        ({"drop": ("id", "size", "color", "flat")}, "no column left to learn from", ""),
    ],
)
def test_wrong_columns(tmp_path, options, what, do):
    refused(table(tmp_path, **options), what, do)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("id,y\n", "has a header but no rows"),
        ("id;y\n1;2\n", "is not separated by commas"),
        ("1,2\n3,4\n", "holds numbers, not column names"),
        ("id,,y\n1,2,3\n", "column 2 of"),
        ("y,y\n1,2\n", "two columns called 'y'"),
        ("a,y\n1,2\n\n3\n", "line 4 of"),
        ('a,y\n"1\n2",2\n3\n', "line 4 of"),
        ("a,y\n1,2\n3,\n", "the target 'y' is missing in line 3"),
        ("a,y\n" + "1,no\n" * 9 + "1,yes\n", "class 'yes' has 1 row"),
        ("a,y\n" + "1,no\n" * 9, "the only class is no"),
        ("a,y\n1,0\n2,1\n3,0\n4,1\n", "too few for 2 classes"),
        ("a,y\n1,0.5\n", "cannot be split"),
        ("a,y\n" + "".join(f"t{i},{i % 2}\n" for i in range(40)), "like an identifier"),
        ("a\xff,y\n", "cannot be read"),
    ],
)
def test_damaged_tables(tmp_path, content, what):
    path = tmp_path / "table.csv"
    path.write_bytes(content.encode("latin-1"))
    refused(DataSpec(str(path), target="y"), what)


def test_a_text_among_the_numbers_of_the_test_part(tmp_path):
    rows = table_rows()
    data = load(table(tmp_path))
    numeric = data.preprocessing["numeric"]["size"]
    x = everything(data.test)[0][0, 0].double() * numeric["scale"] + numeric["mean"]
    row = int((x * 2).round())
    rows[row] = rows[row].replace(f",{row * 0.5},", ",large,")
    refused(table(tmp_path, rows), f"line {row + 2} says 'large'", "--drop")


def test_climate():
    path = real("climate.csv")
    data = load(DataSpec(str(path), target="outcome", drop=("study", "run")))
    assert (len(data.train), len(data.test)) == (400, 140)
    assert (data.input_shape, data.classes) == ((18,), ("0", "1"))
    assert torch.bincount(data.test.labels).tolist() == [12, 128]
