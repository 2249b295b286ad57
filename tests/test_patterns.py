"""Globs on parameter names and values given for them."""

from __future__ import annotations

import pytest

from lpss_cli.errors import InputError
from lpss_cli.patterns import matching, per_name, resolve

NAMES = ["conv1.weight", "block.0.fc1.weight", "block.0.fc2.weight", "attn.in_proj_weight", "head"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", NAMES),
        ("conv1.weight", ["conv1.weight"]),
        ("conv1", ["conv1.weight"]),  # by layer
        ("attn", ["attn.in_proj_weight"]),
        ("block.*", NAMES[1:3]),
        ("*.fc?", NAMES[1:3]),
        ("*fc[13]*", NAMES[1:2]),
        ("head", ["head"]),
        ("conv", []),  # a whole name or nothing
        ("CONV1", []),
        ("block", []),
    ],
)
def test_globs_match_parameters_and_layers(pattern, expected):
    assert matching(pattern, NAMES) == expected


def test_resolve_keeps_the_order_of_the_names_and_lists_each_once():
    assert resolve(["head", "block*", "*fc1*"], NAMES, "--skip") == [*NAMES[1:3], "head"]
    assert resolve([], NAMES, "--skip") == []


def test_a_pattern_that_matches_nothing_names_the_option_and_the_weights():
    with pytest.raises(InputError, match=r"--skip 'fc9' matches no weight") as error:
        resolve(["head", "fc9"], NAMES, "--skip")
    assert all(name in error.value.do for name in NAMES)


def test_later_values_win():
    values = per_name(["1.1", "block*=1.2", "*fc2*=1.5"], NAMES, "--p", float)
    assert values == dict(zip(NAMES, [1.1, 1.2, 1.5, 1.1, 1.1], strict=True))
    assert per_name(["block*=1.2", "2"], NAMES, "--p", float) == dict.fromkeys(NAMES, 2.0)


def test_names_without_a_value_are_left_out():
    assert per_name(["head=3"], NAMES, "--p", int) == {"head": 3}
    assert per_name([], NAMES, "--p", int) == {}


@pytest.mark.parametrize("item", ["much", "head=", "head=much", ""])
def test_a_value_that_does_not_parse_is_shown(item):
    with pytest.raises(InputError, match="is not a number") as error:
        per_name([item], NAMES, "--p", float)
    assert repr(item) in error.value.what


def test_what_the_parser_says_about_a_value_reaches_the_user():
    def picky(text: str) -> float:
        raise InputError(f"{text} is too small")

    with pytest.raises(InputError, match=r"^0\.1 is too small$"):
        per_name(["0.1"], NAMES, "--p", picky)


def test_an_unmatched_pattern_with_a_value_is_refused():
    with pytest.raises(InputError, match="'tail' matches no weight"):
        per_name(["1", "tail=2"], NAMES, "--p", float)
