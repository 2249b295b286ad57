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
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lpss_cli.models.spec import KNOWN

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
    from lpss_cli.models.templates import template

    signatures = [sign(arch, template(arch).shapes) for arch in archs]
    lines = [
        f"{json.dumps(s.arch)}: {json.dumps([s.hash, s.count, ' '.join(sorted(s.modules))])}"
        for s in signatures
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def make_timm(names: Iterable[str]) -> str:
    """Return the table of these networks of timm as JSON, a line for each that has a classifier."""
    from lpss_cli.models.templates import template

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
