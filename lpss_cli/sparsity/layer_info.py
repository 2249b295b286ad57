"""What methods note about layers, and the columns of reports and plans that follow from it.

A method notes what it has chosen or measured for a layer in ``run.layer_info``, and an artifact
keeps that in its record. The method declares each entry as a :class:`LayerFact`, and what people
see of it as a :class:`LayerColumn`. Whatever reads a record, shows a layer or exports a file goes
through these declarations, so a method with other entries needs no change there.

This module does not import PyTorch, so that help is instant.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

#: What is noted about one layer, by name.
LayerInfo = Mapping[str, Any]


@dataclass(frozen=True)
class LayerFact:
    """One thing that a method may note about a layer.

    Attributes:
        name: its key in ``run.layer_info``.
        is_valid: whether a value from a file of unknown origin is one; None is always allowed.
        format: format specification of the value where a run announces it at its start; empty: it
            is not announced.
        exported: whether exported files carry it.
    """

    name: str
    is_valid: Callable[[Any], bool]
    format: str = ""
    exported: bool = False


@dataclass(frozen=True)
class LayerColumn:
    """One number per layer, in reports or in plans.

    Attributes:
        name: its key in JSON documents; also an attribute of the layer.
        value: (what is noted about the layer, fan-in, sparsity) → the number; None where there is
            none. The fan-in is None where rows are not simple slices.
        format: format specification of the number.
        title: heading of the column; empty: the name.
        predicts: name of the measured number that this one is a prediction of; empty: of none.
        at_target: in plans, whether it describes the layer at its target sparsity; else ``value``
            gets a sparsity of 0.
        minor: in plans, whether it is left out where the terminal is narrow.
    """

    name: str
    value: Callable[[LayerInfo, int | None, float], float | None]
    format: str = ".3f"
    title: str = ""
    predicts: str = ""
    at_target: bool = False
    minor: bool = False

    @property
    def heading(self) -> str:
        """The heading of the column."""
        return self.title or self.name

    def text(self, number: float | None) -> str:
        """Return a number of this column for a table; a dash where there is none."""
        return "-" if number is None else f"{number:{self.format}}"


@dataclass(frozen=True)
class WithColumns:
    """Base of what describes a layer: fields that are mappings hold columns, by name.

    A column is an attribute too: ``layer.p``.
    """

    def __getattr__(self, name: str) -> Any:
        for value in vars(self).values():
            if isinstance(value, Mapping) and name in value:
                return value[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return plain containers for JSON, with the columns among the other fields."""
        plain: dict[str, Any] = {}
        for name, value in asdict(self).items():
            plain |= value if isinstance(getattr(self, name), Mapping) else {name: value}
        return plain


_facts: dict[str, LayerFact] = {}
_columns: dict[str, LayerColumn] = {}
_Declared = TypeVar("_Declared", LayerFact, LayerColumn)


def declare(facts: Iterable[LayerFact], columns: Iterable[LayerColumn]) -> None:
    """Add the facts and the columns of reports of one method.

    Raises:
        TypeError: another method has declared the same name in another way.
    """
    for fact in facts:
        _add(_facts, fact)
    for column in columns:
        _add(_columns, column)


def _add(known: dict[str, _Declared], declared: _Declared) -> None:
    if known.setdefault(declared.name, declared) != declared:
        raise TypeError(f"two methods declare {declared.name!r} in different ways")


def facts() -> dict[str, LayerFact]:
    """Return what any method may note about a layer, by name."""
    _load_methods()
    return _facts


def columns() -> dict[str, LayerColumn]:
    """Return the columns of reports that any method declares, by name."""
    _load_methods()
    return _columns


def _load_methods() -> None:
    # By name, as the methods are plug-ins: this module is below them, and knows none of them.
    importlib.import_module("lpss_cli.methods")


def is_valid(info: LayerInfo) -> bool:
    """Whether all that a file says was noted about a layer is what the methods declare.

    Entries that no method declares are not looked at.
    """
    known = facts()
    return all(
        value is None or name not in known or known[name].is_valid(value)
        for name, value in info.items()
    )


def announcements(layer_info: Mapping[str, LayerInfo]) -> list[str]:
    """Return a line for every value that is announced at the start of a run.

    Args:
        layer_info: name of a layer → what is noted about it.
    """
    lines = []
    for fact in facts().values():
        layers: dict[Any, list[str]] = {}
        for name, info in layer_info.items():
            if fact.format and fact.name in info:
                layers.setdefault(info[fact.name], []).append(name)
        for value, names in layers.items():
            listed = ", ".join(names) if len(names) <= 4 else f"{len(names)} weights"
            lines.append(f"{fact.name} = {value:{fact.format}} on {listed}")
    return lines
