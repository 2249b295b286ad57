"""Small deterministic data and networks for tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from lpss_cli.data import Data, DataSpec, TensorSource
from lpss_cli.data.tasks import CLASSIFICATION
from lpss_cli.utils import digest
from lpss_cli.utils.signals import Interrupts


def here(interrupts: Interrupts, function: Callable[..., Any], *arguments: Any) -> Any:
    """What ``apart.call`` gives, in this process: its start takes longer than a small run."""
    return function(Interrupts(), *arguments)


def rewrite(path: Path, out: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change an artifact's record and seal it again, as somebody with lpss's code could."""
    content = torch.load(path, weights_only=True)
    change(content["lpss"])
    parts = {"state_dict": content["state_dict"], "init": content.get("init")}
    del content["lpss"][digest.MANIFEST_KEY]
    torch.save({**content, "lpss": digest.seal_record(content["lpss"], parts)}, out)
    return out


def blobs(n: int = 128, features: int = 12, classes: int = 4, seed: int = 0) -> Data:
    """Gaussian clusters, one a class, split in halves."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(classes, features, generator=generator)
    y = torch.arange(2 * n) % classes
    x = centres[y] + torch.randn(2 * n, features, generator=generator)
    return Data(
        spec=DataSpec("blobs"),
        name="blobs",
        train=TensorSource(x[:n], y[:n]),
        test=TensorSource(x[n:], y[n:]),
        task=CLASSIFICATION,
        input_shape=(features,),
        outputs=classes,
        classes=tuple(map(str, range(classes))),
    )


def network(ties: bool = False, seed: int = 0) -> nn.Sequential:
    """Linear 12-40-4 with BatchNorm and dropout; with ``ties`` most weights share magnitudes."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(12, 40), nn.BatchNorm1d(40), nn.ReLU(), nn.Dropout(0.1), nn.Linear(40, 4)
    )
    if ties:
        with torch.no_grad():
            for layer in (model[0], model[4]):
                layer.weight.copy_(layer.weight.sign() * 0.1)
    return model


def pictures(folder: Path, side: int = 32, classes: int = 3, each: int = 4) -> Path:
    """Folders of images of one colour each, a little noisy."""
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(classes):
            place = folder / part / f"class{label}"
            place.mkdir(parents=True)
            for number in range(each):
                image = rng.integers(0, 60, (side, side, 3), dtype=np.uint8)
                image[..., label] += 150
                Image.fromarray(image).save(place / f"{number}.png")
    return folder
