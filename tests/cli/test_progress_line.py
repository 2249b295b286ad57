"""What a person sees while a job runs: a panel on a terminal, lines in a pipe, or nothing."""

import io
import os
import pty
import re

import pytest
from forking import serving, wait_for
from rich.console import Console

from lpss_cli.cli import progress
from lpss_cli.cli.progress import Moment, line, panel

MOMENT = Moment(
    epoch=4, epochs=30, step=445, steps=2670, loss=0.08969, sparsity=0.1175, target=0.9,
    hoyer=0.45, rate=0.0491, metric=("accuracy", 0.95), before=0.9778, pace=1068.4, left=35.2,
)  # fmt: skip

SAID = (
    "epoch 5/30", "0:00:35 left", "loss 0.08969", "accuracy 97.78% → 95.00%",
    "sparsity 11.75% → 90.00%", "Hoyer 0.450", "lr 0.0491", "examples/s 1,068",
)  # fmt: skip


def drawn(moment, width):
    console = Console(width=width, record=True, file=io.StringIO(), legacy_windows=False)
    console.print(panel(moment, width))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_a_panel_says_everything_at_any_width(width):
    rows = drawn(MOMENT, width)
    assert {len(row) for row in rows} == {min(width, 100)}
    text = " ".join(rows)
    for part in SAID:
        assert part in text, part
    assert len(rows) == {40: 9, 60: 6}.get(width, 5)


def test_what_is_not_known_is_left_out():
    bare = Moment(0, 2, 0, 10, None, 0.0, 0.0, None, 0.1)
    text = " ".join(drawn(bare, 80))
    assert "epoch 1/2" in text
    assert "loss -" in text
    assert "accuracy" not in text
    assert "→" not in text  # a dense run has no target
    assert "left" not in text


def test_a_line_for_a_pipe():
    assert line(MOMENT) == (
        "epoch 4/30  loss 0.08969  accuracy 95.00%  sparsity 11.75% → 90.00%  Hoyer 0.450  "
        "lr 0.0491  examples/s 1,068  0:00:35 left"
    )


class Run:
    """As much of a run as the observer looks at."""

    epoch, epochs, steps_per_epoch, total_steps, final_prune_step = 0, 4, 5, 20, 14
    step, batch_size, total, masked, sparsity = 0, 8, 100, 50, 0.9
    history: list = []  # noqa: RUF012  # set anew by who needs it
    loss_sum = 0.0
    optimizer = type("Optimizer", (), {"param_groups": [{"lr": 0.1}, {"lr": 0.3}]})


def test_an_observer_by_hand(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    run = Run()
    observer = progress.Observer(run, before=0.5)
    first = observer.moment(run)
    assert (first.loss, first.pace, first.left, first.metric) == (None, None, None, None)
    run.step, run.loss_sum, clock[0] = 4, 2.0, 102.0
    second = observer.moment(run)
    # 4 steps of 8 examples in 2 s; 16 steps are left at 2 a second.
    assert (second.loss, second.pace, second.left) == (0.5, 16.0, 8.0)
    assert (second.sparsity, second.rate, second.before) == (0.5, 0.3, 0.5)
    # At the end of an epoch it is that epoch's loss; what is long past tells nothing of the pace.
    run.step, run.epoch, run.history, clock[0] = 5, 1, [{"loss": 0.25, "hoyer": 0.7}], 142.0
    third = observer.moment(run)
    assert (third.loss, third.hoyer) == (0.25, 0.7)
    assert third.pace == pytest.approx(8 / 40)
    # After the exact cut zeros are not counted again.
    run.step, run.masked = 15, 90
    assert observer.moment(run).sparsity == 0.9
    run.masked = 0
    assert observer.moment(run).sparsity == 0.9


COMMAND = ("train", "--epochs", "20", "--sparsity", "0.5")
SHORT = ("--batch-size", "128")  # lines are counted by epochs


@pytest.fixture(scope="module")
def server():
    with serving() as found:
        yield found


def on_a_terminal(server, tmp_path, *more, term="xterm"):
    """Run with stderr on a terminal of 80 columns; return what it got."""
    master, slave = pty.openpty()
    where = {"stderr": os.ttyname(slave), "environment": {"TERM": term, "COLUMNS": "80"}}
    with server.run(tmp_path, *COMMAND, *more, **where) as run:
        wait_for(lambda: (tmp_path / "stdout").exists())  # it has the terminal, too
        os.close(slave)
        got = b""
        while True:
            try:
                part = os.read(master, 65536)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            got += part
        assert run.code() == 0
    os.close(master)
    return got.decode()


def test_a_panel_moves_on_a_terminal(server, tmp_path):
    text = re.sub(r"\x1b\[[0-9;]*m", "", on_a_terminal(server, tmp_path))
    assert text.count("training ─") > 2
    assert "epoch 20/20" in text
    assert re.search(r"accuracy \d\d\.\d\d%", text)
    assert re.search(r"sparsity [\d.]+% → 50\.00%", text)
    assert "left" in text
    assert "\x1b[2K" in text  # and it is wiped away


@pytest.mark.parametrize("flag", ["--quiet", "--json"])
def test_nothing_moves_where_nobody_wants_it(server, tmp_path, flag):
    assert "training ─" not in on_a_terminal(server, tmp_path, flag)


def test_a_terminal_that_cannot_move_gets_lines(server, tmp_path):
    text = on_a_terminal(server, tmp_path, *SHORT, term="dumb")
    assert "training ─" not in text
    assert text.count("epoch ") == 10


def test_a_pipe_gets_ten_lines_and_no_escapes(server, tmp_path):
    with server.run(tmp_path, *COMMAND, *SHORT) as run:
        assert run.code() == 0
        err = run.err
    lines = [row for row in err.splitlines() if row.startswith("epoch ")]
    assert [row.split()[1] for row in lines] == [f"{n}/20" for n in range(2, 21, 2)]
    assert all("accuracy" in row for row in lines)
    assert "\x1b" not in err
