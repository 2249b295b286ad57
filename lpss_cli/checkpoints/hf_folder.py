"""A folder of the Hugging Face Hub: what its ``config.json`` says about the network in it.

The folder holds ``config.json``, ``model.safetensors`` and possibly ``preprocessor_config.json``.
Two kinds are known: image classifiers of transformers, and networks of timm. Only texts and numbers
are read here; nothing is ever downloaded, and no code in the folder is run.
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
from lpss_cli.models.families import HUGGINGFACE, TIMM
from lpss_cli.models.info import Fit, ImagePreprocessing

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_CLASSIFIER = "ForImageClassification"
# Bytes; larger than any configuration with thousands of class names.
_LARGEST = 10_000_000
# Pillow's numbers for its ways to resize.
_RESAMPLING = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True)
class FolderDescription:
    """What a folder says about its network.

    Attributes:
        weights: the file with its weights.
        fit: spec of the network, number of classes and channels, and image side.
        preprocessing: how images are prepared; None if the folder does not say.
        classes: names of the classes, in the order of the outputs; empty if the folder does not
            say.
    """

    weights: Path
    fit: Fit
    preprocessing: ImagePreprocessing | None
    classes: tuple[str, ...] = ()


def describe(folder: Path) -> FolderDescription:
    """Read what a folder says about its network.

    Raises:
        InputError: a file is missing or damaged, or the network is not an image classifier.
    """
    config = _read_json(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        is_sharded = (folder / f"{WEIGHTS}.index.json").exists()
        raise InputError(
            f"{folder} has no {WEIGHTS}"
            + (": its weights are in several files" if is_sharded else ""),
            "save it again in one piece: model.save_pretrained(FOLDER, max_shard_size='100GB')",
        )
    try:
        is_timm = "architecture" in config
        fit, preprocessing = _of_timm(config) if is_timm else _of_transformers(folder, config)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG} is malformed: {type(error).__name__} {error}"[:300],
            "take another copy, or pass the file with the weights and --arch",
        ) from error
    return FolderDescription(weights, fit, preprocessing, _classes(config))


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Read ``id2label`` of transformers or ``label_names`` of timm, if they are well-formed."""
    labels = config.get("id2label") or dict(enumerate(config.get("label_names") or ()))
    try:
        return tuple(str(name) for _, name in sorted((int(k), v) for k, v in labels.items()))
    except (ValueError, TypeError, AttributeError):
        return ()


def _read_json(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is too large")
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is not an object")
    except OSError:
        raise InputError(
            f"{path.parent} is a folder without {path.name}",
            "name the checkpoint itself, or a folder with config.json and model.safetensors",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}", "take another copy") from None
    return content


def _of_timm(config: Mapping[str, Any]) -> tuple[Fit, ImagePreprocessing]:
    """``{"architecture": "resnet18", "num_classes": 10, "pretrained_cfg": {…}}``."""
    pretrained = config["pretrained_cfg"]
    channels, *sides = map(int, pretrained["input_size"])
    side = sides[0] if pretrained.get("fixed_input_size") else None
    arch = f"{TIMM.prefix}{config['architecture']}"
    fit = Fit(arch, int(config["num_classes"]), channels, side)
    resize = math.floor(sides[0] / float(pretrained.get("crop_pct") or 1.0))
    return fit, ImagePreprocessing(
        "pretrained_cfg",
        True,
        resize,
        sides[0],
        _floats(pretrained["mean"]),
        _floats(pretrained["std"]),
        _interpolation(pretrained.get("interpolation")),
        f"as {CONFIG} says",
    )


def _of_transformers(
    folder: Path, config: Mapping[str, Any]
) -> tuple[Fit, ImagePreprocessing | None]:
    """``{"model_type": "vit", "architectures": […], "id2label": {…}, …}``."""
    architectures = config.get("architectures") or ["nothing"]
    if not str(architectures[0]).endswith(_CLASSIFIER):
        raise InputError(
            f"{folder} holds {str(architectures[0])[:80]}, which does not classify images",
            f"give a folder of a model ...{_CLASSIFIER}, or --arch file.py:factory and its weights",
        )
    outputs = len(config["id2label"]) if "id2label" in config else int(config.get("num_labels", 2))
    fit = Fit(f"{HUGGINGFACE.prefix}{folder}", outputs, int(config.get("num_channels", 3)))
    if not (folder / PREPROCESSOR).exists():
        return fit, None
    return fit, _preprocessing(_read_json(folder / PREPROCESSOR))


def _preprocessing(config: Mapping[str, Any]) -> ImagePreprocessing:
    size = _side(config["size"])
    is_cropped = config.get("do_center_crop") and "crop_size" in config
    crop = _side(config["crop_size"]) if is_cropped else size
    if config.get("crop_pct"):  # ConvNeXt resizes to a little more than the crop
        size = math.floor(crop / float(config["crop_pct"]))
    is_unscaled = config.get("do_normalize") is False
    return ImagePreprocessing(
        PREPROCESSOR,
        True,
        max(size, crop),
        crop,
        (0.0, 0.0, 0.0) if is_unscaled else _floats(config["image_mean"]),
        (1.0, 1.0, 1.0) if is_unscaled else _floats(config["image_std"]),
        _interpolation(_RESAMPLING.get(config.get("resample", 2))),
        f"as {PREPROCESSOR} says",
    )


def _side(size: Any) -> int:
    """``224``, ``{"height": 224, "width": 224}`` or ``{"shortest_edge": 224}``."""
    if isinstance(size, Mapping):
        return int(size["shortest_edge"] if "shortest_edge" in size else size["height"])
    return int(size)


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(map(float, values))


def _interpolation(name: Any) -> str:
    return name if name in INTERPOLATIONS else "bilinear"
