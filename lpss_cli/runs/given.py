"""Options by their names, as typed or as written in a recipe, and the request they make.

The names are those of the command line, with underscores. A value may be the text that a person
types (``"60x"``, ``"study,run"``) or what TOML makes of it (``0.9``, ``["study", "run"]``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lpss_cli import method as methods
from lpss_cli import targets
from lpss_cli.errors import InputError, nearest
from lpss_cli.runs.request import Request

_REQUEST: dict[str, Any] = {
    "data": str,
    "arch": str,
    "method": str,
    "sparsity": float,
    "target_drop": float,
    "tries": int,
    "epochs": int,
    "batch_size": int,
    "seed": int,
    "device": str,
    "threads": int,
    "precision": str,
    "distill": float,
    "temperature": float,
    "layer": list[str],
    "skip": list[str],
    "holdout": float,
    "checkpoint_steps": int,
    "eval_every": int,
}
_DATA: dict[str, Any] = {
    "data_dir": str,
    "target": str,
    "drop": list[str],
    "image_size": int,
    "mean": list[float],
    "std": list[float],
    "augment": str,
    "split_seed": int,
    "workers": int,
}
_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    list[str]: "a text, or a list of texts",
}


@cache
def kinds() -> dict[str, Any]:
    """Name → type of every option that says what to do; not of those that say where to write."""
    return methods.option_kinds() | _REQUEST | _DATA


def check(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values as the library takes them, without those that are None.

    Raises:
        InputError: a name that no option has, or a value of another kind than the option's.
    """
    for name in values:
        if name not in kinds():
            raise InputError(f"there is no option {name!r}", nearest(name, tuple(kinds())))
    return {name: _value(name, value) for name, value in values.items() if value is not None}


def request(
    typed: Mapping[str, Any], base: Mapping[str, Any] | None = None, **rest: Any
) -> Request:
    """Make the request of a command.

    Args:
        typed: the options that were given; one that is None was not.
        base: options of a recipe; what was given wins over them.
        rest: fields of ``Request`` that are no options of a run: ``out``, ``force``, ….

    Raises:
        InputError: see :func:`check`.
    """
    own, base = check(typed), check(base or {})
    if "method" in own and own["method"] != base.get("method", own["method"]):
        # The base's options are those of its own method.
        base = {name: v for name, v in base.items() if name in _REQUEST or name in _DATA}
    values = base | own
    fields = {name: value for name, value in values.items() if name in _REQUEST}
    data = {name: value for name, value in values.items() if name in _DATA}
    options = {name: v for name, v in values.items() if name not in fields and name not in data}
    return Request(**fields, data_overrides=data, options=options, **rest)


def _value(name: str, value: Any) -> Any:
    """Return one value as the library takes it."""
    if isinstance(value, Path):
        value = str(value)
    if name == "sparsity":
        return targets.parse(value)
    if name == "drop" and isinstance(value, str):
        return tuple(part for part in value.split(",") if part)
    if name in ("mean", "std"):
        return _numbers(value, f"--{name}")
    kind = kinds()[name]
    if kind == list[str]:
        value = (value,) if isinstance(value, str) else value
        fits = isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)
        value = tuple(value) if fits else value
    elif kind is float:
        fits = isinstance(value, int | float) and not isinstance(value, bool)
        value = float(value) if fits else value
    else:
        fits = type(value) is kind
    if not fits:
        flag = "--" + name.replace("_", "-")
        raise InputError(f"{flag} {value!r} is not {_WORDS[kind]}", f"give {_WORDS[kind]}")
    return value


def _numbers(value: Any, flag: str) -> tuple[float, ...]:
    """Read ``0.5,0.5,0.5``, one number, or a list of numbers."""
    parts = value.split(",") if isinstance(value, str) else value
    try:
        numbers = tuple(map(float, parts if isinstance(parts, list | tuple) else [parts]))
    except (TypeError, ValueError):
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{flag} {value!r} is no list of numbers", f"write {flag} 0.48,0.45,0.40")
    return numbers
