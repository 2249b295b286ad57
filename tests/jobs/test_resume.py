"""A killed run goes on to the same bits; another run's state is refused."""

from pathlib import Path

import pytest
import torch

from lpss_cli.checkpoints import artifact, loading
from lpss_cli.checkpoints.training_state import TrainingStateFiles, paths_of
from lpss_cli.distributed.context import DistributedContext, LostError
from lpss_cli.errors import InputError, RunError
from lpss_cli.jobs import resume, sparse_training, training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.training_job import JobCallback


class KilledError(Exception):
    pass


class Killer(JobCallback):
    """Notes what is said, and stops the run in the middle of an epoch."""

    def __init__(self, step=None):
        self.step, self.notes, self.warnings, self.epochs = step, [], [], 0

    def on_note(self, text):
        self.notes.append(text)

    def on_warning(self, text):
        self.warnings.append(text)

    def on_epoch(self, run):
        self.epochs += 1

    def on_step(self, run):
        if run.step == self.step:
            raise KilledError


@pytest.fixture(autouse=True)
def saved_always(monkeypatch, tmp_path):
    monkeypatch.setattr(resume, "SAVE_EVERY", 0.0)
    monkeypatch.chdir(tmp_path)


def ask(out, **more):
    return Request(Path(out), **{"epochs": 4, "batch_size": 128, "seed": 3, **more})


def killed(call, step=30):
    """Run to the middle of epoch 3 (11 steps an epoch)."""
    with pytest.raises(KilledError):
        call(Killer(step))


def assert_same_bits(a, b):
    a, b = loading.read(Path(a)), loading.read(Path(b))
    assert a.state_dict.keys() == b.state_dict.keys()
    for name, tensor in a.state_dict.items():
        assert torch.equal(tensor, b.state_dict[name]), name
    keys = ("epoch", "loss", "sparsity")
    histories = [[[e[k] for k in keys] for e in x.meta["history"]] for x in (a, b)]
    assert histories[0] == histories[1]


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(method):
    more = {"method": method, "sparsity": 0.9, "options": {"frequency": 3}}
    training_job.train(ask("straight.pt", **more))
    killed(lambda callback: training_job.train(ask("a.pt", **more), callback))
    assert Path("a.pt.partial").exists()
    assert not Path("a.pt").exists()
    callback = Killer()
    outcome = training_job.train(ask("a.pt", **more, resume=True), callback)
    assert "resuming from a.pt.partial, after 22 steps, 2 epochs" in callback.notes
    assert callback.epochs == 2
    assert_same_bits("straight.pt", "a.pt")
    assert sorted(p.name for p in Path().iterdir()) == ["a.pt", "straight.pt"]
    history = loading.read(Path("a.pt")).meta["history"]
    assert outcome.seconds >= sum(epoch["seconds"] for epoch in history)


@pytest.mark.parametrize("method", ["lpss", "gmp"])
def test_a_resumed_sparsification_is_the_uninterrupted_one_bit_for_bit(method):
    training_job.train(ask("dense.pt"))
    more = {"method": method, "options": {"frequency": 3}}
    dense = Path("dense.pt")
    sparse_training.sparsify_checkpoint(dense, ask("straight.pt", **more))
    killed(
        lambda callback: sparse_training.sparsify_checkpoint(dense, ask("a.pt", **more), callback)
    )
    sparse_training.sparsify_checkpoint(dense, ask("a.pt", **more, resume=True))
    assert_same_bits("straight.pt", "a.pt")
    assert not Path("a.pt.partial").exists()


def test_without_a_partial_a_resumed_run_starts_and_says_so():
    callback = Killer()
    training_job.train(ask("a.pt", epochs=1, resume=True), callback)
    assert "there is no a.pt.partial: starting from the beginning" in callback.notes


