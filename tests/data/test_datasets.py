"""Data sets known by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from data_helpers import REAL, everything, real, refused

from lpss_cli.data import Data, DataSpec, load
from lpss_cli.errors import InputError


@pytest.fixture(scope="module")
def digits() -> Data:
    return load(DataSpec())


def test_digits(digits):
    assert (len(digits.train), len(digits.test)) == (1437, 360)
    assert (digits.input_shape, digits.outputs) == ((1, 8, 8), 10)
    assert digits.classes == tuple("0123456789")
    x, y = everything(digits.train)
    assert x.shape == (1437, 1, 8, 8)
    assert x.mean().item() == pytest.approx(0, abs=1e-5)
    assert x.std(correction=0).item() == pytest.approx(1, abs=1e-5)
    # Stratified: every class has its fifth, give or take a rounding.
    test_counts, counts = (torch.bincount(t).float() for t in (digits.test.labels, y))
    assert ((test_counts / (test_counts + counts) - 360 / 1797).abs() < 0.005).all()
    assert digits.augment is None
    json.dumps(digits.preprocessing)


def test_digits_are_the_same_every_time(digits):
    again = load(DataSpec())
    assert again.fingerprint == digits.fingerprint
    # Of the raw pixels and the split: also the same on every other machine.
    assert digits.fingerprint.startswith("d928c7b0f4789e89")
    stored = load(DataSpec.from_dict(digits.spec.to_dict()))
    for data in (again, stored):
        assert torch.equal(everything(data.train)[0], everything(digits.train)[0])
        assert torch.equal(everything(data.test)[0], everything(digits.test)[0])


def test_other_preprocessing_same_data(digits):
    data = load(DataSpec(image_size=16, mean=(0.0,), std=(1.0,), augment="cifar"))
    x, _ = everything(data.test)
    assert x.shape == (360, *data.input_shape) == (360, 1, 16, 16)
    assert 0 <= x.min() < x.max() <= 1
    assert data.fingerprint == digits.fingerprint
    assert data.augment is not None
    assert data.spec.augment == "cifar"
    refused(DataSpec(mean=(0.1, 0.2)), "--mean has 2 numbers for 1 channels")


def test_holdout_splits_the_training_part_alone(digits):
    held = digits.holdout(0.1, seed=3)
    assert (len(held.train), len(held.test)) == (1293, 144)
    parts = [everything(source)[0].flatten(1) for source in (held.train, held.test)]
    together = torch.cat(parts)
    original = everything(digits.train)[0].flatten(1)

    def as_rows(t):
        return sorted(map(tuple, t.tolist()))

    assert as_rows(together) == as_rows(original)  # disjoint, nothing lost, nothing of the test
    assert torch.bincount(held.test.labels).min() >= 13
    again, other = digits.holdout(0.1, seed=3), digits.holdout(0.1, seed=4)
    assert torch.equal(everything(again.test)[0], everything(held.test)[0])
    assert not torch.equal(everything(other.test)[0], everything(held.test)[0])
    assert len({d.fingerprint for d in (digits, held, again, other)}) == 3
    for fraction in (0.0, 1.0, -0.1):
        with pytest.raises(InputError, match="not between 0 and 1"):
            digits.holdout(fraction, 0)
    with pytest.raises(InputError, match="too few for 10 classes"):
        digits.holdout(0.001, 0)


@pytest.mark.parametrize(
    ("name", "files", "mean", "deviation"),
    [("MNIST", "MNIST", 0.1307, 0.3081), ("fashion_mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_mnist_and_fashion(name, files, mean, deviation, monkeypatch):
    real(files)
    monkeypatch.setenv("LPSS_DATA_DIR", str(REAL))
    data = load(DataSpec(name))
    assert data.spec.name == data.name == name.lower().replace("_", "-")
    assert data.spec.data_dir is None
    assert (len(data.train), len(data.test)) == (60000, 10000)
    assert (data.input_shape, data.outputs) == ((1, 28, 28), 10)
    x, y = next(data.train.batches(60000))
    assert x.min().item() == pytest.approx(-mean / deviation)
    assert x.mean().item() == pytest.approx(0, abs=1e-3)
    assert x.std().item() == pytest.approx(1, abs=1e-3)
    assert torch.bincount(y).min() > 5000


def test_failed_download(tmp_path, monkeypatch):
    from torchvision import datasets

    def fail(self):
        print("downloading")
        raise URLError("no network")

    for dataset in (datasets.MNIST, datasets.CIFAR10):
        monkeypatch.setattr(dataset, "download", fail)
    spec = DataSpec("mnist", data_dir=str(tmp_path))
    refused(
        spec, "cannot download MNIST: <urlopen error no network>", f"put the files under {tmp_path}"
    )
    refused(replace(spec, name="cifar100"), "cannot download CIFAR-100: <urlopen")


def test_a_download_prints_nothing_on_stdout(tmp_path, monkeypatch, capsys):
    test_failed_download(tmp_path, monkeypatch)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "downloading" in captured.err


def test_damaged_mnist(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(b"\0\0\x08\x03broken")
    refused(DataSpec("mnist", data_dir=str(tmp_path)), "cannot read MNIST under", "--data-dir")


def test_cifar_from_stand_in_files(monkeypatch, tmp_path):
    from torchvision import datasets

    class Small:
        def __init__(self, root, train, download):
            assert Path(root) == tmp_path
            self.data = np.full((4, 32, 32, 3), 255 if train else 0, dtype=np.uint8)
            self.targets, self.classes = [0, 1, 0, 1], ["cat", "dog"]

    monkeypatch.setattr(datasets, "CIFAR10", Small)
    data = load(DataSpec("CIFAR-10", data_dir=str(tmp_path)))
    assert data.input_shape == (3, 32, 32)
    assert data.default_augment == data.spec.augment == "cifar"
    assert data.augment is not None
    black = everything(data.test)[0][0, :, 0, 0]
    assert black.tolist() == pytest.approx([-0.4914 / 0.2470, -0.4822 / 0.2435, -0.4465 / 0.2616])
    assert load(DataSpec("cifar10", data_dir=str(tmp_path), augment="none")).augment is None
