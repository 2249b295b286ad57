"""Which network a file's shapes fit, and with how many classes, channels and pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isqrt

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
