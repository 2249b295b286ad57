"""NumPy archives."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import everything, refused

from lpss_cli.data import DataSpec, load
from lpss_cli.errors import InputError


def save(path: Path, **changes) -> DataSpec:
    generator = np.random.default_rng(0)
    arrays = {
        "x_train": generator.normal(3, 2, (20, 4)),
        "y_train": np.arange(20) % 3,
        "x_test": generator.normal(3, 2, (6, 4)),
        "y_test": np.arange(6) % 3,
        **changes,
    }
    np.savez(path / "arrays.npz", **{k: v for k, v in arrays.items() if v is not None})
    return DataSpec(str(path / "arrays.npz"))


def test_arrays(tmp_path):
    data = load(save(tmp_path))
    assert (data.name, data.task.name, data.outputs) == ("arrays", "classification", 3)
    assert data.input_shape == (4,)
    x, y = everything(data.train)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert torch.allclose(x.mean(dim=0), torch.zeros(4), atol=1e-6)
    assert torch.allclose(x.std(dim=0, correction=0), torch.ones(4), atol=1e-6)
    json.dumps(data.preprocessing)


def test_arrays_of_labels_and_numbers(tmp_path):
    texts = load(save(tmp_path, y_train=np.array(["b", "a"] * 10), y_test=np.array(["a", "b"] * 3)))
    assert texts.classes == ("a", "b")
    assert everything(texts.test)[1].tolist() == [0, 1, 0, 1, 0, 1]
    shifted = load(save(tmp_path, y_train=np.arange(20) % 2 * 2 - 1, y_test=np.ones((6, 1), int)))
    assert shifted.classes == ("-1", "1")
    assert everything(shifted.test)[1].tolist() == [1] * 6
    numbers = load(save(tmp_path, y_train=np.arange(20.0) * 10, y_test=np.arange(6.0)))
    assert (numbers.task.name, numbers.outputs, numbers.classes) == ("regression", 1, ())
    _, y = everything(numbers.train)
    assert y.mean().item() == pytest.approx(0, abs=1e-6)
    # One standard deviation off is one standard deviation in original units.
    metrics = numbers.task.metrics(y + 1, y)
    assert metrics["mae"] == pytest.approx(np.std(np.arange(20) * 10), rel=1e-6)
    assert numbers.preprocessing["target"]["mean"] == 95.0


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 6, 7), (1, 6, 7)),
        ((8, 6, 7, 3), (3, 6, 7)),
        ((8, 6, 7, 1), (1, 6, 7)),
        ((8, 3, 6, 7), (3, 6, 7)),
        ((8, 2, 6, 7), (2, 6, 7)),
    ],
)
def test_arrays_of_pictures(tmp_path, shape, expected):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    labels = np.arange(8) % 2
    spec = save(tmp_path, x_train=x, x_test=x[:4], y_train=labels, y_test=labels[:4])
    data = load(spec)
    assert data.input_shape == expected
    got, _ = everything(data.train)
    assert torch.allclose(got.mean(dim=(0, 2, 3)), torch.zeros(expected[0]), atol=1e-5)
    plain = everything(load(replace(spec, mean=(0.0,), std=(1.0,))).train)[0]
    first = x[0] if x.ndim == 3 else x[0, ..., 0] if shape[-1] in (1, 3) else x[0, 0]
    assert np.allclose(plain[0, 0].numpy(), first / 255)
    assert load(replace(spec, image_size=12)).input_shape == (expected[0], 12, 12)


def test_float_arrays_with_channels(tmp_path):
    x = np.random.default_rng(0).normal(5, 3, (20, 2, 5, 6))
    x[:, 1] *= 10
    spec = save(tmp_path, x_train=x, x_test=x[:6])
    got, _ = everything(load(spec).train)
    assert got.shape == (20, 2, 5, 6)
    wanted = (x - x.mean((0, 2, 3), keepdims=True)) / x.std((0, 2, 3), keepdims=True)
    assert np.allclose(got.numpy(), wanted, atol=1e-5)
    given = everything(load(replace(spec, mean=(1.0,), std=(2.0, 4.0))).train)[0]
    assert np.allclose(given[:, 1].numpy(), (x[:, 1] - 1) / 4, atol=1e-5)


def test_constant_features_become_zero(tmp_path):
    x = np.full((20, 2), 0.1)
    x[:, 1] = np.arange(20)
    test = np.array([[0.1, 3.0]] * 5 + [[9.0, 3.0]])
    data = load(save(tmp_path, x_train=x, x_test=test))
    assert everything(data.train)[0][:, 0].tolist() == [0.0] * 20
    assert everything(data.test)[0][:, 0].tolist() == [0.0] * 6


def test_test_arrays_do_not_leak(tmp_path):
    before = load(save(tmp_path))
    after = load(save(tmp_path, x_test=np.full((6, 4), 1e6)))
    assert torch.equal(everything(before.train)[0], everything(after.train)[0])
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"y_test": None}, "lacks y_test (it has x_train, y_train, x_test)"),
        ({"y_train": np.arange(19) % 3}, "x_train has 20 examples and y_train has 19"),
        ({"x_test": np.zeros((6, 5))}, "x_test is float64 (6, 5)"),
        ({"x_test": np.zeros((6, 4), np.uint8)}, "x_test is uint8 (6, 4)"),
        ({"x_test": np.full((6, 4), np.nan)}, "x_test holds NaN"),
        ({"x_test": np.full((6, 4), np.inf)}, "x_test holds NaN or infinite"),
        ({"y_test": np.full(6, np.nan)}, "y_test holds NaN"),
        ({"y_test": np.zeros((6, 2))}, "y_test has shape (6, 2)"),
        ({"y_test": np.zeros(6)}, "y_train is int64 and y_test is float64"),
        ({"y_test": np.full(6, 7)}, "y_test holds the class 7, which y_train lacks"),
        ({"y_train": np.zeros(20, int), "y_test": np.zeros(6, int)}, "the only class is 0"),
        ({"x_train": np.array(["a"] * 20)}, "x_train is <U1"),
        ({"y_train": np.array(3)}, "y_train is int64 of shape ()"),
        ({"y_train": np.array([{}] * 20)}, "cannot be read: ValueError: Object arrays"),
        ({"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)}, "x_train has 0 examples"),
    ],
)
def test_array_errors(tmp_path, changes, what):
    refused(save(tmp_path, **changes), what)


def test_files_that_are_not_archives(tmp_path):
    path = tmp_path / "broken.npz"
    for content in (b"", b"PK\x03\x04 broken", b"something else"):
        path.write_bytes(content)
        refused(DataSpec(str(path)), "broken.npz cannot be read", "np.savez")
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(DataSpec(str(path)), "broken.npz cannot be read")
    refused(replace(save(tmp_path), image_size=4), "--image-size means nothing")
    refused(replace(save(tmp_path), mean=(1.0, 2.0)), "--mean has 2 numbers for 4 channels")
    refused(replace(save(tmp_path), augment="cifar"), "augmentation 'cifar' needs images")


def test_archives_without_numpy_arrays_are_refused(tmp_path):
    """Their members are not arrays, or are compressed with an unknown method."""
    path = tmp_path / "n.npz"
    names = ("x_train", "y_train", "x_test", "y_test")
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", b"no array")
    with pytest.raises(InputError, match="x_train is not an array"):
        load(DataSpec.from_dict({"name": str(path)}))
    np.savez(path, **{name: np.ones((4, 2)) for name in names})
    content = bytearray(path.read_bytes())
    for head, place in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        start = content.find(head)
        while start >= 0:
            content[start + place] = 97  # an unknown compression
            start = content.find(head, start + 1)
    path.write_bytes(content)
    with pytest.raises(InputError, match="compression method is not supported"):
        load(DataSpec.from_dict({"name": str(path)}))
