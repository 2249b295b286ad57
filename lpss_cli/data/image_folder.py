"""A folder of images: ``train/CLASS/*`` and ``val/CLASS/*`` (or ``test/CLASS/*``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from lpss_cli.data import augment as augmentation
from lpss_cli.data import splits
from lpss_cli.data.bundle import Data
from lpss_cli.data.datasets import ChannelValues, check_statistics, normalize
from lpss_cli.data.sources import DatasetSource, Source, TensorSource
from lpss_cli.data.spec import DataSpec, refuse
from lpss_cli.data.tasks import CLASSIFICATION
from lpss_cli.errors import InputError, one_line

MEMORY_LIMIT = 2**30
"""Decoded float images of at most this many bytes are kept in memory."""

Samples = list[tuple[str, int]]
"""(path, class index) of each image."""

_IMAGENET_MEAN: ChannelValues = (0.485, 0.456, 0.406)
_IMAGENET_STD: ChannelValues = (0.229, 0.224, 0.225)
_LAYOUT_HINT = "make it train/CLASS/image.png and val/CLASS/image.png"


@dataclass(frozen=True)
class View:
    """What the network sees of an image of any size: resized, center-cropped, normalized.

    Attributes:
        size: side of the square output in pixels.
        resize: length that the shorter side is resized to first, in pixels, with antialiasing.
        interpolation: ``bilinear`` or ``bicubic``.
        mean, std: per channel, of values in [0, 1].
    """

    size: int
    resize: int
    interpolation: str
    mean: ChannelValues
    std: ChannelValues

    @classmethod
    def from_spec(cls, spec: DataSpec) -> View:
        """Complete a specification with the usual evaluation settings of ImageNet."""
        size = spec.image_size or 224
        mean, std = check_statistics(spec.mean or _IMAGENET_MEAN, spec.std or _IMAGENET_STD, 3)
        resize, interpolation = spec.resize or round(size * 256 / 224), spec.interpolation
        return cls(size, resize, interpolation or "bilinear", mean, std)


class ImageFiles:
    """Image files as a map-style dataset.

    Args:
        samples: (path, class index) of each image.
        view: how each image is prepared.
    """

    def __init__(self, samples: Samples, view: View) -> None:
        self.samples, self.view = samples, view

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return (3, size, size) float32 and the class index; gray images become RGB.

        Raises:
            InputError: the file is not a readable image.
        """
        from torchvision.datasets.folder import default_loader
        from torchvision.transforms import InterpolationMode
        from torchvision.transforms.v2 import functional as F

        path, label = self.samples[index]
        try:
            image = default_loader(path)
        # SyntaxError is what PIL says about some broken PNG files.
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(
                f"cannot read the image {path}: {one_line(error)}", "repair or remove it"
            ) from error
        view = self.view
        image = F.resize(image, [view.resize], InterpolationMode(view.interpolation))
        image = F.center_crop(image, [view.size, view.size])
        return normalize(F.pil_to_tensor(image), 255, view.mean, view.std), label

    def in_memory(self) -> TensorSource:
        """Decode all images: (N, 3, size, size) float32."""
        x = torch.empty(len(self), 3, self.view.size, self.view.size)
        for index in range(len(self)):
            x[index] = self[index][0]
        return TensorSource(x, self.labels())

    def labels(self) -> Tensor:
        """(N,) int64 class indices."""
        return torch.tensor([label for _, label in self.samples])


def load(spec: DataSpec) -> Data:
    """Read a folder of images; if both ``val`` and ``test`` exist, ``val`` is the test part.

    Raises:
        InputError: a part is missing or empty, the classes differ, or an image is damaged.
    """
    refuse(spec, "a folder of images", "target", "drop", "split_seed")
    root = Path(spec.name)
    classes, train_samples, test_samples = _scan(root)
    view = View.from_spec(spec)
    size = view.size
    train, test = (ImageFiles(s, view) for s in (train_samples, test_samples))
    fits = 4 * 3 * size**2 * (len(train) + len(test)) <= MEMORY_LIMIT

    def make_source(files: ImageFiles) -> Source:
        return files.in_memory() if fits else DatasetSource(files, spec.workers, files.labels())

    augment, samples = spec.augment or "none", train_samples + test_samples
    return Data(
        spec=replace(
            spec,
            image_size=size,
            resize=view.resize,
            interpolation=view.interpolation,
            mean=view.mean,
            std=view.std,
            augment=augment,
        ),
        name=root.resolve().name,
        train=make_source(train),
        test=make_source(test),
        task=CLASSIFICATION,
        input_shape=(3, size, size),
        outputs=len(classes),
        classes=classes,
        preprocessing={
            "kind": "image",
            "divide_by": 255,
            "image_size": [size, size],
            "resize_shorter_side": view.resize,
            "interpolation": view.interpolation,
            "mean": list(view.mean),
            "std": list(view.std),
        },
        fingerprint=splits.fingerprint_files(root, (Path(path) for path, _ in samples)),
        augment=augmentation.for_shape(augment, (3, size, size)),
    )


def _scan(root: Path) -> tuple[tuple[str, ...], Samples, Samples]:
    """Return the class names, sorted, and the samples of both parts."""
    parts = [part for part in ("val", "test") if (root / part).is_dir()]
    if not (root / "train").is_dir() or not parts:
        wanted = "train" if parts else "val or test"
        raise InputError(f"{root} has no folder {wanted}", _LAYOUT_HINT)
    classes, train = _scan_part(root / "train")
    test_classes, test = _scan_part(root / parts[0])
    if classes != test_classes:
        only_train = sorted(set(classes) - set(test_classes))
        only_test = sorted(set(test_classes) - set(classes))
        raise InputError(
            f"the classes of {root}/train and {root}/{parts[0]} differ: "
            f"only in train: {', '.join(only_train) or '-'}; "
            f"only in {parts[0]}: {', '.join(only_test) or '-'}",
            "give both parts the same class folders",
        )
    if len(classes) < 2:
        raise InputError(f"{root}/train has only the class {classes[0]}", "give at least two")
    return classes, train, test


def _scan_part(folder: Path) -> tuple[tuple[str, ...], Samples]:
    """Return the class names and samples of one part, as torchvision's ImageFolder finds them."""
    from torchvision.datasets import ImageFolder

    try:
        dataset = ImageFolder(str(folder))
    except FileNotFoundError as error:
        reason = str(error).split(" Supported extensions")[0].rstrip(".")
        raise InputError(f"no images in {folder}: {reason}", _LAYOUT_HINT) from error
    return tuple(dataset.classes), dataset.samples
