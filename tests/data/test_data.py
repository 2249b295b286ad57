from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from lpss_cli.data import (
    KNOWN,
    Data,
    DatasetSource,
    DataSpec,
    Source,
    TensorSource,
    epoch_order,
    image_folder,
    is_import_path,
    load,
)
from lpss_cli.data import augment as augmentation
from lpss_cli.errors import InputError
from lpss_cli.utils.seeds import derive_seed

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("LPSS_DATA_DIR") or ROOT.parent / "shared" / "data")


def real(part: str) -> Path:
    if not (REAL / part).exists():
        pytest.skip(f"no {part} under {REAL}: point LPSS_DATA_DIR to it")
    return REAL / part


def refused(spec: DataSpec, what: str, do: str = "") -> None:
    """Loading fails with both lines, each of them one line."""
    with pytest.raises(InputError) as caught:
        load(spec)
    error = caught.value
    assert what in error.what
    assert do in error.do
    assert error.do
    assert "\n" not in error.what + error.do


def everything(source: Source) -> tuple[torch.Tensor, torch.Tensor]:
    return next(iter(source.batches(len(source))))


# --- specification -----------------------------------------------------------------------------


def test_the_package_imports_without_torch():
    code = (
        "import sys, lpss_cli.data as d; d.KNOWN, d.DataSpec(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_spec_survives_json():
    spec = DataSpec("x.csv", target="y", drop=("a", "b"), mean=(0.5,), std=(0.25, 1), workers=2)
    plain = json.loads(json.dumps(spec.to_dict()))
    assert DataSpec.from_dict({**plain, "from_the_future": 1}) == spec
    assert DataSpec.from_dict({}) == DataSpec()


@pytest.mark.parametrize(
    "damaged", [{"name": 3}, {"drop": "ab"}, {"drop": [1]}, {"workers": "2"}, {"mean": ["x"]}]
)
def test_damaged_stored_spec_is_refused(damaged):
    with pytest.raises(InputError, match="damaged"):
        DataSpec.from_dict(damaged)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"workers": -1},
        {"split_seed": -1},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"augment": "cifra"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError) as caught:
        DataSpec(**wrong)
    assert caught.value.do


def test_unknown_names_and_paths():
    refused(DataSpec("fashon-mnist"), "no data set called 'fashon-mnist'", "'fashion-mnist'")
    refused(DataSpec("nothing-like-it"), "no data set called", ", ".join(KNOWN))
    refused(DataSpec("no/such/folder"), "there is no file or folder no/such/folder")
    refused(DataSpec("missing.csv"), "there is no file or folder missing.csv")
    refused(DataSpec(""), "no data set called ''")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(DataSpec(str(tmp_path / "notes.txt")), "is not a kind of data", "table.csv")
    (tmp_path / "data.py").write_text("")
    refused(DataSpec(str(tmp_path / "data.py")), "names no function", "data.py:factory")


def test_options_that_mean_nothing_are_refused(tmp_path):
    refused(DataSpec("digits", target="y"), "--target means nothing for images (digits)")
    path = write_table(tmp_path)
    refused(DataSpec(path, target="y", image_size=8), "--image-size means nothing for a table")
    refused(DataSpec(path, target="y", augment="cifar"), "--augment means nothing for a table")
    what = "--mean 127.5 is not a mean of pixels"
    refused(DataSpec("digits", mean=(127.5,), std=(51.0,)), what, "give --mean 0.5 --std 0.2")
    with pytest.raises(InputError) as caught:
        load(DataSpec("digits", mean=(127.5,)))
    assert caught.value.do.endswith("give --mean 0.5")


# --- order and sources -------------------------------------------------------------------------


def test_epoch_order_is_a_function_of_its_numbers_alone():
    torch.manual_seed(1)
    first = epoch_order(100, 0, 3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, epoch_order(100, 0, 3))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # and it moves no global generator
    assert torch.equal(first.sort().values, torch.arange(100))
    others = [epoch_order(100, seed, epoch) for seed, epoch in [(0, 4), (1, 3), (1, 2), (3, 0)]]
    assert not any(torch.equal(first, other) for other in others)


