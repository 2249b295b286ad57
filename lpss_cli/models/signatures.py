"""Which networks have which names in their state_dict: a table, so that none has to be built.

``signatures.json`` beside this file is written by ``python -m lpss_cli.models.signatures``: for
every known network the hash and the number of its names and its topmost modules. With ``timm`` as
an argument ``signatures_timm.json`` is written, the table of timm's networks. Many of these share
their names, so it has a hash of the shapes too, without those that classes or channels decide.
"""

from __future__ import annotations

import hashlib
import json
import sys
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lpss_cli.models import build, libraries
from lpss_cli.models.spec import KNOWN

# MERGED: What a network's state_dict looks like, found out without taking memory for the network.
# MERGED: A network is built once with impossible numbers of classes and channels. Where those
# MERGED: turn up in its
# MERGED: shapes, a file may have any number; where they do not, the file has to have the
# MERGED: network's own.
#: Primes that no layer has for a width.
_OUTPUTS, _CHANNELS = 1009, 1013
#: Two image sides that every network takes; where the shapes differ, they depend on the side.
_SIDES = (224, 448)
_FILLED = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)


class _WithoutMemory(TorchFunctionMode):
    """Gives parameters and buffers a shape and no memory.

    ``torch.device("meta")`` would do so to everything, and some networks work out their widths
    with small tensors.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLED:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@cache
def template(arch: str) -> Template:
    """Return the template of a network of images: ``resnet20``, ``torchvision:resnet18``, ….

    Raises:
        InputError: there is no such network, or its library is not installed.
    """
    with _WithoutMemory(), warnings.catch_warnings():
        # torchvision speaks of what it will do otherwise in some later version.
        warnings.simplefilter("ignore")
        first = second = _shapes(_make(arch, _SIDES[0]))
        if libraries.is_sized(arch):
            second = _shapes(_make(arch, _SIDES[1]))
    return Template(arch, {n: _freed(shape, second[n]) for n, shape in first.items()})


def _make(arch: str, side: int) -> nn.Module:
    shape = (_CHANNELS, side, side)
    return libraries.create(arch, shape, _OUTPUTS) if ":" in arch else build(arch, shape, _OUTPUTS)


def _shapes(network: nn.Module) -> dict[str, Shape]:
    state = network.state_dict()
    return {name: tuple(state[name].shape) for name in needed(state)}


def _freed(shape: Shape, other: Shape) -> tuple[int | str, ...]:
    names = {_OUTPUTS: "outputs", _CHANNELS: "channels"}
    return tuple(names.get(a, a) if a == b else "image" for a, b in zip(shape, other, strict=True))


PATH = Path(__file__).with_name("signatures.json")
TIMM_PATH = PATH.with_name("signatures_timm.json")


@dataclass(frozen=True)
class Signature:
    """What is known of a network without building it.

    Attributes:
        arch: its spec.
        hash: of all names, in any order.
        count: of names.
        modules: what the names begin with, up to the first dot.
        free: names of entries whose shapes follow from classes or channels; not known of all.
        shapes: hash of the shapes of all other entries.
    """

    arch: str
    hash: str
    count: int
    modules: frozenset[str]
    free: frozenset[str] = frozenset()
    shapes: str = ""

    def likeness(self, other: Signature) -> tuple[float, float]:
        """Return how alike the topmost modules and the numbers of names are, each in [0, 1]."""
        modules = len(self.modules & other.modules) / len(self.modules | other.modules)
        return modules, min(self.count, other.count) / max(self.count, other.count)


def sign(arch: str, names: Iterable[str]) -> Signature:
    """Return the signature of a network with these names."""
    names = sorted(names)
    modules = frozenset(name.partition(".")[0] for name in names)
    return Signature(arch, _digest(names), len(names), modules)


def hash_of_shapes(shapes: Mapping[str, Sequence[object]], free: Collection[str]) -> str:
    """Return a hash of all shapes but those of the ``free`` names, in any order."""
    return _digest(sorted(f"{n} {tuple(s)}" for n, s in shapes.items() if n not in free))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@cache
def table() -> tuple[Signature, ...]:
    """Return the signatures of all known networks: lpss's own, then torchvision's."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return tuple(
        Signature(arch, digest, count, frozenset(modules.split()))
        for arch, (digest, count, modules) in rows.items()
    )


@cache
def timm_table() -> tuple[Signature, ...]:
    """Return the signatures of timm's networks."""
    rows = json.loads(TIMM_PATH.read_text(encoding="utf-8"))
    return tuple(
        Signature(arch, digest, count, frozenset(), frozenset(free.split()), shapes)
        for arch, (digest, count, free, shapes) in rows.items()
    )


