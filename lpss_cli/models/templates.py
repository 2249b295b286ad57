"""Templates of known networks, made without memory for their tensors; and the tables of signatures.

A network is created once with impossible numbers of classes and channels. Where these occur in its
shapes, a file may have any number; everywhere else, the file must have the network's own.

``python -m lpss_cli.models.templates`` writes ``signatures.json``; with ``timm`` as an argument it
writes ``signatures_timm.json``.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lpss_cli.models.families import FAMILIES, TIMM, TORCHVISION, family_of
from lpss_cli.models.info import needed
from lpss_cli.models.signatures import PATH, Shape, Template, hash_of_shapes, sign

#: Primes that are not the width of any layer.
_OUTPUTS, _CHANNELS = 1009, 1013
#: Two image sides that every network takes; shapes that differ between them depend on the side.
_SIDES = (224, 448)
_ALLOCATING = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


@cache
def template(arch: str) -> Template:
    """Return the template of an image network: ``resnet20``, ``torchvision:resnet18``, ….

    Raises:
        InputError: there is no such network, or its library is not installed.
    """
    family = family_of(arch)
    with WithoutMemory(), warnings.catch_warnings():
        # torchvision warns of defaults that later versions will change.
        warnings.simplefilter("ignore")
        first = second = _shapes(_create(arch, _SIDES[0]))
        if family.depends_on_image_size(arch):
            second = _shapes(_create(arch, _SIDES[1]))
    shapes = {name: _with_free(shape, second[name]) for name, shape in first.items()}
    return Template(arch, shapes, family.auxiliary(arch))


class WithoutMemory(TorchFunctionMode):
    """Gives parameters and buffers a shape and no memory.

    ``torch.device("meta")`` would do so for all tensors, but some networks compute their widths
    with small ones.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _ALLOCATING:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _create(arch: str, side: int) -> nn.Module:
    return family_of(arch).create(arch, (_CHANNELS, side, side), _OUTPUTS)


def _shapes(network: nn.Module) -> dict[str, Shape]:
    state = network.state_dict()
    return {name: tuple(state[name].shape) for name in needed(state)}


def _with_free(shape: Shape, other: Shape) -> tuple[int | str, ...]:
    texts = {_OUTPUTS: "outputs", _CHANNELS: "channels"}
    return tuple(texts.get(a, a) if a == b else "image" for a, b in zip(shape, other, strict=True))


def known() -> list[str]:
    """Return the specs of all networks that belong into the table; imports torchvision."""
    from torchvision import models

    own = [name for family in FAMILIES if family.has_template for name in family.names]
    return own + [TORCHVISION.prefix + name for name in models.list_models(module=models)]


def make(archs: Iterable[str]) -> str:
    """Return the table of these networks as JSON, one line for each."""
    signatures = [sign(arch, template(arch).shapes) for arch in archs]
    lines = [
        f"{json.dumps(s.arch)}: {json.dumps([s.hash, s.count, ' '.join(sorted(s.modules))])}"
        for s in signatures
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def make_timm(names: Iterable[str]) -> str:
    """Return the table of these networks of timm as JSON, one line for each classifier."""
    lines = []
    for name in names:
        try:
            shapes = template(TIMM.prefix + name).shapes
        # Networks that are not image classifiers or need another library: they are not recognized.
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}")
            continue
        free = sorted(n for n, s in shapes.items() if any(isinstance(d, str) for d in s))
        signature = sign(TIMM.prefix + name, shapes)
        row = [signature.hash, signature.count, " ".join(free), hash_of_shapes(shapes, free)]
        if "outputs" in {d for n in free for d in shapes[n]}:
            lines.append(f"{json.dumps(signature.arch)}: {json.dumps(row)}")
        template.cache_clear()
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _main(library: str) -> None:
    if library == TIMM.library:
        import timm

        path, content = PATH.with_name(TIMM.signatures), make_timm(timm.list_models())
    else:
        path, content = PATH, make(known())
    path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else "")
