"""Saved states: whole or refused, never another than was saved."""

import os
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lpss_cli.checkpoints.training_state import TrainingStateFiles, paths_of
from lpss_cli.errors import InputError

CONTENT = {
    "identity": {"seed": 3, "lr": 0.1, "skip": ["a", "b"], "nothing": None},
    "state": {
        "model": {"w": torch.linspace(-1, 1, 24).view(4, 6), "n": torch.tensor(7)},
        "masks": {"w": torch.arange(24).view(4, 6) % 3 == 0},
        "half": torch.ones(3, dtype=torch.bfloat16),
        "numbers": {0: (1, 2.5, float("inf")), "0": [True, False]},
    },
}


def silent(text):
    pytest.fail(text)


def same(a, b):
    if isinstance(a, Tensor):
        equal = isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        equal = list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    elif isinstance(a, (list, tuple)):
        equal = len(a) == len(b) and all(map(same, a, b))
    else:
        equal = a == b
    return equal and type(a) is type(b)


@pytest.fixture
def saved(tmp_path):
    return TrainingStateFiles(tmp_path / "a.pt")


def test_what_is_read_is_what_was_written(saved):
    assert saved.found == []
    assert saved.kept is None
    saved.write(CONTENT)
    assert saved.kept == saved.newest
    other = TrainingStateFiles(saved.newest.with_name("a.pt"))
    assert other.kept is None
    path, content = other.read(silent)
    assert path == saved.newest == other.kept
    assert same(content, CONTENT)
    assert os.listdir(path.parent) == ["a.pt.partial"]


def test_two_generations_are_kept_and_removed(saved):
    for step in range(4):
        saved.write({"step": step})
        files = sorted(os.listdir(saved.newest.parent))
        assert files == ["a.pt.partial", "a.pt.partial.old"][: step + 1]
    assert [torch.load(path)["step"] for path in saved.found] == [3, 2]
    saved.remove()
    assert saved.found == []


def test_another_runs_state_is_no_generation_of_this_one(saved):
    for step in range(2):
        saved.write({"of": "the killed run", "step": step})
    fresh = TrainingStateFiles(saved.newest.with_name("a.pt"))
    fresh.write({"of": "the new run"})
    assert [path.name for path in fresh.found] == ["a.pt.partial"]


def test_a_kill_between_the_two_moves_leaves_the_previous_one(saved, monkeypatch):
    saved.write({"step": 0})
    replace = os.replace

    def killed(source, target):
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        saved.write({"step": 1})
    monkeypatch.undo()
    path, content = TrainingStateFiles(saved.newest.with_name("a.pt")).read(silent)
    assert path == saved.previous
    assert content == {"step": 0}


def test_a_state_that_reads_back_differently_takes_nobodys_place(saved, monkeypatch):
    saved.write({"step": 0})
    save = torch.save

    def other(content, path):
        save({**content, "step": 5}, path)

    monkeypatch.setattr(torch, "save", other)
    with pytest.raises(InputError, match="its digest does not match its content"):
        saved.write({"step": 1})
    monkeypatch.undo()
    assert saved.read(silent) == (saved.newest, {"step": 0})
    assert not saved.previous.exists()


def test_views_are_copied_out_and_other_things_refused(saved):
    saved.write({"w": torch.zeros(1000, 1000)[:2, :2]})
    assert saved.newest.stat().st_size < 10_000
    with pytest.raises(InputError, match="more than plain containers"):
        saved.write({"w": object()})


@pytest.mark.parametrize("content", [{}, {"w": torch.zeros(2)}, [1], torch.zeros(2)], ids=repr)
def test_a_file_without_its_digest_is_refused(saved, content):
    torch.save(content, saved.newest)
    with pytest.raises(InputError, match=r"a\.pt\.partial cannot be read"):
        saved.read(silent)


def flips(saved, count):
    """Flip one bit after the other; count what is refused, and fail if anything else is read."""
    saved.write(CONTENT)
    whole, rng, refused = saved.newest.read_bytes(), random.Random(0), 0
    for _ in range(count):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        saved.newest.write_bytes(damaged)
        try:
            assert same(saved.read(silent)[1], CONTENT)  # a bit that means nothing
        except InputError:
            refused += 1
    return refused


def test_a_flipped_bit_never_loads_something_else(saved):
    assert flips(saved, 300) > 150  # the others hit the padding of the archive


@pytest.mark.slow
def test_many_flipped_bits_never_load_something_else(saved):
    assert flips(saved, 10_000) > 5_000


def test_a_state_cut_anywhere_is_refused(saved):
    saved.write(CONTENT)
    whole = saved.newest.read_bytes()
    for part in range(40):
        saved.newest.write_bytes(whole[: len(whole) * part // 40])
        with pytest.raises(InputError, match="cannot be read"):
            saved.read(silent)


def test_names():
    assert [path.name for path in paths_of(Path("x/model.pt"))] == [
        "model.pt.partial", "model.pt.partial.old",
    ]  # fmt: skip