def test_without_resume_a_run_starts_from_the_beginning_and_says_so():
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    callback = Killer()
    training_job.train(ask("a.pt"), callback)
    assert "a.pt.partial is of an interrupted run: --resume would continue it" in callback.notes
    assert callback.epochs == 4
    assert not Path("a.pt.partial").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"epochs": 5}, "epochs was 4 and is 5 now$"),
        (
            {"epochs": 5, "seed": 4, "options": {"p": ("1.2",), "lr": 0.03}},
            r"epochs was 4 and is 5 now; seed was 3 and is 4 now; "
            r"method\.lr was 0\.05 and is 0\.03 now; "
            r"method\.p was \[\] and is \['1\.2'\] now$",
        ),
        ({"seed": 4}, "seed was 3 and is 4 now"),
        ({"arch": "mlp:64-20-10"}, "arch was 'mlp:64-300-100-10' and is 'mlp:64-20-10' now"),
        ({"method": "gmp"}, "method was 'lpss' and is 'gmp' now"),
        ({"options": {"lr": 0.03}}, r"method\.lr was 0\.\d+ and is 0\.03 now"),
        ({"holdout": 0.5}, "data fingerprint was"),
        (
            {"data_overrides": {"mean": [0.1]}},
            r"data\.mean was \[0\.30.*\] and is \[0\.1\] now",
        ),
    ],
    ids=str,
)
def test_the_state_of_another_run_is_refused_with_every_difference(more, said):
    killed(lambda callback: training_job.train(ask("a.pt", sparsity=0.5), callback))
    before = Path("a.pt.partial").read_bytes()
    with pytest.raises(InputError, match=f"of another run: {said}") as error:
        training_job.train(ask("a.pt", **{"sparsity": 0.5, **more}, resume=True))
    assert "leave --resume out" in error.value.do
    assert Path("a.pt.partial").read_bytes() == before


def test_the_state_of_an_older_version_has_options_under_their_older_names():
    more = {"sparsity": 0.9, "options": {"frequency": 3}}
    training_job.train(ask("straight.pt", **more))
    killed(lambda callback: training_job.train(ask("a.pt", **more), callback))
    saved = TrainingStateFiles(Path("a.pt"))
    content = saved.read(pytest.fail)[1]
    for name, old in (("radius", "gain"), ("radius_lr", "gain_lr")):
        content["identity"][f"method.{old}"] = content["identity"].pop(f"method.{name}")
    assert {"zeros", "own", "others"} == set(content["state"]["start"])  # as they always were
    assert {"memory", "facts"} <= set(content["state"])
    saved.write(content)
    training_job.train(ask("a.pt", **more, resume=True))
    assert_same_bits("straight.pt", "a.pt")


def test_another_input_of_a_sparsification_is_another_run():
    training_job.train(ask("dense.pt", epochs=1))
    killed(
        lambda callback: sparse_training.sparsify_checkpoint(
            Path("dense.pt"), ask("a.pt"), callback
        )
    )
    training_job.train(ask("dense.pt", epochs=1, seed=9, force=True))
    with pytest.raises(InputError, match="of another run: source was"):
        sparse_training.sparsify_checkpoint(Path("dense.pt"), ask("a.pt", resume=True))


@pytest.mark.parametrize("content", [b"", b"no zip file", {"state": {}}, [1]], ids=repr)
def test_a_broken_partial_is_refused(content):
    if isinstance(content, bytes):
        Path("a.pt.partial").write_bytes(content)
    else:
        torch.save(content, "a.pt.partial")
    with pytest.raises(InputError, match=r"a\.pt\.partial cannot be read"):
        training_job.train(ask("a.pt", resume=True))


def test_a_partial_is_saved_no_more_often_than_asked(monkeypatch):
    monkeypatch.setattr(resume, "SAVE_EVERY", 1000.0)
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    assert list(Path().iterdir()) == []


def test_a_full_disk_is_a_warning_and_training_goes_on(monkeypatch):
    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr("lpss_cli.checkpoints.training_state.atomic_write", full)
    callback = Killer()
    training_job.train(ask("a.pt"), callback)
    assert callback.epochs == 4
    assert "a.pt.partial could not be saved: OSError: no space left" in callback.warnings[0]


def test_a_diverged_run_leaves_its_last_good_state():
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    before = Path("a.pt.partial").read_bytes()
    with pytest.raises(RunError):
        training_job.train(ask("a.pt", options={"lr": 1e30}))
    assert Path("a.pt.partial").read_bytes() == before


def flip(path, part=0.5):
    whole = bytearray(path.read_bytes())
    whole[int(len(whole) * part)] ^= 1
    path.write_bytes(whole)


