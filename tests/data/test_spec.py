"""Data specifications, and names that are not data."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from data_helpers import ROOT, refused, write_table

from lpss_cli.data import KNOWN, DataSpec, load
from lpss_cli.errors import InputError


def test_the_package_imports_without_torch():
    code = (
        "import sys, lpss_cli.data as d; d.KNOWN, d.DataSpec(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_spec_survives_json():
    spec = DataSpec("x.csv", target="y", drop=("a", "b"), mean=(0.5,), std=(0.25, 1), workers=2)
    plain = json.loads(json.dumps(spec.to_dict()))
    assert DataSpec.from_dict({**plain, "from_the_future": 1}) == spec
    assert DataSpec.from_dict({}) == DataSpec()


@pytest.mark.parametrize(
    "damaged", [{"name": 3}, {"drop": "ab"}, {"drop": [1]}, {"workers": "2"}, {"mean": ["x"]}]
)
def test_damaged_stored_spec_is_refused(damaged):
    with pytest.raises(InputError, match="damaged"):
        DataSpec.from_dict(damaged)


@pytest.mark.parametrize(
    "wrong",
    [
        {"image_size": 0},
        {"workers": -1},
        {"split_seed": -1},
        {"std": (0.0,)},
        {"mean": (float("nan"),)},
        {"augment": "cifra"},
    ],
)
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError) as caught:
        DataSpec(**wrong)
    assert caught.value.do


def test_unknown_names_and_paths():
    refused(DataSpec("fashon-mnist"), "no data set called 'fashon-mnist'", "'fashion-mnist'")
    refused(DataSpec("nothing-like-it"), "no data set called", ", ".join(KNOWN))
    refused(DataSpec("no/such/folder"), "there is no file or folder no/such/folder")
    refused(DataSpec("missing.csv"), "there is no file or folder missing.csv")
    refused(DataSpec(""), "no data set called ''")


def test_files_of_another_kind(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(DataSpec(str(tmp_path / "notes.txt")), "is not a kind of data", "table.csv")
    (tmp_path / "data.py").write_text("")
    refused(DataSpec(str(tmp_path / "data.py")), "names no function", "data.py:factory")


def test_options_that_mean_nothing_are_refused(tmp_path):
    refused(DataSpec("digits", target="y"), "--target means nothing for images (digits)")
    path = write_table(tmp_path)
    refused(DataSpec(path, target="y", image_size=8), "--image-size means nothing for a table")
    refused(DataSpec(path, target="y", augment="cifar"), "--augment means nothing for a table")
    what = "--mean 127.5 is not a mean of pixels"
    refused(DataSpec("digits", mean=(127.5,), std=(51.0,)), what, "give --mean 0.5 --std 0.2")
    with pytest.raises(InputError) as caught:
        load(DataSpec("digits", mean=(127.5,)))
    assert caught.value.do.endswith("give --mean 0.5")
