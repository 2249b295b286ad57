"""Folders of images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import everything, forks, refused
from PIL import Image

from lpss_cli.data import DatasetSource, DataSpec, TensorSource, epoch_order, image_folder, load
from lpss_cli.errors import InputError


def make_folder(
    root: Path, val: str = "val", classes: tuple[str, ...] = ("ant", "bee")
) -> DataSpec:
    generator = np.random.default_rng(0)
    for part in ("train", val):
        for c, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                pixels = generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)
                pixels[..., c] = 255
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return DataSpec(str(root), image_size=16)


@pytest.mark.parametrize("val", ["val", "test"])
def test_folder(tmp_path, val):
    spec = make_folder(tmp_path, val)
    grey = Image.fromarray(np.full((40, 20), 128, dtype=np.uint8))
    grey.save(tmp_path / "train" / "ant" / "0.png")
    data = load(spec)
    assert data.classes == ("ant", "bee")
    assert (data.input_shape, data.outputs) == ((3, 16, 16), 2)
    assert isinstance(data.train, TensorSource)
    x, y = everything(data.train)
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    assert x[0, :, 3, 3].tolist() == pytest.approx(
        [
            (128 / 255 - m) / s
            for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), strict=True)
        ]
    )
    assert x[1, 0].unique().numel() == 1  # the channel that the class fills
    assert data.spec.mean == (0.485, 0.456, 0.406)
    (tmp_path / val / "bee" / "9.png").write_bytes((tmp_path / val / "bee" / "0.png").read_bytes())
    assert load(spec).fingerprint != data.fingerprint


@forks
def test_a_big_folder_streams_the_same_batches(tmp_path, monkeypatch):
    spec = make_folder(tmp_path)
    small = load(spec)
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT", 1000)
    big = load(replace(spec, workers=1))
    assert isinstance(big.train, DatasetSource)
    order = epoch_order(6, 0, 0)
    pairs = zip(small.train.batches(4, order=order), big.train.batches(4, order=order), strict=True)
    for (x, y), (x_big, y_big) in pairs:
        assert torch.equal(x, x_big)
        assert torch.equal(y, y_big)
    held = big.holdout(0.34, 0)
    assert sorted(everything(held.test)[1].tolist()) == [0, 1]


@forks
@pytest.mark.parametrize("limit", [2**30, 1000])
@pytest.mark.parametrize("content", [b"not a picture", "half"])
def test_a_damaged_image_is_named(tmp_path, monkeypatch, limit, content):
    spec = replace(make_folder(tmp_path), workers=1)
    path = tmp_path / "train" / "bee" / "1.png"
    path.write_bytes(path.read_bytes()[:900] if content == "half" else content)
    monkeypatch.setattr(image_folder, "MEMORY_LIMIT", limit)
    with pytest.raises(InputError, match="cannot read the image") as caught:
        everything(load(spec).train)
    assert str(path) in caught.value.what
    assert "\n" not in caught.value.what


def test_folder_errors(tmp_path):
    spec = make_folder(tmp_path)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "wasp")
    refused(spec, "only in train: bee; only in val: wasp", "same class folders")
    for file in (tmp_path / "train" / "bee").iterdir():
        file.unlink()
    refused(spec, "Found no valid file for the classes bee")
    (tmp_path / "val").rename(tmp_path / "valid")
    refused(spec, "has no folder val or test", "train/CLASS/image.png")
    (tmp_path / "train").rename(tmp_path / "test")
    refused(spec, "has no folder train")
    refused(make_folder(tmp_path / "one", classes=("ant",)), "has only the class ant")
