"""Which networks have which names in their state_dict: a table, so that none has to be built.

``signatures.json`` beside this file is written by ``python -m lpss_cli.models.signatures``: for
every known network the hash and the number of its names and its topmost modules.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .spec import KNOWN

PATH = Path(__file__).with_name("signatures.json")


@dataclass(frozen=True)
class Signature:
    """What is known of a network without building it.

    Attributes:
        arch: its spec.
        hash: of all names, in any order.
        count: of names.
        modules: what the names begin with, up to the first dot.
    """

    arch: str
    hash: str
    count: int
    modules: frozenset[str]

    def likeness(self, other: Signature) -> tuple[float, float]:
        """Return how alike the topmost modules and the numbers of names are, each in [0, 1]."""
        modules = len(self.modules & other.modules) / len(self.modules | other.modules)
        return modules, min(self.count, other.count) / max(self.count, other.count)


def sign(arch: str, names: Iterable[str]) -> Signature:
    """Return the signature of a network with these names."""
    names = sorted(names)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
    modules = frozenset(name.partition(".")[0] for name in names)
    return Signature(arch, digest, len(names), modules)


@cache
def table() -> tuple[Signature, ...]:
    """Return the signatures of all known networks: lpss's own, then torchvision's."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))
    return tuple(
        Signature(arch, digest, count, frozenset(modules.split()))
        for arch, (digest, count, modules) in rows.items()
    )


def known() -> list[str]:
    """Return the specs of all networks that belong into the table; imports torchvision."""
    from torchvision import models

    # mlp has no names of its own: they follow from the number of its layers.
    own = [name for name in KNOWN if name != "mlp"]
    return own + [f"torchvision:{name}" for name in models.list_models(module=models)]


def make(archs: Iterable[str]) -> str:
    """Return the table of these networks as JSON, a line for each."""
    from .templates import template

    signatures = [sign(arch, template(arch).shapes) for arch in archs]
    lines = [
        f"{json.dumps(s.arch)}: {json.dumps([s.hash, s.count, ' '.join(sorted(s.modules))])}"
        for s in signatures
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    PATH.write_text(make(known()), encoding="utf-8")
