"""What is kept of every epoch: the metric for curves, a log file, TensorBoard's events."""

import json
import sys
from pathlib import Path

import pytest
import torch
from test_resume import Killer, ask, assert_same_bits, killed

from lpss_cli.checkpoints import loading
from lpss_cli.errors import InputError
from lpss_cli.jobs import loggers, resume, training_job


@pytest.fixture(autouse=True)
def saved_always(monkeypatch, tmp_path):
    monkeypatch.setattr(resume, "SAVE_EVERY", 0.0)
    monkeypatch.chdir(tmp_path)


def lines(path="run.jsonl"):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def history(path):
    return loading.read(Path(path)).meta["history"]


@pytest.mark.parametrize(
    ("epochs", "every", "expected"),
    [
        (4, None, 1),
        (10, None, 1),
        (11, None, 2),
        (280, None, 28),
        (4, 3, 3),
        (4, 0, 0),
        (0, None, 1),
    ],
)
def test_a_run_is_looked_at_ten_times(epochs, every, expected):
    assert loggers.interval(epochs, every) == expected


def test_the_metric_is_in_the_history_of_the_epochs_that_were_measured():
    outcome = training_job.train(ask("a.pt", eval_every=2))
    measured = [epoch.get("accuracy") for epoch in history("a.pt")]
    assert [value is not None for value in measured] == [False, True, False, True]
    assert measured[-1] == outcome.after["accuracy"]  # of the same network, on the same part
    assert [epoch["lr"] for epoch in history("a.pt")] == sorted(
        (epoch["lr"] for epoch in history("a.pt")), reverse=True
    )


def test_the_time_of_measuring_is_no_time_of_training(monkeypatch):
    class Clock:
        now = 0.0

        @classmethod
        def perf_counter(cls):
            cls.now += 1.0
            return cls.now

    monkeypatch.setattr(loggers, "time", Clock)
    meter = loggers.Meter(lambda: {"accuracy": 0.5}, "accuracy", 1)
    state = type("Run", (), {"epoch": 1, "epochs": 2})
    state.history, state.device = [{}], torch.device("cpu")
    meter.on_epoch(state)
    assert meter.seconds == 1.0
    assert state.history == [{"accuracy": 0.5}]


# A data set that draws from the generators of the process when it is read, as a user's may.
DRAWING = """
import torch
class Noisy(torch.utils.data.Dataset):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i):
        y = i % 3
        return torch.randn(6) + 2 * y, y
def make(seed=0):
    return {"train": Noisy(96), "test": Noisy(30), "outputs": 3}
"""


def test_measuring_on_the_way_changes_no_bit():
    Path("data.py").write_text(DRAWING)
    more = {"data": "data.py:make", "arch": "mlp:6-16-3", "sparsity": 0.5, "batch_size": 16}
    training_job.train(ask("without.pt", eval_every=0, **more))
    training_job.train(ask("with.pt", eval_every=1, **more))
    assert_same_bits("without.pt", "with.pt")
    assert "accuracy" in history("with.pt")[0]
    assert "accuracy" not in history("without.pt")[0]


def test_a_log_has_a_line_an_epoch():
    training_job.train(ask("a.pt", log=Path("run.jsonl"), sparsity=0.9))
    found = lines()
    assert [line["epoch"] for line in found] == [1, 2, 3, 4]
    assert {line["epochs"] for line in found} == {4}
    assert [line["step"] for line in found] == [11, 22, 33, 44]
    assert [line["loss"] for line in found] == [epoch["loss"] for epoch in history("a.pt")]
    assert found[-1]["sparsity"] == found[0]["target"] == 0.9
    last = found[-1]
    assert last["examples_per_second"] == pytest.approx(11 * 128 / last["seconds"])
    assert set(last) >= {"accuracy", "hoyer", "lr"}


def test_a_resumed_run_goes_on_in_its_log_without_doubles():
    more = {"log": Path("run.jsonl"), "sparsity": 0.9}
    training_job.train(ask("straight.pt", **{**more, "log": Path("straight.jsonl")}))
    killed(lambda callback: training_job.train(ask("a.pt", **more), callback))
    assert [line["epoch"] for line in lines()] == [1, 2]
    # A line of an epoch that was not saved, half a line and no line at all.
    with Path("run.jsonl").open("a") as file:
        file.write(json.dumps({"epoch": 3, "loss": 99.0}) + '\n{"epoch": 2, "lo\nnonsense\n')
    training_job.train(ask("a.pt", **more, resume=True), Killer())
    for a, b in zip(lines(), lines("straight.jsonl"), strict=True):
        assert [a[k] for k in ("epoch", "loss", "accuracy")] == [
            b[k] for k in ("epoch", "loss", "accuracy")
        ]


def test_a_log_that_is_there_is_not_replaced_unasked():
    Path("run.jsonl").write_text("mine\n")
    with pytest.raises(InputError, match=r"run\.jsonl already exists"):
        training_job.train(ask("a.pt", log=Path("run.jsonl")))
    assert Path("run.jsonl").read_text() == "mine\n"
    training_job.train(ask("a.pt", log=Path("run.jsonl"), force=True))
    assert len(lines()) == 4
    with pytest.raises(InputError, match="--log and --out are both"):
        training_job.train(ask("b.pt", log=Path("b.pt")))
    with pytest.raises(InputError, match="does not exist"):
        training_job.train(ask("b.pt", log=Path("none/b.jsonl")))
    with pytest.raises(InputError, match="out of range"):
        training_job.train(ask("b.pt", eval_every=-1))


def test_a_log_that_cannot_be_written_ends_no_run():
    class Remover(Killer):
        def on_epoch(self, run):
            super().on_epoch(run)
            if run.epoch == 2:
                Path("run.jsonl").unlink()
                Path("run.jsonl").mkdir()

    callback = Remover()
    training_job.train(ask("a.pt", log=Path("run.jsonl")), callback)
    assert Path("a.pt").exists()
    assert any("run.jsonl could not be written" in text for text in callback.warnings)


def test_only_the_ticket_is_logged_not_its_control():
    from lpss_cli.jobs.ticket import ticket

    training_job.train(ask("a.pt", sparsity=0.5, epochs=1))
    ticket(Path("a.pt"), ask("t.pt", epochs=2, log=Path("run.jsonl")), "random")
    assert [line["epoch"] for line in lines()] == [1, 2]


def test_tensorboard_has_every_epoch_once(monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    more = {"tensorboard": Path("events/run"), "sparsity": 0.9}
    killed(lambda callback: training_job.train(ask("a.pt", **more), callback), step=43)
    training_job.train(ask("a.pt", **more, resume=True))
    events = EventAccumulator("events/run")
    events.Reload()
    found = events.Scalars("loss")
    assert [event.step for event in found] == [11, 22, 33, 44]
    losses = [epoch["loss"] for epoch in history("a.pt")]
    assert [event.value for event in found] == pytest.approx(losses)
    Path("file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder of events"):
        training_job.train(ask("b.pt", tensorboard=Path("file")))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match="TensorBoard is not installed") as error:
        training_job.train(ask("b.pt", tensorboard=Path("events")))
    assert "lpss-cli[tensorboard]" in error.value.do
