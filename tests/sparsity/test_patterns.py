"""Globs on parameter names."""

from __future__ import annotations

import pytest

from lpss_cli.errors import InputError
from lpss_cli.sparsity.patterns import match_names, resolve_patterns

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
    assert match_names(pattern, NAMES) == expected


def test_resolving_keeps_the_order_of_the_names_and_lists_each_once():
    assert resolve_patterns(["head", "block*", "*fc1*"], NAMES, "--skip") == [*NAMES[1:3], "head"]
    assert resolve_patterns([], NAMES, "--skip") == []


def test_a_pattern_that_matches_nothing_names_the_option_and_the_weights():
    with pytest.raises(InputError, match=r"--skip 'fc9' matches no weight") as error:
        resolve_patterns(["head", "fc9"], NAMES, "--skip")
    assert all(name in error.value.do for name in NAMES)