def known() -> list[str]:
    """Return the specs of all networks that belong into the table; imports torchvision."""
    from torchvision import models

    # mlp has no names of its own: they follow from the number of its layers.
    own = [name for name in KNOWN if name != "mlp"]
    return own + [f"torchvision:{name}" for name in models.list_models(module=models)]


def make(archs: Iterable[str]) -> str:
    """Return the table of these networks as JSON, a line for each."""
    signatures = [sign(arch, template(arch).shapes) for arch in archs]
    lines = [
        f"{json.dumps(s.arch)}: {json.dumps([s.hash, s.count, ' '.join(sorted(s.modules))])}"
        for s in signatures
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def make_timm(names: Iterable[str]) -> str:
    """Return the table of these networks of timm as JSON, a line for each that has a classifier."""
    lines = []
    for name in names:
        try:
            shapes = template(f"timm:{name}").shapes
        # Whatever else timm holds, or what needs another library: it is not recognised then.
        except Exception as error:
            print(f"{name} is left out: {type(error).__name__}")
            continue
        free = sorted(n for n, s in shapes.items() if any(isinstance(d, str) for d in s))
        signature = sign(f"timm:{name}", shapes)
        row = [signature.hash, signature.count, " ".join(free), hash_of_shapes(shapes, free)]
        if "outputs" in {d for n in free for d in shapes[n]}:
            lines.append(f"{json.dumps(signature.arch)}: {json.dumps(row)}")
        template.cache_clear()
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _main(library: str) -> None:
    if library == "timm":
        import timm

        TIMM_PATH.write_text(make_timm(timm.list_models()), encoding="utf-8")
    else:
        PATH.write_text(make(known()), encoding="utf-8")


if __name__ == "__main__":
    _main(sys.argv[1] if len(sys.argv) > 1 else "")


# MERGED: Which network a file's shapes fit, and with how many classes, channels and pixels.
Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
#: Older PyTorch did not count batches, and nothing here needs the count.
COUNTER = ".num_batches_tracked"


@dataclass(frozen=True)
class Fit:
    """A network that a state_dict is of.

    Attributes:
        arch: its spec.
        outputs: width of the last layer.
        channels: of the images it takes; None where it takes any shape.
        side: of the images in pixels, where the shapes say it.
    """

    arch: str
    outputs: int
    channels: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Template:
    """The shapes of a network's entries; a text stands for a number that is free.

    ``outputs`` and ``channels`` are the same number wherever they stand, ``image`` is any: it
    depends on the size of the images, which is checked when these are known.
    """

    arch: str
    shapes: Mapping[str, tuple[int | str, ...]]

    def compare(self, shapes: Shapes) -> tuple[Fit | None, list[str]]:
        """Compare with the shapes of a file: the fit, or else what differs, entry by entry."""
        problems = [f"{name} is missing" for name in self.shapes if name not in shapes]
        problems += [f"{name} is unknown" for name in shapes if name not in self.shapes]
        free: dict[str, int] = {}
        for name, expected in self.shapes.items():
            if name in shapes and not _fits(expected, shapes[name], free):
                wanted = tuple(free.get(str(size), size) for size in expected)
                wanted_text = ", ".join(map(str, wanted)) + ("," if len(wanted) == 1 else "")
                problems.append(f"{name} has shape {tuple(shapes[name])}, not ({wanted_text})")
        if problems or "outputs" not in free:
            return None, problems
        fit = Fit(self.arch, free["outputs"], free.get("channels"), self._side(shapes))
        return fit, []

    def _side(self, shapes: Shapes) -> int | None:
        """Return the image side that a table of positions is for, one for a patch and one more."""
        tables = [n for n, s in self.shapes.items() if len(s) == 3 and s[1] == "image"]
        patches = [shapes[n][-1] for n, s in self.shapes.items() if len(s) == 4]
        return patches[0] * isqrt(shapes[tables[0]][1] - 1) if tables and patches else None


def _fits(expected: tuple[int | str, ...], shape: Shape, free: dict[str, int]) -> bool:
    """Whether a shape is as expected; notes what the free numbers are."""
    if len(shape) != len(expected) or 0 in shape:
        return False
    for size, wanted in zip(shape, expected, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                return False
        elif wanted != "image" and free.setdefault(wanted, size) != size:
            return False
    return True


def needed(names: Iterable[str]) -> list[str]:
    """Return the names that a network cannot do without."""
    return [name for name in names if not name.endswith(COUNTER)]
