"""Fields of dataclasses as options: their types, checks, aliases and texts."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pytest

from lpss_cli.errors import InputError
from lpss_cli.utils import options
from lpss_cli.utils.options import option

Count = TypeVar("Count", int, "int | None")


@dataclass(frozen=True)
class Base(Generic[Count]):
    """Options of a type that is open."""

    count: Count = option(None, "how many", low=1, high=9, default_text={"": "some", "x": "few"})


@dataclass(frozen=True)
class Example(Base["int | None"]):
    """An option of every kind."""

    rate: float = option(0.5, "how fast", low=0, high=1, aliases=("speed", "old_speed"))
    colors: tuple[str, ...] = option((), "which ones", key="color", choices=("red", "blue"))
    place: Path | None = option(None, "where", short="-p")
    loud: bool = option(False, "whether")
    shiny: bool = option(True, "whether or not")
    size: int = option(0, "how large", high=5)
    plain: int = 3


def test_names_types_and_flags_follow_from_the_fields():
    found = options.options(Example)
    assert list(found) == ["count", "rate", "colors", "place", "loud", "shiny", "size"]
    kinds = [item.kind for item in found.values()]
    assert kinds == [int, float, tuple[str, ...], Path, bool, bool, int]
    assert found["rate"].flags == ("--rate", "--speed", "--old-speed")
    assert found["place"].flags == ("--place", "-p")
    assert (found["colors"].flag, found["colors"].key) == ("--color", "color")
    assert found["colors"].text == "which ones: red, blue"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("count", 3, 3),
        ("rate", 1, 1.0),
        ("colors", "red", ("red",)),
        ("colors", ["red", "blue"], ("red", "blue")),
        ("place", Path("x"), Path("x")),
        ("loud", True, True),
    ],
)
def test_values_are_read_in_the_type_of_the_field(name, value, read):
    found = options.options(Example)[name].read(value)
    assert found == read
    assert type(found) is type(read) or isinstance(found, Path)


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("count", 3.0, "--count 3.0 is not a whole number"),
        ("count", True, "--count True is not a whole number"),
        ("count", "3", "--count '3' is not a whole number"),
        ("rate", "fast", "--rate 'fast' is not a number"),
        ("rate", True, "--rate True is not a number"),
        ("colors", 3, "--color 3 is not a string or a list of strings"),
        ("colors", ["red", 3], r"--color \['red', 3\] is not a string or a list of strings"),
        ("loud", 1, "--loud 1 is not true or false"),
        ("place", 1, "--place 1 is not a path"),
    ],
)
def test_values_of_another_type_are_refused(name, value, what):
    with pytest.raises(InputError, match=what):
        options.options(Example)[name].read(value)


@pytest.mark.parametrize(
    ("values", "what", "do"),
    [
        ({"count": 0}, "--count 0 is out of range", "give --count from 1 to 9"),
        ({"count": 10**30}, f"--count {10**30} is out of range", "give --count from 1 to 9"),
        ({"rate": 1.5}, "--rate 1.5 is out of range", "give --rate from 0 to 1"),
        ({"size": 6}, "--size 6 is out of range", "give --size up to 5"),
        ({"rate": float("nan")}, "--rate nan is out of range", "give --rate from 0 to 1"),
        ({"colors": ("red", "bleu")}, "--color 'bleu' is not a choice", "did you mean 'blue'"),
    ],
)
def test_values_that_are_not_allowed_are_refused(values, what, do):
    with pytest.raises(InputError) as error:
        options.check(Example(**values))
    assert error.value.what == what
    assert do in error.value.do


def test_what_is_allowed_passes_and_so_does_nothing():
    options.check(Example())
    options.check(Example(count=9, rate=0.0, colors=("blue",)))


def test_an_error_may_name_the_keyword():
    with pytest.raises(InputError, match=r"^count 0 is out of range") as error:
        options.options(Example)["count"].check(0, "count")
    assert error.value.do == "give count from 1 to 9"


def test_a_default_in_words_may_differ_by_command():
    found = options.options(Example)
    assert [found["count"].default_for(name) for name in ("", "x", "y")] == ["some", "few", "some"]
    assert [found[n].default_for() for n in ("rate", "colors", "loud")] == ["0.5", "", ""]
    assert [found[n].default_for() for n in ("shiny", "size")] == ["on", "0"]


def test_aliases_stand_for_their_key():
    declared = options.options(Example).values()
    assert options.canonical(declared, {"speed": 1, "other": 2}) == {"rate": 1, "other": 2}
    with pytest.raises(InputError, match="rate is given twice"):
        options.canonical(declared, {"speed": 1, "old_speed": 2})


def test_some_options_of_a_class():
    assert list(options.only(Example, "rate", "count")) == ["rate", "count"]
    assert list(options.without(Example, "rate", "count")) == [
        "colors",
        "place",
        "loud",
        "shiny",
        "size",
    ]


@options.keywords(options.only(Example, "rate", "colors", "count"))
def painted(wall, *, _chosen, brush=None, **rest):
    """Return everything."""
    return wall, _chosen, brush, rest


def test_a_function_gets_options_as_checked_keywords():
    defaults = {"rate": 0.5, "colors": (), "count": None}
    assert painted("w") == ("w", defaults, None, {})
    found = painted("w", rate=1, colors="red", brush="b", other=3, count=np.int64(4))
    assert found == ("w", {"rate": 1.0, "colors": ("red",), "count": 4}, "b", {"other": 3})
    assert type(found[1]["count"]) is int
    assert painted("w", speed=0.25, colors=None)[1] == {**defaults, "rate": 0.25}
    for wrong, what in (
        ({"rate": 2}, "rate 2 is out of range"),
        ({"rate": "x"}, "rate 'x' is not a number"),
        ({"colors": ["green"]}, "colors 'green' is not a choice"),
        ({"count": 1.5}, "count 1.5 is not a whole number"),
    ):
        with pytest.raises(InputError, match=what):
            painted("w", **wrong)


def test_the_signature_of_such_a_function_shows_them():
    text = "(wall, *, rate: 'float' = 0.5, colors: 'tuple[str, ...] | str' = (), "
    text += "count: 'int' = None, brush=None, **rest)"
    assert str(inspect.signature(painted)) == text
    assert painted.__doc__ == "Return everything."