def test_a_damaged_newest_state_falls_back_to_the_previous_one():
    training_job.train(ask("straight.pt"))
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    newest, previous = paths_of(Path("a.pt"))
    for damage in (flip, lambda path: path.write_bytes(path.read_bytes()[:-100])):
        damage(newest)
        callback = Killer(35)
        with pytest.raises(KilledError):  # saved after epoch 3, in place of the damaged one
            training_job.train(ask("a.pt", resume=True), callback)
        assert callback.warnings[0].startswith("a.pt.partial cannot be read: ")
        assert callback.warnings[0].endswith("; a.pt.partial.old takes its place")
        assert "resuming from a.pt.partial.old, after 11 steps, 1 epochs" in callback.notes
        assert torch.load(newest, weights_only=True)["state"]["epoch"] == 3
        assert torch.load(previous, weights_only=True)["state"]["epoch"] == 2
        killed(lambda callback: training_job.train(ask("a.pt"), callback))  # the same two again
    newest.unlink()
    training_job.train(ask("a.pt", resume=True))
    assert_same_bits("straight.pt", "a.pt")
    assert not newest.exists()
    assert not previous.exists()


def test_two_damaged_states_are_refused():
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    for path in paths_of(Path("a.pt")):
        flip(path)
    said = r"^a\.pt\.partial cannot be read: .*, and a\.pt\.partial\.old cannot be read: "
    with pytest.raises(InputError, match=said) as error:
        training_job.train(ask("a.pt", resume=True))
    assert "remove a.pt.partial and a.pt.partial.old" in error.value.do


def test_other_versions_threads_and_devices_are_warned_of(monkeypatch):
    killed(lambda callback: training_job.train(ask("a.pt"), callback))
    others = {**artifact.versions(), "torch": "2.0", "threads": "7"}
    monkeypatch.setattr(artifact, "versions", lambda: others)
    callback = Killer()
    training_job.train(ask("a.pt", resume=True), callback)
    (text,) = callback.warnings
    assert "torch was" in text
    assert "is '2.0' now" in text
    assert "is '7' now; so the result will not be the same to the last bit" in text


def test_states_are_saved_every_so_many_steps(monkeypatch):
    monkeypatch.setattr(resume, "SAVE_EVERY", 1000.0)
    killed(lambda callback: training_job.train(ask("a.pt", checkpoint_steps=7), callback))
    steps = [torch.load(p, weights_only=True)["state"]["step"] for p in paths_of(Path("a.pt"))]
    assert steps == [28, 21]
    training_job.train(ask("straight.pt"))
    training_job.train(ask("a.pt", checkpoint_steps=5, resume=True))
    assert_same_bits("straight.pt", "a.pt")
    with pytest.raises(InputError, match="--checkpoint-steps 0 is out of range"):
        training_job.train(ask("b.pt", checkpoint_steps=0))


def test_the_time_before_a_resumption_counts():
    killed(lambda callback: training_job.train(ask("a.pt", checkpoint_steps=1), callback))
    path = Path("a.pt.partial")
    state = torch.load(path, weights_only=True)["state"]
    assert state["step"] == 29
    assert state["epoch_seconds"] > 0
    before = state["epoch_seconds"] + sum(epoch["seconds"] for epoch in state["history"])
    outcome = training_job.train(ask("a.pt", resume=True))
    history = loading.read(Path("a.pt")).meta["history"]
    assert history[2]["seconds"] > state["epoch_seconds"]
    assert outcome.seconds > before


@pytest.mark.parametrize(
    ("typed", "resumed"),
    [
        ("lpss train", "lpss train --resume"),
        ("lpss train --resume --out a.pt", "lpss train --resume --out a.pt"),
        ("lpss sparsify -- -a.pt", "lpss sparsify --resume -- -a.pt"),
        ("lpss train --out 'a b.pt'", "lpss train --out 'a b.pt' --resume"),
    ],
)
def test_the_command_to_go_on_is_the_typed_one_with_resume(typed, resumed):
    assert resume.resume_command(typed) == resumed


def test_a_state_that_was_written_when_the_others_were_lost_is_gone_on_from(monkeypatch):
    alone = DistributedContext.run_on_main

    def run_on_main(self, call):
        result = alone(self, call)
        if Path("a.pt.partial").exists():  # just written, and the others are not told of it
            raise LostError("process 0 of 2 has lost the others", "")
        return result

    monkeypatch.setattr(DistributedContext, "run_on_main", run_on_main)
    with pytest.raises(LostError) as lost:
        training_job.train(ask("a.pt", command="lpss train --out a.pt"), Killer())
    assert lost.value.do == "resume with: lpss train --out a.pt --resume"
