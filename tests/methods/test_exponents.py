"""Which layer gets which p."""

from __future__ import annotations

import pytest

from lpss_cli.errors import InputError
from lpss_cli.methods.lpss import LpSS, assign, check, on_sphere
from lpss_cli.methods.lpss_published import PublishedLpSS
from lpss_cli.sparsity.hoyer_prediction import suitable_p

NAMES = ["conv1.weight", "block.0.weight", "block.1.weight", "fc.weight"]


def given(*items):
    return list(assign(items, NAMES, float, lambda name: 9.0).values())


@pytest.mark.parametrize(
    ("items", "expected"),
    [
        ((), [9, 9, 9, 9]),
        (("auto",), [9, 9, 9, 9]),
        (("1.2",), [1.2] * 4),
        (("1.2", "block.*=1.07"), [1.2, 1.07, 1.07, 1.2]),
        (("block.*=1.07", "1.2"), [1.2] * 4),  # later ones win
        (("1.2", "fc=auto"), [1.2, 1.2, 1.2, 9]),
        (("1.1,1.2,1.3,1.4",), [1.1, 1.2, 1.3, 1.4]),
        (("1.2*2, auto, 1.07",), [1.2, 1.2, 9, 1.07]),
        (("block.*=1.1,1.3",), [9, 1.1, 1.3, 9]),
    ],
)
def test_values_patterns_and_lists(items, expected):
    assert given(*items) == expected


@pytest.mark.parametrize("item", ["1.1,1.2", "1.2*3", "1.2*5", "block.*=1.1,1.2,1.3"])
def test_a_list_has_one_value_for_every_weight(item):
    with pytest.raises(InputError, match=r"--p lists \d values for \d weights") as error:
        given(item)
    assert "block.0.weight" in error.value.do


@pytest.mark.parametrize("item", ["much", "fc=", "", "1.2,,1.3", "1.2*x", "1.2*0", "1.2*-1", "*2"])
def test_a_value_that_does_not_parse_is_shown(item):
    with pytest.raises(InputError, match="is not understood"):
        check([item], float)
    with pytest.raises(InputError):
        given(item)


def test_a_pattern_that_matches_nothing_on_a_sphere():
    with pytest.raises(InputError, match="--p 'head' matches no weight"):
        given("head=1.1")


def test_rows_of_one_entry_and_what_patterns_name_are_off_the_sphere():
    fan_ins = {"a.weight": 9, "b.weight": 1, "c.weight": None, "d.weight": 4, "e.weight": 5}
    assert on_sphere(fan_ins, ()) == ["a.weight", "d.weight", "e.weight"]
    assert on_sphere(fan_ins, ("a", "d")) == ["e.weight"]
    with pytest.raises(InputError, match="--off-sphere"):
        on_sphere(fan_ins, ("z",))


def test_auto_is_chosen_by_target_and_fan_in():
    fan_ins = {"a.weight": 784, "b.weight": 64, "c.weight": 10}
    assert LpSS().exponents(fan_ins, dict.fromkeys(fan_ins, 0.9)) == {
        "a.weight": suitable_p(784, 0.9),
        "b.weight": suitable_p(64, 0.9),
        "c.weight": suitable_p(10, 0.9),
    }
    assert (
        LpSS(LpSS.Config(p=("a=1.0714",))).exponents(fan_ins, dict.fromkeys(fan_ins, 0.9))[
            "a.weight"
        ]
        == 15 / 14
    )


@pytest.mark.parametrize(
    ("sparsity", "first", "others"), [(0.9, 1.2, 15 / 14), (0.8, 1.3, 1.15), (0.5, 1.4, 1.3)]
)
def test_the_preset_takes_the_published_exponents(sparsity, first, others):
    fan_ins = {f"conv{i}.weight": 144 for i in range(7)}
    found = list(PublishedLpSS().exponents(fan_ins, dict.fromkeys(fan_ins, sparsity)).values())
    assert found == pytest.approx([first] * 4 + [others] * 2, abs=2e-3)
