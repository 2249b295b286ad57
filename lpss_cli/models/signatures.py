"""What the state_dicts of known networks look like, so that none has to be built to be recognized.

``signatures.json`` beside this file has, for every network of lpss and torchvision, a hash of its
names, their number and its topmost modules. ``signatures_timm.json`` is the table of timm's
networks. Many of these share their names, so it also has a hash of the shapes, except for the
shapes that depend on the number of classes or channels. :mod:`lpss_cli.models.templates` writes
both. Importing this module does not import torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isqrt
from pathlib import Path

from lpss_cli.models.info import Fit

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

PATH = Path(__file__).with_name("signatures.json")


@dataclass(frozen=True)
class Signature:
    """What is known about a network without building it.

    Attributes:
        arch: spec of the network.
        hash: of all names, in any order.
        count: number of names.
        modules: what the names begin with, up to the first dot.
        free: names of entries whose shapes depend on the number of classes or channels; only in
            tables of libraries.
        shapes: hash of the shapes of all other entries; only in tables of libraries.
    """

    arch: str
    hash: str
    count: int
    modules: frozenset[str]
    free: frozenset[str] = frozenset()
    shapes: str = ""

    def similarity(self, other: Signature) -> tuple[float, float]:
        """Return how similar the topmost modules and the numbers of names are, each in [0, 1]."""
        modules = len(self.modules & other.modules) / len(self.modules | other.modules)
        return modules, min(self.count, other.count) / max(self.count, other.count)


def sign(arch: str, names: Iterable[str]) -> Signature:
    """Return the signature of a network with these names."""
    names = sorted(names)
    modules = frozenset(name.partition(".")[0] for name in names)
    return Signature(arch, _digest(names), len(names), modules)


def hash_of_shapes(shapes: Mapping[str, Sequence[object]], free: Collection[str]) -> str:
    """Return a hash of all shapes except those of the ``free`` names, in any order."""
    return _digest(sorted(f"{n} {tuple(s)}" for n, s in shapes.items() if n not in free))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@cache
def table() -> tuple[Signature, ...]:
    """Return the signatures of lpss's own networks, then of torchvision's."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return tuple(
        Signature(arch, digest, count, frozenset(modules.split()))
        for arch, (digest, count, modules) in rows.items()
    )


@cache
def library_table(file: str) -> tuple[Signature, ...]:
    """Return the signatures in a library's own table.

    Args:
        file: its name, :attr:`~lpss_cli.models.families.ModelFamily.signatures`.
    """
    rows = json.loads(PATH.with_name(file).read_text(encoding="utf-8"))
    return tuple(
        Signature(arch, digest, count, frozenset(), frozenset(free.split()), shapes)
        for arch, (digest, count, free, shapes) in rows.items()
    )


@dataclass(frozen=True)
class Template:
    """The shapes of a network's tensors, with texts for the numbers that are free.

    ``outputs`` and ``channels`` stand for the same number wherever they occur. ``image`` stands for
    any number: it depends on the size of the images, which is checked once that is known.

    Attributes:
        arch: spec of the network.
        shapes: name -> shape.
        auxiliary: prefixes of entries that a file may have in addition.
    """

    arch: str
    shapes: Mapping[str, tuple[int | str, ...]]
    auxiliary: tuple[str, ...] = ()

    def compare(self, shapes: Shapes) -> tuple[Fit | None, list[str]]:
        """Compare with the shapes of a file.

        Returns:
            The fit and an empty list, or None and the differences, entry by entry.
        """
        shapes = without(shapes, self.auxiliary)
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
        return Fit(self.arch, free["outputs"], free.get("channels"), self._side(shapes)), []

    def _side(self, shapes: Shapes) -> int | None:
        """Return the image side of a table of positions: one per patch, and one for the class."""
        tables = [n for n, s in self.shapes.items() if len(s) == 3 and s[1] == "image"]
        patches = [shapes[n][-1] for n, s in self.shapes.items() if len(s) == 4]
        return patches[0] * isqrt(shapes[tables[0]][1] - 1) if tables and patches else None


def without(shapes: Shapes, prefixes: tuple[str, ...]) -> Shapes:
    """Return the shapes of the entries whose names begin with none of the prefixes."""
    return {name: shape for name, shape in shapes.items() if not name.startswith(prefixes)}


def _fits(expected: tuple[int | str, ...], shape: Shape, free: dict[str, int]) -> bool:
    """Return whether a shape is as expected, and record the free numbers."""
    if len(shape) != len(expected) or 0 in shape:
        return False
    for size, wanted in zip(shape, expected, strict=True):
        if isinstance(wanted, int):
            if size != wanted:
                return False
        elif wanted != "image" and free.setdefault(wanted, size) != size:
            return False
    return True