def test_derived_seeds_differ_by_stream_and_part():
    seeds = {derive_seed(s, *p) for s in ("order", "augment") for p in [(1, 2), (12,), (2, 1), ()]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The same on every machine and in every release: runs are resumed with it.
    assert derive_seed("order", 0, 0) == 8751045294746670233


class Squares:
    """Map-style: (i, i²) with a bad example where asked."""

    def __init__(self, n: int, bad: int = -1, error: Exception | None = None):
        self.n, self.bad, self.error = n, bad, error

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.bad and self.error is not None:
            raise self.error
        return torch.tensor([float(i)]), i * i


def sources(n: int = 10) -> list[Source]:
    x = torch.arange(float(n))[:, None]
    y = torch.arange(n) ** 2
    return [TensorSource(x, y), DatasetSource(Squares(n), labels=y)]


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_sources_agree(source):
    assert isinstance(source, Source)
    assert [len(y) for _, y in source.batches(4)] == [4, 4, 2]
    assert [len(y) for _, y in source.batches(4, drop_last=True)] == [4, 4]
    order = torch.tensor([7, 1, 1, 9, 0])
    x, y = (torch.cat(parts) for parts in zip(*source.batches(2, order=order), strict=True))
    assert x.tolist() == [[7.0], [1.0], [1.0], [9.0], [0.0]]
    assert y.tolist() == [49, 1, 1, 81, 0]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    part = source.subset(torch.tensor([8, 2, 5])).subset(torch.tensor([2, 0]))
    assert len(part) == 2
    assert everything(part)[1].tolist() == [25, 64]
    assert part.labels is not None
    assert part.labels.tolist() == [25, 64]
    assert list(source.batches(3, order=torch.empty(0, dtype=torch.int64))) == []
    with pytest.raises(InputError, match="batch size 0"):
        source.batches(0)


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_batches_may_be_written_to(source):
    for x, y in source.batches(10):
        x.fill_(-1)
        y.fill_(-1)
    assert everything(source)[1].tolist() == [i * i for i in range(10)]


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_augmentation_is_a_function_of_seed_and_batch(source):
    def noise(x, generator):
        return x + torch.rand(x.shape, generator=generator)

    def run(seed, batch_size=4):
        return torch.cat([x for x, _ in source.batches(batch_size, augment=noise, seed=seed)])

    torch.manual_seed(0)
    first, state = run((3, 1)), torch.get_rng_state()
    assert torch.equal(first, run((3, 1)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, run((3, 2)))
    noises = first - torch.arange(10.0)[:, None]
    assert not torch.equal(noises[:4], noises[4:8])  # each batch draws anew


def test_lengths_of_inputs_and_targets_must_agree():
    with pytest.raises(InputError, match="3 inputs but 2 targets"):
        TensorSource(torch.zeros(3, 1), torch.zeros(2))


# Python 3.12 warns that forking a process with threads may deadlock; the workers only read.
forks = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_examples_arrive_as_two_lines(workers):
    good = DatasetSource(Squares(7), workers)
    assert torch.cat([y for _, y in good.batches(3)]).tolist() == [i * i for i in range(7)]
    ours = DatasetSource(Squares(7, 5, InputError("bad image x.png", "remove it")), workers)
    with pytest.raises(InputError, match=r"^bad image x\.png$") as caught:
        list(ours.batches(2))
    assert caught.value.do == "remove it"
    other = DatasetSource(Squares(7, 5, KeyError("label")), workers)
    with pytest.raises(InputError, match="example 5 of the data cannot be read: KeyError: 'label'"):
        list(other.batches(2))


def test_examples_that_do_not_stack():
    class Ragged(Squares):
        def __getitem__(self, i):
            return torch.zeros(i + 1), 0

    with pytest.raises(InputError, match="do not fit into a batch"):
        list(DatasetSource(Ragged(3)).batches(3))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent():
    code = (
        "import os, signal, torch\n"
        "from lpss_cli.data import DatasetSource\n"
        "class Pid:\n"
        "    def __len__(self): return 100\n"
        "    def __getitem__(self, i): return torch.zeros(1), os.getpid()\n"
        "_, y = next(DatasetSource(Pid(), workers=1).batches(1))\n"
        "os.write(1, str(int(y)).encode())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(20):
        # A zombie that nobody has waited for yet is as dead as one that is gone.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent by a second")


# --- augmentation ------------------------------------------------------------------------------


def pictures(n: int = 12, channels: int = 2, height: int = 9, width: int = 7) -> torch.Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(0)) + 1


def test_crop_equals_the_slow_one():
    x = pictures()
    g = torch.Generator().manual_seed(5)
    top, left = (torch.randint(0, 7, (len(x),), generator=g) for _ in range(2))
    got = augmentation.reflect_crop(3)(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.numpy()):
        padded = np.pad(image, ((0, 0), (3, 3), (3, 3)), mode="reflect")
        wanted = padded[:, top[i] : top[i] + 9, left[i] : left[i] + 7]
        assert np.array_equal(got[i].numpy(), wanted)
    assert len({*zip(top.tolist(), left.tolist(), strict=True)}) > 6  # each its own offset


def test_flip_equals_the_slow_one():
    x = pictures(40)
    chosen = torch.randint(0, 2, (40,), generator=torch.Generator().manual_seed(5))
    got = augmentation.hflip()(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.numpy()):
        assert np.array_equal(got[i].numpy(), image[:, :, ::-1] if chosen[i] else image)
    assert 5 < int(chosen.sum()) < 35


@pytest.mark.parametrize("size", [0, 1, 3, 6])
def test_cutout_equals_the_slow_one(size):
    x = pictures(60)
    g = torch.Generator().manual_seed(5)
    rows = torch.randint(0, 9, (60,), generator=g).tolist()
    columns = torch.randint(0, 7, (60,), generator=g).tolist()
    got = augmentation.cutout(size)(x, torch.Generator().manual_seed(5))
    for i, image in enumerate(x.clone()):
        top, left = rows[i] - size // 2, columns[i] - size // 2
        image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(got[i], image)
    # Centres go up to the border: some squares are clipped and some are whole.
    holes = (got == 0).sum(dim=(1, 2, 3)) // 2
    assert int(holes.max()) == size**2
    assert size < 3 or int(holes.min()) < size**2
    assert (x > 0).all()  # the input is left alone


def test_policies():
    x = pictures(8, 1, 28, 28)
    by_hand = augmentation.compose(
        augmentation.reflect_crop(4), augmentation.hflip(), augmentation.cutout(6)
    )
    fashion, cifar = augmentation.policy("fashion"), augmentation.policy("cifar")
    assert fashion is not None
    assert cifar is not None
    seeded = (torch.Generator().manual_seed(1) for _ in range(3))
    wanted, got, uncut = (
        step(x, g) for step, g in zip((by_hand, fashion, cifar), seeded, strict=True)
    )
    assert torch.equal(wanted, got)
    assert (uncut > 0).all()
    assert torch.equal(got[got > 0], uncut[got > 0])
    assert augmentation.policy("none") is None
    with pytest.raises(InputError, match="no augmentation called 'cifer'"):
        augmentation.policy("cifer")
    with pytest.raises(InputError, match="needs images of more than 4 pixels"):
        augmentation.for_shape("cifar", (3, 4, 4))


# --- images ------------------------------------------------------------------------------------


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


# --- folders -----------------------------------------------------------------------------------


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


# --- arrays ------------------------------------------------------------------------------------


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


def test_files_that_are_no_archive(tmp_path):
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


# --- tables ------------------------------------------------------------------------------------

HEADER = "id,size,colour,flat,y"


def table_rows(n: int = 50) -> list[str]:
    """A target y of two classes; colour is 'red' or 'blue', and flat is constant."""
    return [
        f"{i},{i * 0.5},{'red' if i % 3 else 'blue'},0.1,{'yes' if i % 5 else 'no'}"
        for i in range(n)
    ]


def write_table(root: Path, rows: list[str] | None = None, header: str = HEADER) -> str:
    path = root / "table.csv"
    path.write_text("\n".join([header, *(table_rows() if rows is None else rows)]) + "\n")
    return str(path)


def table(root: Path, rows: list[str] | None = None, **options) -> DataSpec:
    return DataSpec(write_table(root, rows), **{"target": "y", "drop": ("id",), **options})


def test_table(tmp_path):
    data = load(table(tmp_path))
    assert (len(data.train), len(data.test)) == (37, 13)
    assert data.classes == ("no", "yes")
    assert data.preprocessing["columns"] == ["size", "colour", "flat"]
    assert data.preprocessing["features"] == ["size", "colour=blue", "colour=red", "flat"]
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
    assert stored["categories"] == {"colour": ["blue", "red"]}
    assert stored["target"] == {"name": "y", "classes": ["no", "yes"]}
    numbers = [f"{i},{i},red,0.1,{i}.5" for i in range(50)]
    target = load(table(tmp_path, numbers)).preprocessing["target"]
    assert list(target) == ["name", "classes", "mean", "scale"]
    assert json.loads(json.dumps(stored)) == stored


def test_texts_stay_whole(tmp_path):
    rows = [f"0,1,{'a' if i % 2 else 'a' + chr(0)},0,{i % 3}" for i in range(40)]
    data = load(table(tmp_path, rows))
    assert data.preprocessing["categories"]["colour"] == ["a", "a\0"]
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
    assert after.preprocessing["categories"] == {"colour": ["blue", "red"]}


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
        ({"target": None}, "needs the name of the column to predict", "id, size, colour, flat, y"),
        ({"target": "colr"}, "has no column 'colr'", "did you mean 'colour'?"),
        ({"drop": ("id", "sise")}, "has no column 'sise'", "did you mean 'size'?"),
        ({"drop": ("y",)}, "both --target and --drop", ""),
        ({"drop": ("id", "size", "colour", "flat")}, "no column left to learn from", ""),
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


# --- factories ---------------------------------------------------------------------------------

PRELUDE = "import numpy as np, torch\nx, y = torch.rand(8, 3), torch.arange(8) % 2\n"


def factory(root: Path, body: str) -> DataSpec:
    (root / "mine.py").write_text(PRELUDE + body)
    return DataSpec(f"{root / 'mine.py'}:make")


def test_import_paths_are_recognised():
    assert is_import_path("some/file.py:factory")
    assert not any(
        map(is_import_path, ("digits", "file.py", "file.py:", "a.csv:x", "f.py:a-b", ""))
    )


def test_factory_of_pairs(tmp_path):
    (tmp_path / "neighbour.py").write_text("SIZE = 4\n")
    body = """
from neighbour import SIZE
def make(): return (x, y), (x[:SIZE].numpy(), y[:SIZE].numpy())
"""
    spec = factory(tmp_path, body)
    path = list(sys.path)
    data = load(spec)
    assert sys.path == path
    assert (len(data.train), len(data.test)) == (8, 4)
    assert (data.task.name, data.outputs, data.classes) == ("classification", 2, ("0", "1"))
    assert (data.input_shape, data.name) == ((3,), "make")
    assert everything(data.train)[0].dtype == torch.float32


def test_factory_of_regression_and_tokens(tmp_path):
    tokens = factory(tmp_path, "def make(): return (x.double(), x[:, 0].double()), (x, x[:, 0])\n")
    data = load(tokens)
    assert (data.task.name, data.outputs) == ("regression", 1)
    assert everything(data.train)[1].dtype == torch.float32
    spec = factory(tmp_path, "def make(): return ((y[:, None], y),) * 2\n")
    assert everything(load(spec).train)[0].dtype == torch.int64


def test_factory_of_datasets(tmp_path):
    body = """
class Rows:
    def __len__(self): return 8
    def __getitem__(self, i): return x[i].double(), int(y[i])
def make(): return {"train": Rows(), "test": torch.utils.data.TensorDataset(x, y), "outputs": 2}
"""
    data = load(factory(tmp_path, body))
    assert isinstance(data.train, DatasetSource)
    assert isinstance(data.test, TensorSource)
    assert everything(data.train)[0].dtype == torch.float32
    assert data.outputs == 2
    assert len(data.holdout(0.25, 0).test) == 2  # unstratified: nobody knows the labels


def test_factory_with_its_own_everything(tmp_path):
    body = """
def make():
    return dict(
        train=(x, x), test=(x, x), outputs=3, input_shape=[3],
        loss=lambda o, t: (o - t).abs().mean(),
        metrics=lambda o, t: {"worst": float((o - t).max())},
        primary="worst", higher_is_better=False, augment=lambda x, g: x + 1)
"""
    data = load(factory(tmp_path, body))
    task = data.task
    assert (task.name, task.primary, task.higher_is_better) == ("custom", "worst", False)
    assert task.loss(torch.ones(2, 3), torch.zeros(2, 3)) == 1
    assert task.metrics(torch.ones(2, 3), torch.zeros(2, 3)) == {"worst": 1.0}
    x = torch.zeros(1, 3)
    assert data.augment is not None
    assert torch.equal(data.augment(x, torch.Generator()), x + 1)
    assert (data.outputs, data.input_shape) == (3, (3,))


def test_factory_with_a_loss_alone_or_another_primary(tmp_path):
    body = "def make(): return dict(train=(x, x), test=(x, x), loss=lambda o, t: (o - t).mean())\n"
    task = load(factory(tmp_path, body)).task
    assert (task.primary, task.higher_is_better) == ("loss", False)
    assert task.metrics(torch.ones(2, 3, requires_grad=True), torch.zeros(2, 3)) == {"loss": 1.0}
    balanced = "def make(): return dict(train=(x, y), test=(x, y), primary='balanced_accuracy')\n"
    assert load(factory(tmp_path, balanced)).task.primary == "balanced_accuracy"


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("", "has no function 'make'"),
        ("1 / 0", "failed with ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "failed with SystemExit: 3"),
        ("def make(): raise KeyError('a\\nb')", "raised KeyError: 'a\\nb'"),
        ("def make(a): pass", "raised TypeError"),
        ("def make(): return 3", "returned a value of type int"),
        ("def make(): return x, y, x", "returned a tuple of 3"),
        ("def make(): return x, x", "the train part is a value of type Tensor"),
        ("def make(): return {'train': (x, y)}", "returned no 'test'"),
        ("def make(): return {'trian': 1}", "unknown key 'trian'"),
        ("def make(): return dict(train=1, test=1, loss=3)", "'loss' is a value of type int"),
        ("def make(): return ((x, 3),) * 2", "y of train is a value of type int"),
        ("def make(): return ((x, np.array(['a'] * 8)),) * 2", "y of train holds <U1"),
        ("def make(): return ((x * torch.nan, y),) * 2", "x of train holds NaN"),
        ("def make(): return ((x[:0], y[:0]),) * 2", "the train part is empty"),
        ("def make(): return ((x, y[:3]),) * 2", "8 inputs but 3 targets"),
        ("def make(): return (x, y), (x[:, :2], y)", "test examples (2,)"),
        ("def make(): return ((x, y - 1),) * 2", "values -1 to 0"),
        ("def make(): return dict(train=(x, y), test=(x, y), outputs=1)", "values 0 to 1"),
        (
            "def make(): return dict(train=(x, y), test=(x, y), outputs=3, classes='ab')",
            "2 classes",
        ),
        ("def make(): return dict(train=(x, y), test=(x, y), metrics=len)", "no primary"),
        ("def make(): return dict(train=(x, y), test=(x, y), primary='f1')", "no metric 'f1'"),
        ("class D(list): pass\ndef make(): return (D(), D())", "the train part is a D of 0"),
        (
            "class D:\n  def __len__(s): return 2\n  def __getitem__(s, i): return x[i], 0\n"
            "def make(): return D(), D()",
            "number of classes of a Dataset is unknown",
        ),
        (
            "class D:\n  def __len__(s): return 2\n  def __getitem__(s, i): return 3\n"
            "def make(): return D(), D()",
            "do not fit into a batch",
        ),
    ],
)
def test_factory_errors(tmp_path, body, what):
    refused(factory(tmp_path, body), what)


def test_a_missing_factory_file_and_a_function_of_nearly_that_name(tmp_path):
    refused(DataSpec(f"{tmp_path}/none.py:make"), "there is no file")
    spec = factory(tmp_path, "def maker(): pass\n")
    refused(spec, "has no function 'make'", "did you mean 'maker'?")


def test_an_error_of_ours_passes_through_a_factory(tmp_path):
    body = "from lpss_cli.data import load, DataSpec\ndef make(): return load(DataSpec('a.csv'))\n"
    refused(factory(tmp_path, body), "there is no file or folder a.csv")


def test_archives_that_are_none_of_numpys_are_refused(tmp_path):
    """Members that are no arrays, or compressed in ways that nothing here unpacks."""
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
