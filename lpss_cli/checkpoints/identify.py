"""Identifying a checkpoint: which network it is of, and what data and images fit it.

:func:`identify` finds everything out once, and its :class:`~lpss_cli.models.ModelInfo` is handed on
to whatever builds the network, loads its weights and prepares its data.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from lpss_cli.data.spec import KNOWN, DataSpec, canonical_name
from lpss_cli.errors import InputError
from lpss_cli.models import Fit, ModelInfo, find_family, runs_code
from lpss_cli.models.checks import plural
from lpss_cli.utils.arrays import TensorSpec

if TYPE_CHECKING:
    from lpss_cli.checkpoints.loading import Checkpoint
    from lpss_cli.data import Data
    from lpss_cli.models.recognition import Recognition

Note = Callable[[str], None]
#: Networks may be evaluated on images a little larger than the crop; this is the usual ratio.
_USUAL_RESIZE = 256 / 224


def identify(
    checkpoint: Checkpoint, typed: str | None = None, note: Note = lambda _: None
) -> ModelInfo:
    """Find out which network a checkpoint is of, and everything else that it shows about it.

    The record of an lpss checkpoint names the network. For other checkpoints, a folder of the Hub
    does, or it is recognized by the names and shapes of the tensors.

    Args:
        checkpoint: the checkpoint.
        typed: the network that the user asked for, instead of what the checkpoint shows.
        note: called with what was recognized and what is left out.

    Raises:
        InputError: no known network fits, or a record names no network, or code of the user that
            nobody typed.
    """
    if checkpoint.meta:
        return _recorded(checkpoint, typed)
    from lpss_cli.models.recognition import fit_of, recognize

    fit: Fit | None
    if typed is not None:
        fits = (fit_of(typed, state) for state in _within(checkpoint.state_dict))
        arch, fit = typed, next(filter(None, fits), None)
    else:
        if checkpoint.description is not None:
            fit = checkpoint.description.fit
            note(_described(fit))
        else:
            recognition = _recognize(checkpoint.state_dict)
            if not recognition.fits:
                raise recognize(checkpoint.state_dict).refusal(checkpoint.path)
            fit = recognition.fits[0]
            note(recognition.note())
        arch = fit.arch
    info = model_info(arch, fit, checkpoint)
    if any(name.startswith(info.auxiliary) for name in checkpoint.state_dict):
        note("the auxiliary classifiers are left out: only training needs them")
    return info


def model_info(arch: str, fit: Fit | None, checkpoint: Checkpoint) -> ModelInfo:
    """Return what is known about the network of a checkpoint without a record of lpss.

    Args:
        arch: spec of the network.
        fit: how the tensors fit it, if it is known.
        checkpoint: its hash tells which published weights it holds.
    """
    family, description = find_family(arch), checkpoint.description
    preprocessing = None
    # Published networks take color images.
    if fit is not None and fit.channels == 3:
        if description is not None:
            preprocessing = description.preprocessing
        elif family is not None:
            preprocessing = family.preprocessing(arch, checkpoint.sha256, fit.side)
    return ModelInfo(
        arch,
        fit,
        outputs=fit.outputs if fit else None,
        classes=description.classes if description else (),
        auxiliary=family.auxiliary(arch) if family else (),
        preprocessing=preprocessing,
    )


def _recorded(checkpoint: Checkpoint, typed: str | None) -> ModelInfo:
    """Return what lpss's own record says about the network.

    Raises:
        InputError: the record names no network, or code of the user, and nobody typed one.
    """
    recorded, arch = checkpoint.meta.get("arch"), typed
    if arch is None:
        if not isinstance(recorded, str):
            raise InputError(
                f"{checkpoint.path} does not say which network it is",
                "pass --arch NAME or --arch file.py:factory",
            )
        if runs_code(recorded):
            raise InputError(
                f"{checkpoint.path} was made with --arch {recorded}, code that is not imported "
                "unless you ask for it",
                f"pass --arch {recorded} if you trust it",
            )
        arch = recorded
    family = find_family(arch)
    return ModelInfo(
        arch,
        recorded=True,
        input_shape=tuple(checkpoint.meta.get("input_shape") or ()) or None,
        outputs=checkpoint.meta.get("outputs") or None,
        auxiliary=family.auxiliary(arch) if family else (),
    )


def introduce(checkpoint: Checkpoint) -> list[str]:
    """Return notes on which network a checkpoint of other origin is of, if that is quick to find.

    Where nothing fits, the nearest networks are not looked for.
    """
    if checkpoint.meta:
        return []
    if checkpoint.description is not None:
        return [_described(checkpoint.description.fit)]
    recognition = _recognize(checkpoint.specs)
    return [recognition.note()] if recognition.fits else []


def _described(fit: Fit) -> str:
    channels = f", images of {plural(fit.channels, 'channel')}" if fit.channels else ""
    return f"config.json says {fit.arch}: {plural(fit.outputs, 'output')}{channels}"


def _recognize(state: Mapping[str, TensorSpec]) -> Recognition:
    """Look for the networks that a state_dict is of, or that it holds as its only attribute."""
    from lpss_cli.models.recognition import recognize

    tried = (recognize(inner, explain=False) for inner in _within(state))
    first = next(tried)
    return first if first.fits else next((found for found in tried if found.fits), first)


def _within(state: Mapping[str, TensorSpec]) -> Iterator[Mapping[str, TensorSpec]]:
    """Yield the state_dict, then its entries without the attribute that all names begin with.

    A module that trains a network keeps it as ``self.model``, or whatever it calls it.
    """
    while state:
        yield state
        attributes = {name.partition(".")[0] for name in state}
        if len(attributes) > 1 or not all("." in name for name in state):
            return
        state = {name.partition(".")[2]: spec for name, spec in state.items()}


def complete_data_spec(spec: DataSpec, info: ModelInfo, note: Note) -> DataSpec:
    """Complete a data specification with the preprocessing that a network expects, and say so.

    The record of an lpss checkpoint names its data completely. A network of other origin takes
    arrays as they are, and the images of a folder as its library evaluates it. What was given
    stays.
    """
    if info.recorded:
        return spec
    spec = spec.unstandardized()
    published = info.preprocessing
    if published is None or not _is_folder(spec):
        return spec
    size = spec.image_size or (info.fit and info.fit.side) or published.crop
    resize = published.resize if size == published.crop else round(size * _USUAL_RESIZE)
    completed = replace(
        spec,
        image_size=size,
        resize=spec.resize or resize,
        interpolation=spec.interpolation or published.interpolation,
        mean=spec.mean or published.mean,
        std=spec.std or published.std,
    )
    is_given = spec.image_size or spec.mean or spec.std
    note(f"images: {published.source}" + (", except for what was given" if is_given else ""))
    return completed


def _is_folder(spec: DataSpec) -> bool:
    return canonical_name(spec.name) not in KNOWN and os.path.isdir(spec.name)


def check_data(info: ModelInfo, data: Data, checkpoint: Checkpoint) -> None:
    """Refuse data on which the network of a checkpoint cannot have been trained.

    Nothing is checked if it is not known how the tensors fit the network.

    Raises:
        InputError: the number or the order of the classes differs, or the number of channels,
            pixels or features.
    """
    fit, path = info.fit, checkpoint.path
    if fit is None:
        return
    if data.outputs != fit.outputs:
        theirs = f"{data.outputs} classes" if data.classes else f"{data.outputs} targets"
        raise InputError(
            f"{path} ends in {plural(fit.outputs, 'output')}, and {data.name} has {theirs}",
            "give the data it was trained on (the order of the classes counts too), or replace its "
            "last layer first",
        )
    _check_classes(info.classes, data, checkpoint)
    _check_inputs(fit, data, checkpoint)


def _check_classes(classes: tuple[str, ...], data: Data, checkpoint: Checkpoint) -> None:
    """Refuse the same classes in another order."""
    if sorted(classes) == sorted(data.classes) and list(classes) != list(data.classes):
        first = next(i for i, name in enumerate(classes) if name != data.classes[i])
        raise InputError(
            f"class {first} is {classes[first]!r} in {checkpoint.path}, and "
            f"{data.classes[first]!r} in {data.name}: the order differs",
            "rename the folders so that they sort in the network's order: 000-first, 001-second",
        )


def _check_inputs(fit: Fit, data: Data, checkpoint: Checkpoint) -> None:
    """Refuse samples of another number of features, channels or pixels."""
    path, shape = checkpoint.path, data.input_shape
    family = find_family(fit.arch)
    sizes = family.sizes_of(fit.arch) if family else None
    if sizes is not None and prod(shape) != sizes[0]:
        raise InputError(
            f"{path} takes {sizes[0]} numbers, and {data.name} gives {prod(shape)}",
            "give the data it was trained on, images at that --image-size",
        )
    if fit.channels is None or len(shape) != 3:
        return  # a network that takes images says so when it is built
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
