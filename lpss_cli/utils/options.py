"""Options, each of which is declared once: as a field of a small frozen dataclass.

::

    @dataclass(frozen=True)
    class SearchOptions:
        tries: int | None = option(None, "number of sparsities to try", low=1, default_text="6")

The flag of the command line (``--tries``), the key of a recipe (``tries``), the checks of its type
and its range, the keyword of the Python interface and the row of the documentation all follow from
that declaration.

A field has the type ``T`` or ``T | None``, where ``T`` is ``bool``, ``int``, ``float``, ``str``,
``Path``, ``tuple[str, ...]`` or ``tuple[float, ...]``. A type variable stands for the first type
that it is constrained to. This module does not import PyTorch, so that help is instant.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

from lpss_cli.errors import InputError, nearest

#: Panels of the help, in which options stand together.
SPARSITY_PANEL, TRAINING_PANEL = "Sparsity", "Training"
DATA_PANEL, OUTPUT_PANEL, METHOD_PANEL = "Data and network", "Output", "Options of methods"

Result = TypeVar("Result")
#: Reads a value as it was typed or as TOML has it: (value, name of the option) -> value.
Parser = Callable[[Any, str], Any]

_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a string",
    bool: "true or false",
    Path: "a path",
    tuple[str, ...]: "a string or a list of strings",
}
_OPTION = "option"  # the key of an option in the metadata of its field


@dataclasses.dataclass(frozen=True)
class Option:
    """One option, as ``options`` returns it.

    Attributes:
        name: Name of the field, which is also the keyword of the Python interface.
        kind: Type of a value, without None.
        default: Value of the field when nothing is given; None where it is chosen later.
        help: What the option is, without a full stop at the end.
        low: Smallest number allowed.
        high: Largest number allowed.
        high_text: The largest number in words, for the documentation.
        choices: Values allowed; empty for any.
        group: Panel of the help.
        key: Key of a recipe, from which the flag follows: ``batch_size`` gives ``--batch-size``.
        short: Short flag, such as ``-s``.
        aliases: Other keys, accepted wherever the key is.
        default_text: The default in words; a mapping has them by command, ``""`` for the others.
        python_default: Default of the Python interface, where it is not ``default``.
        suggestions: Returns values that a shell may complete; others are allowed too.
        several: Several values may be typed, separated by commas.
        parse: Reads a value; by default, a value is taken as its type has it.
        path: A string that names a file or folder.
        environment: Environment variable that stands in for the option.
        excludes: Keys of options that cannot be typed with it.
        recipe: A recipe may set the option.
        advanced: Only the help of all options shows it.
    """

    name: str
    kind: Any
    default: Any
    help: str
    low: float
    high: float
    high_text: str
    choices: tuple[str, ...]
    group: str
    key: str
    short: str
    aliases: tuple[str, ...]
    default_text: str | Mapping[str, str]
    python_default: Any
    suggestions: Callable[[], Sequence[str]] | None
    several: bool
    parse: Parser | None
    path: bool
    environment: str
    excludes: tuple[str, ...]
    recipe: bool
    advanced: bool

    @property
    def flag(self) -> str:
        """The long flag of the command line."""
        return _flag(self.key)

    @property
    def flags(self) -> tuple[str, ...]:
        """All flags of the command line: the long one first, those of the aliases last."""
        short = (self.short,) if self.short else ()
        return (self.flag, *short, *self.alias_flags)

    @property
    def alias_flags(self) -> tuple[str, ...]:
        """The flags of the aliases."""
        return tuple(map(_flag, self.aliases))

    @property
    def keys(self) -> tuple[str, ...]:
        """The key and its aliases."""
        return (self.key, *self.aliases)

    @property
    def is_path(self) -> bool:
        """Whether a value names a file or folder."""
        return self.path or self.kind is Path

    @property
    def text(self) -> str:
        """What the option is, with its choices."""
        return f"{self.help}: {', '.join(self.choices)}" if self.choices else self.help

    def default_for(self, command: str = "") -> str:
        """Return the default in words, as a command has it; empty where there is none to tell."""
        if isinstance(self.default_text, str):
            told = self.default_text
        else:
            told = self.default_text.get(command, self.default_text.get("", ""))
        if self.kind is bool and self.default:
            return "on"
        if told or self.default is None or self.default is False or self.default == ():
            return told
        return ",".join(self.default) if isinstance(self.default, tuple) else f"{self.default}"

    def check(self, value: Any, label: str = "") -> None:
        """Check a value against the choices and the range; None is always allowed.

        Args:
            value: Of the type of the option.
            label: What the option is called in errors; by default its flag.

        Raises:
            InputError: It is not among the choices, or out of range.
        """
        label = label or self.flag
        for part in value if isinstance(value, tuple) else (value,):
            if self.choices and part is not None and part not in self.choices:
                hint = nearest(str(part), self.choices)
                raise InputError(f"{label} {part!r} is not a choice", hint)
            is_number = isinstance(part, int | float) and not isinstance(part, bool)
            if is_number and self.range_text and not self.low <= part <= self.high:
                what = f"{label} {_number(part)} is out of range"
                raise InputError(what, f"give {label} {self.range_text}")

    @property
    def range_text(self) -> str:
        """The range in words: ``from 0 to 1``, ``from 1 up``, ``up to 9``; empty without limits."""
        if self.low == -math.inf:
            return "" if self.high == math.inf else f"up to {_number(self.high)}"
        low = f"from {_number(self.low)}"
        return f"{low} up" if self.high == math.inf else f"{low} to {_number(self.high)}"

    def read(self, value: Any, label: str = "") -> Any:
        """Return a value, as it was typed or as TOML has it, in the type of the option.

        Args:
            value: A string, a number, a path, true or false, or a list of strings or numbers.
            label: What the option is called in errors; by default its flag.

        Raises:
            InputError: It is of another type.
        """
        label = label or self.flag
        if self.parse is not None:
            return self.parse(value, label)
        if isinstance(value, Path) and self.kind is not Path:
            value = str(value)
        if isinstance(value, str) and self.kind == tuple[str, ...]:
            value = (value,)
        try:
            return conform(value, self.kind)
        except TypeError:
            expected = _KINDS[self.kind]
            raise InputError(f"{label} {value!r} is not {expected}", f"give {expected}") from None


def option(
    default: Any,
    help: str,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    high_text: str = "",
    choices: tuple[str, ...] = (),
    group: str = "",
    key: str = "",
    short: str = "",
    aliases: tuple[str, ...] = (),
    default_text: str | Mapping[str, str] = "",
    python_default: Any = None,
    suggestions: Callable[[], Sequence[str]] | None = None,
    several: bool = False,
    parse: Parser | None = None,
    path: bool = False,
    environment: str = "",
    excludes: tuple[str, ...] = (),
    recipe: bool = True,
    advanced: bool = False,
) -> Any:
    """Declare a field of a dataclass as an option; see ``Option`` for the arguments.

    The name and the type of the option are those of the field, and so is the key by default.
    """
    declared = Option(
        name="",
        kind=None,
        default=default,
        help=help,
        low=low,
        high=high,
        high_text=high_text,
        choices=choices,
        group=group,
        key=key,
        short=short,
        aliases=aliases,
        default_text=default_text,
        python_default=default if python_default is None else python_default,
        suggestions=suggestions,
        several=several,
        parse=parse,
        path=path,
        environment=environment,
        excludes=excludes,
        recipe=recipe,
        advanced=advanced,
    )
    return dataclasses.field(default=default, metadata={_OPTION: declared})


def options(cls: Any) -> dict[str, Option]:
    """Return the options that a dataclass declares, by the names of their fields.

    Fields that were not made by ``option`` are left out.

    Args:
        cls: A dataclass.
    """
    return dict(_options(cls))


@cache
def _options(cls: Any) -> dict[str, Option]:
    declared = [field for field in dataclasses.fields(cls) if _OPTION in field.metadata]
    return {
        field.name: dataclasses.replace(
            field.metadata[_OPTION],
            name=field.name,
            kind=kinds(cls)[field.name],
            key=field.metadata[_OPTION].key or field.name,
        )
        for field in declared
    }


def kinds(cls: Any) -> dict[str, Any]:
    """Return the types of a dataclass's fields, without None, by their names."""
    return dict(_kinds(cls))


