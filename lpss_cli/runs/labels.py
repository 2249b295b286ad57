"""What the runs of a comparison are called: by their targets as they were typed.

A run keeps its name in the file of results. ``0.9``, ``90%`` and ``10x`` are the same target, so
what was run under one name is found under another.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from lpss_cli.errors import InputError
from lpss_cli.targets import parse

#: A fraction of zeros, or as people type it: ``"0.9"``, ``"90%"``, ``"60x"``.
Target = float | str
_TARGET = re.compile("(?<= at )[^,]+(?=, seed )")


def sparsity_of(target: Target) -> float:
    """Return a target as a fraction of zeros.

    Raises:
        InputError: it is no number.
    """
    return parse(target, "--sparsities")


def shown(target: Target) -> str:
    """Return a target as it was typed."""
    return target if isinstance(target, str) else f"{target:.6g}"


def label(method: str, target: Target, seed: int, options: Mapping[str, Any]) -> str:
    """Return what a run is called."""
    return f"{method} at {shown(target)}, seed {seed}, {json.dumps(options)}"


def same(target: Target) -> str:
    """Return what ways to type a target have in common: six digits of the fraction."""
    return shown(sparsity_of(target))


def run_of(label: str) -> str:
    """Return what labels of the same run have in common.

    It is the label itself where the target is a fraction of up to six digits: older results name
    all runs so.
    """
    with suppress(InputError):
        return _TARGET.sub(lambda found: same(found[0]), label)
    return label
