"""A folder with a network as the Hugging Face Hub has it: what its ``config.json`` says.

It holds ``config.json``, ``model.safetensors`` and perhaps ``preprocessor_config.json``. Two kinds
are known: image classifiers of the library transformers, and networks of timm. Only texts and
numbers are read here; nothing is ever downloaded, and no code of the folder is run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpss_cli.data.spec import INTERPOLATIONS
from lpss_cli.errors import InputError
from lpss_cli.models.libraries import View
from lpss_cli.models.signatures import Fit

CONFIG, WEIGHTS, IMAGES = "config.json", "model.safetensors", "preprocessor_config.json"
_CLASSIFIER = "ForImageClassification"
# Larger than any configuration, with its thousands of class names.
_LARGEST = 10_000_000
# Pillow's numbers of ways to resize.
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class Described:
    """What a folder says of its network.

    Attributes:
        weights: the file of its weights.
        fit: the network's spec, classes, channels and image side.
        view: what is done to images; None where the folder does not say it.
        classes: their names, in the order of the outputs; empty where the folder does not say it.
    """

    weights: Path
    fit: Fit
    view: View | None
    classes: tuple[str, ...] = ()


def describe(folder: Path) -> Described:
    """Read what a folder says.

    Raises:
        InputError: a file is missing or damaged, or it is no image classifier.
    """
    config = _json(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        sharded = (folder / f"{WEIGHTS}.index.json").exists()
        raise InputError(
            f"{folder} has no {WEIGHTS}"
            + (": its weights are in several files" if sharded else ""),
            "save it again in one piece: model.save_pretrained(FOLDER, max_shard_size='100GB')",
        )
    try:
        fit, view = _of_timm(config) if "architecture" in config else _of_hub(folder, config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} is not as it should be: {type(error).__name__} {error}"[:300],
            "take another copy, or pass the weights' file and --arch",
        ) from error
    return Described(weights, fit, view, _classes(config))


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read ``id2label`` of transformers or ``label_names`` of timm, if they are in order."""
    named = config.get("id2label") or dict(enumerate(config.get("label_names") or ()))
    try:
        return tuple(str(name) for _, name in sorted((int(k), v) for k, v in named.items()))
    except (ValueError, TypeError, AttributeError):
        return ()


def _json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no object")
    except OSError:
        raise InputError(
            f"{path.parent} is a folder without {path.name}",
            "name the checkpoint itself, or a folder with config.json and model.safetensors",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", "take another copy") from None
    return content


def _of_timm(config: Mapping[str, Any]) -> tuple[Fit, View]:
    """``{"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {…}}``."""
    own = config["pretrained_cfg"]
    channels, *sides = map(int, own["input_size"])
    side = sides[0] if own.get("fixed_input_size") else None
    fit = Fit(f"timm:{config['architecture']}", int(config["num_classes"]), channels, side)
    resize = math.floor(sides[0] / float(own.get("crop_pct") or 1.0))
    return fit, View(
        "pretrained_cfg",
        True,
        resize,
        sides[0],
        _numbers(own["mean"]),
        _numbers(own["std"]),
        _interpolation(own.get("interpolation")),
        f"as {CONFIG} says",
    )


def _of_hub(folder: Path, config: Mapping[str, Any]) -> tuple[Fit, View | None]:
    """A configuration of transformers: ``model_type``, ``architectures``, ``id2label``, …."""
    named = config.get("architectures") or ["nothing"]
    if not str(named[0]).endswith(_CLASSIFIER):
        raise InputError(
            f"{folder} holds {str(named[0])[:80]}, which classifies no images",
            f"give a folder of a model ...{_CLASSIFIER}, or --arch file.py:factory and its weights",
        )
    outputs = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    fit = Fit(f"hf:{folder}", outputs, int(config.get("num_channels", 3)))
    if not (folder / IMAGES).exists():
        return fit, None
    return fit, _view(_json(folder / IMAGES))


def _view(images: Mapping[str, Any]) -> View:
    size = _side(images["size"])
    cropped = images.get("do_center_crop") and "crop_size" in images
    crop = _side(images["crop_size"]) if cropped else size
    if images.get("crop_pct"):  # ConvNeXt resizes to a little more
        size = math.floor(crop / float(images["crop_pct"]))
    plain = images.get("do_normalize") is False
    return View(
        IMAGES,
        True,
        max(size, crop),
        crop,
        (0.0, 0.0, 0.0) if plain else _numbers(images["image_mean"]),
        (1.0, 1.0, 1.0) if plain else _numbers(images["image_std"]),
        _interpolation(_RESAMPLING.get(images.get("resample", 2))),
        f"as {IMAGES} says",
    )


def _side(size: Any) -> int:
    """``224``, ``{"height": 224, "width": 224}`` or ``{"shortest_edge": 224}``."""
    if isinstance(size, Mapping):
        return int(size["shortest_edge"] if "shortest_edge" in size else size["height"])
    return int(size)


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _interpolation(name: Any) -> str:
    return name if name in INTERPOLATIONS else "bilinear"