@cache
def _kinds(cls: Any) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: _without_none(hints[field.name]) for field in dataclasses.fields(cls)}


def only(cls: Any, *names: str) -> dict[str, Option]:
    """Return some of the options that a dataclass declares, in this order."""
    declared = options(cls)
    return {name: declared[name] for name in names}


def without(cls: Any, *names: str) -> dict[str, Option]:
    """Return the options that a dataclass declares, except some."""
    return {name: found for name, found in options(cls).items() if name not in names}


def check(values: Any) -> None:
    """Check all options of a dataclass's instance against their choices and ranges.

    Raises:
        InputError: A value is not among the choices, or out of range.
    """
    for name, declared in options(type(values)).items():
        declared.check(getattr(values, name))


def refuse_excluded(typed: Iterable[Option]) -> None:
    """Refuse options that exclude each other.

    Args:
        typed: All options that were typed.

    Raises:
        InputError: One of them excludes another.
    """
    by_key = {item.key: item for item in typed}
    for item in by_key.values():
        for key in item.excludes:
            if key in by_key:
                what = f"{item.flag} and {by_key[key].flag} exclude each other"
                raise InputError(what, "give one of the two")


def canonical(declared: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by the keys of their options; keys of no option stay as they are.

    Raises:
        InputError: An option is given twice, by its key and by an alias.
    """
    keys = {alias: found.key for found in declared for alias in found.aliases}
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        key = keys.get(name, name)
        if key in renamed:
            raise InputError(
                f"{key} is given twice, by two names", f"leave one of them out: {name}"
            )
        renamed[key] = value
    return renamed


def keywords(declared: Mapping[str, Option]) -> Callable[[Callable[..., Result]], Any]:
    """Give a function options as keywords, which are checked and which ``help`` shows.

    The function gets their values as a mapping ``_chosen`` by name: what was given, else the
    defaults of the Python interface. None is the same as nothing.

    Args:
        declared: The options by name.

    Raises:
        InputError: When the function is called: a value is of another type, or not allowed.
    """
    aliases = {alias: name for name, item in declared.items() for alias in item.aliases}

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def wrapper(*args: Any, **given: Any) -> Result:
            given = {aliases.get(name, name): value for name, value in given.items()}
            chosen = {name: item.python_default for name, item in declared.items()}
            for name in given.keys() & declared.keys():
                value = given.pop(name)
                if value is not None:
                    chosen[name] = declared[name].read(value, name)
                    declared[name].check(chosen[name], name)
            return function(*args, _chosen=chosen, **given)

        wrapper.__signature__ = _signature(function, declared)  # type: ignore[attr-defined]  # for help
        return wrapper

    return decorate


def _signature(function: Callable[..., Any], declared: Mapping[str, Option]) -> inspect.Signature:
    """Return the signature of a function with options as keywords, before its own keywords."""
    signature = inspect.signature(function)
    own = [item for item in signature.parameters.values() if item.name != "_chosen"]
    added = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=item.python_default,
            annotation=_annotation(item),
        )
        for name, item in declared.items()
    ]
    keywords = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    first = next((i for i, item in enumerate(own) if item.kind in keywords), len(own))
    return signature.replace(parameters=[*own[:first], *added, *own[first:]])


def _annotation(item: Option) -> str:
    """Return the type of a keyword: a string stands for what is typed, and for a list of one."""
    generic = bool(get_args(item.kind))
    name = str(item.kind) if generic else item.kind.__name__
    return f"{name} | str" if generic or item.parse else name


def conform(value: Any, kind: Any) -> Any:
    """Return a value in the type of an option: whole numbers may be floats, lists are tuples.

    Raises:
        TypeError: It is of another type.
    """
    if get_args(kind):
        part, _ = get_args(kind)
        if isinstance(value, list | tuple):
            return tuple(map(partial(conform, kind=part), value))
    elif kind in (int, float):
        number: type[Any] = numbers.Real if kind is float else numbers.Integral  # NumPy's too
        if isinstance(value, number) and type(value) is not bool:
            return kind(value)
    elif isinstance(value, kind):
        return value
    raise TypeError(f"expected {_KINDS.get(kind, 'a list')}, found {value!r}")


def comma_separated(value: Any, name: str) -> tuple[Any, ...]:
    """Read ``a,b``, or a list of values."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value)


def _without_none(hint: Any) -> Any:
    """Return the type of an option: ``T`` of ``T | None``, and of a variable its first type."""
    if isinstance(hint, TypeVar):
        return _without_none(hint.__constraints__[0])
    if get_args(hint) and NoneType in get_args(hint):
        (hint,) = (part for part in get_args(hint) if part is not NoneType)
    return hint


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value}"
