"""Checkpoints of other origin: which network they are of, and what data and images fit it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from lpss_cli.checkpoints.loading import Checkpoint
from lpss_cli.data import DataSpec
from lpss_cli.data.spec import KNOWN, canonical_name
from lpss_cli.errors import InputError
from lpss_cli.models import libraries, mlp_widths
from lpss_cli.models.libraries import view
from lpss_cli.models.recognition import Recognised, fit_of, plural, recognise
from lpss_cli.models.signatures import Fit
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from lpss_cli.data import Data

Note = Callable[[str], None]
#: A network may be evaluated on images a little larger than the crop: the usual ratio.
_USUAL = 256 / 224


def identify(checkpoint: Checkpoint, typed: str | None, note: Note) -> tuple[str, Fit | None]:
    """Find out which network a checkpoint of other origin is of.

    Args:
        checkpoint: one without a record of its own.
        typed: the network that was asked for; nothing is looked for then.
        note: told what was found, and what was left out.

    Returns:
        The network's spec, and how the checkpoint fits it: None where the network is other
        people's code, or does not fit.

    Raises:
        InputError: no known network fits.
    """
    fit: Fit | None
    if typed is None and checkpoint.described is not None:
        fit = checkpoint.described.fit
        arch = fit.arch
        note(_described(fit))
    elif typed is None:
        found = _recognised(checkpoint.state_dict)
        if not found.fits:
            raise recognise(checkpoint.state_dict).refusal(checkpoint.path)
        note(found.note())
        arch, fit = found.fits[0].arch, found.fits[0]
    else:
        fits = (fit_of(typed, state) for state in _within(checkpoint.state_dict))
        arch, fit = typed, next(filter(None, fits), None)
    if len(libraries.without_auxiliary(arch, checkpoint.state_dict)) < len(checkpoint.state_dict):
        note("the auxiliary classifiers are left out: training alone needs them")
    return arch, fit


def _described(fit: Fit) -> str:
    channels = f", images of {plural(fit.channels, 'channel')}" if fit.channels else ""
    return f"config.json says {fit.arch}: {plural(fit.outputs, 'output')}{channels}"


def introduce(checkpoint: Checkpoint) -> list[str]:
    """Say which network a checkpoint of other origin is of, where that is found out quickly."""
    if checkpoint.meta:
        return []
    if checkpoint.described is not None:
        return [_described(checkpoint.described.fit)]
    found = _recognised(checkpoint.forms)
    return [found.note()] if found.fits else []


def _recognised(state: Mapping[str, TensorSpec]) -> Recognised:
    """Look for the networks that a state_dict is of, or that it holds as its only attribute."""
    tried = (recognise(inner, explain=False) for inner in _within(state))
    first = next(tried)
    return first if first.fits else next((found for found in tried if found.fits), first)


def _within(state: Mapping[str, TensorSpec]) -> Iterator[Mapping[str, TensorSpec]]:
    """Yield the state_dict, then what is left of its names without the attribute they all share.

    A module that trains a network keeps it as ``self.model``, or whatever it calls it.
    """
    while state:
        yield state
        attributes = {name.partition(".")[0] for name in state}
        if len(attributes) > 1 or not all("." in name for name in state):
            return
        state = {name.partition(".")[2]: form for name, form in state.items()}


def as_published(
    spec: DataSpec, checkpoint: Checkpoint, arch: str, fit: Fit | None, note: Note
) -> DataSpec:
    """Complete what is done to images as a network's library evaluates its weights, and say so.

    Only for a folder of images, and a network of torchvision, timm or a folder of the Hub; what was
    given stays.
    """
    if fit is None or fit.channels != 3 or not _is_folder(spec):
        return spec
    own = checkpoint.described
    known = view(arch, checkpoint.sha256, fit.side) if own is None else own.view
    if known is None:
        return spec
    size = spec.image_size or fit.side or known.crop
    resize = spec.resize or (known.resize if size == known.crop else round(size * _USUAL))
    chosen = replace(
        spec,
        image_size=size,
        resize=resize,
        interpolation=spec.interpolation or known.interpolation,
        mean=spec.mean or known.mean,
        std=spec.std or known.std,
    )
    typed = spec.image_size or spec.mean or spec.std
    note(f"images: {known.said}" + (", but for what was typed" if typed else ""))
    return chosen


def _is_folder(spec: DataSpec) -> bool:
    return canonical_name(spec.name) not in KNOWN and os.path.isdir(spec.name)


def check_data(fit: Fit, data: Data, checkpoint: Checkpoint) -> None:
    """Refuse data that the network of a checkpoint cannot have been trained on.

    Raises:
        InputError: another number or order of classes; of channels, of pixels or of features.
    """
    path, shape = checkpoint.path, data.input_shape
    if data.outputs != fit.outputs:
        theirs = f"{data.outputs} classes" if data.classes else f"{data.outputs} targets"
        raise InputError(
            f"{path} ends in {plural(fit.outputs, 'output')}, and {data.name} has {theirs}",
            "give the data it was trained on (the order of the classes counts too), or replace its "
            "last layer first",
        )
    named = checkpoint.described.classes if checkpoint.described else ()
    if sorted(named) == sorted(data.classes) and list(named) != list(data.classes):
        first = next(i for i, name in enumerate(named) if name != data.classes[i])
        raise InputError(
            f"class {first} is {named[first]!r} in {path}, and {data.classes[first]!r} in "
            f"{data.name}: the order differs",
            "rename the folders so that they sort in the network's order: 000-first, 001-second",
        )
    if fit.arch.startswith("mlp:") and prod(shape) != mlp_widths(fit.arch)[0]:
        raise InputError(
            f"{path} takes {mlp_widths(fit.arch)[0]} numbers, and {data.name} gives {prod(shape)}",
            "give the data it was trained on, images at that --image-size",
        )
    if fit.channels is None or len(shape) != 3:
        return  # what takes images says so when it is built
    if shape[0] != fit.channels:
        raise InputError(
            f"{path} takes images of {plural(fit.channels, 'channel')}, and those of {data.name} "
            f"have {shape[0]}",
            "give the data it was trained on",
        )
    if fit.side is not None and shape[1:] != (fit.side, fit.side):
        raise InputError(
            f"{path} takes images of {fit.side}x{fit.side} pixels, not {shape[1]}x{shape[2]}",
            f"pass --image-size {fit.side}",
        )
