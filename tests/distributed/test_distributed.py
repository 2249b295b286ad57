"""Several processes: alike in every bit of their masks, and with one process in what they learn."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from faults import lpss, two_lines
from forking import wait_for
from helpers import blobs, network
from teams import together
from torch import nn

from lpss_cli.checkpoints import artifact, loading
from lpss_cli.data import TensorSource
from lpss_cli.data.splits import epoch_order, shard_order
from lpss_cli.distributed import launch
from lpss_cli.distributed.context import DistributedContext, LostError, joined
from lpss_cli.errors import InputError, RunError, StoppedError
from lpss_cli.jobs import training_job
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.training_job import JobCallback
from lpss_cli.training import callbacks, method
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="this PyTorch was built without gloo",
)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- the pieces ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(16, 2), (15, 2), (7, 3), (3, 3)])
def test_the_parts_of_all_processes_are_the_batches_of_one(count, size):
    order = epoch_order(50, 0, 3)
    parts = []
    for rank in range(size):
        distributed = DistributedContext()
        distributed.rank, distributed.size = rank, size
        begin, end = distributed.shard(count)
        assert count // size <= end - begin <= -(-count // size)
        parts.append(shard_order(order, count, begin, end).split(end - begin))
    for number, whole in enumerate(order.split(count)[: 50 // count]):
        assert torch.cat([part[number] for part in parts]).tolist() == whole.tolist()


def test_a_batch_too_small_for_all_processes_is_refused():
    distributed = DistributedContext()
    distributed.size = 4
    with pytest.raises(InputError, match="a batch of 3 is too small for 4 processes"):
        distributed.shard(3)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "2"},  # nobody to reach
        {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {"RANK": "x", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
        {"RANK": "2", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"},
    ],
)
def test_a_process_alone(monkeypatch, variables):
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launch.place() == launch.Place()
    assert launch.words("lpss") == ["lpss"]
    with joined("cpu") as distributed:
        assert (type(distributed), distributed.rank, distributed.size, distributed.device) == (
            DistributedContext,
            0,
            1,
            "cpu",
        )
        assert distributed.shard(7) == (0, 7)
        assert distributed.seed(5) == 5


@pytest.fixture
def second(monkeypatch):
    """The environment of the second of four processes on two machines."""
    variables = {"RANK": 1, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")


def test_a_process_among_others(second):
    assert launch.place() == launch.Place(1, 4, 1, 2)
    words = ["torchrun", "--nnodes", "2", "--nproc-per-node", "2", "-m", "lpss_cli"]
    assert launch.words("lpss") == words


def test_only_training_is_shared(second, monkeypatch):
    # The first process alone says so.
    assert lpss("report", "a.pt") == (2, "", "")
    monkeypatch.setenv("RANK", "0")
    code, out, err = lpss("report", "a.pt")
    assert (code, out) == (2, "")
    assert two_lines(err)
    assert "lpss report runs in one process, and this is one of 4" in err


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("cuda:1", "one device for 4"),
        ("mps", "does not work in several processes"),
        ("cuda", "2 processes share"),
    ],
)
def test_devices_that_cannot_be_shared_are_refused(second, monkeypatch, device, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=said), joined(device):
        pass


# --- what processes do together ------------------------------------------------------------------


def messages():
    found = {}
    with joined("cpu") as distributed:
        rank = distributed.rank
        found["first"] = distributed.run_on_main(lambda: ("from", rank))
        found["gathered"] = distributed.all_gather(rank * 10)
        found["largest"] = distributed.all_reduce_max(5 - rank)
        found["seed"] = distributed.seed(7)
        turns = distributed.local_main_first(lambda: time.monotonic())
        found["turns"] = distributed.all_gather(turns)

        shared = [torch.full((2,), float(rank)), torch.full((1,), rank)]
        distributed.broadcast(shared)
        found["shared"] = shared
        mean = torch.tensor([2.0 * rank, 4.0])
        distributed.average([mean])
        found["mean"] = mean

        parameters = [nn.Parameter(torch.zeros(2, 2)) for _ in range(3)]
        parameters[0].grad = torch.full((2, 2), 1.0 + rank)
        if rank == 0:  # one that only this process has used; the third has been used by nobody
            parameters[1].grad = torch.full((2, 2), 6.0)
        distributed.average_gradients(
            [*parameters, nn.Parameter(torch.ones(1), requires_grad=False)]
        )
        found["gradients"] = [p.grad for p in parameters]

        distributed.check_equal("these", {"a": (1, 2)}, {"m": torch.ones(3, dtype=torch.bool)})
        with contextlib.suppress(RunError):
            distributed.check_equal("these", {"a": rank})
            found["agreed"] = True
    return found


def test_messages_between_processes():
    both = together(messages)
    for rank, found in enumerate(both):
        assert found["first"] == ("from", 0)
        assert found["gathered"] == [0, 10]
        assert found["largest"] == 5
        assert (found["seed"] == 7) == (rank == 0)
        assert found["turns"][0] < found["turns"][1]
        assert [t.tolist() for t in found["shared"]] == [[0.0, 0.0], [0]]
        assert found["mean"].tolist() == [1.0, 4.0]
        first, second, third = found["gradients"]
        assert (first == 1.5).all()
        assert (second == 3.0).all()
        assert third is None
        assert "agreed" not in found
    assert both[0]["seed"] != both[1]["seed"]


def plain(seed=0):
    """A network without BatchNorm and dropout: all its examples are independent."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 40), nn.Tanh(), nn.Linear(40, 4)).double()


def doubles():
    data = blobs()
    train = TensorSource(data.train.x.double(), data.train.y)
    return type(data)(**{**data.__dict__, "train": train})


def trained(names, batch):
    """Every method's masks and weights, trained by all processes together."""
    found = {}
    with joined("cpu") as distributed:
        for name in names:
            model = plain(distributed.rank)  # the first one's start counts
            run = Trainer(
                model,
                doubles(),
                method.make(name),
                TrainingSettings(4, batch, sparsity=0.8),
                distributed=distributed,
            ).train()
            found[name] = run.masks, model.state_dict(), [e["loss"] for e in run.history]
    return found


@pytest.mark.parametrize("batch", [16, 15])
def test_two_processes_learn_what_one_does(batch):
    """In float64 no mean is rounded enough to change a mask; 15 examples are 7 and 8."""
    names = sorted(method.registry())
    both = together(trained, names, batch)
    alone = trained(names, batch)
    for name in names:
        for found in both:
            for i, kind in enumerate(("masks", "weights")):
                for key, tensor in alone[name][i].items():
                    said = partial("{0} {1}: {2}".format, name, kind)
                    other = found[name][i][key]
                    torch.testing.assert_close(other, tensor, rtol=1e-7, atol=1e-9, msg=said)
            assert found[name][2] == pytest.approx(alone[name][2], rel=1e-6)  # summed in float32


def estranged():
    """One process draws its masks from another generator."""
    with joined("cpu") as distributed:

        class Callback(callbacks.Callback):
            def on_step(self, run):
                if run.step == 3:
                    run.rng.manual_seed(distributed.rank)

        made = method.make("set", {"frequency": 5})
        settings = TrainingSettings(4, 16, sparsity=0.8)
        Trainer(
            network(), blobs(), made, settings, distributed=distributed, callback=Callback()
        ).train()


def test_other_masks_in_one_process_end_the_run():
    for error in together(estranged):
        assert isinstance(error, RunError)
        assert "the masks after step 5 differ between process 0 and process 1" in error.what


# --- jobs ----------------------------------------------------------------------------------------

FACTORY = """
import torch

class Noisy:
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, i): return torch.full((6,), float(i % 3)) + torch.randn(6), i % 3

def make():
    return {"train": Noisy(96), "test": Noisy(24), "classes": ["a", "b", "c"]}

def net(shape=None, outputs=None):
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Dropout(0.2),
        torch.nn.Linear(8, 3),
    )
"""


class Eyes(JobCallback):
    def __init__(self, stop=None, rank=0):
        self.stop, self.rank, self.said = stop, rank, []

    def on_warning(self, text):
        self.said.append(text)

    def on_step(self, run):
        if run.step == self.stop and launch.place().rank == self.rank:
            signal.raise_signal(signal.SIGTERM)


def noisy(out, resume=False, name="lpss"):
    return Request(
        Path(out), arch="data.py:net", data="data.py:make", epochs=5, batch_size=16, sparsity=0.5,
        method=name, resume=resume, command="lpss train",
    )  # fmt: skip


def train(out, resume=False, stop=None, rank=0, name="lpss"):
    eyes = Eyes(stop, rank)
    outcome = training_job.train(noisy(out, resume, name), eyes)
    return outcome.after, outcome.report.zeros, eyes.said


def same_bits(a, b):
    first, second = (loading.read(Path(name)).state_dict for name in (a, b))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.numpy().tobytes() == second[name].numpy().tobytes(), name


@pytest.mark.parametrize("name", ["lpss", pytest.param("rigl", marks=pytest.mark.slow)])
def test_a_job_of_two_processes_goes_on_to_the_same_bits_and_with_another_number(name):
    Path("data.py").write_text(FACTORY)
    straight = together(train, "straight.pt", False, None, 0, name)
    assert straight[0] == straight[1]  # what the first one measured
    # The signal reaches one process alone, not the one that writes.
    for error in together(train, "a.pt", False, 8, 1, name):
        assert isinstance(error, StoppedError)
        assert error.what.endswith("after step 8 of 30: its state is in a.pt.partial")
        assert error.do == "resume with: lpss train --resume"
    Path("b.pt.partial").write_bytes(Path("a.pt.partial").read_bytes())
    assert together(train, "a.pt", True, None, 0, name)[0][1:] == straight[0][1:]
    same_bits("straight.pt", "a.pt")
    _, zeros, said = train("b.pt", True, name=name)
    assert zeros == straight[0][1]
    assert said == [
        "b.pt.partial: processes was '2' and is '1' now; so the result will not be the "
        "same to the last bit"
    ]
    assert not Path("b.pt.partial").exists()


def gone(out):
    """The second process ends while the first goes on."""

    class Gone(Eyes):
        def on_step(self, run):
            if run.step == 7 and launch.place().rank == 1:
                os._exit(9)

    request = noisy(out)
    training_job.train(Request(**{**request.__dict__, "checkpoint_steps": 5}), Gone())


def test_a_process_that_ends_ends_the_run_which_another_number_resumes():
    Path("data.py").write_text(FACTORY)
    found = together(gone, "a.pt", size=3)
    assert isinstance(found[1], EOFError)
    for rank in (0, 2):
        assert isinstance(found[rank], LostError)
        assert found[rank].what.startswith(f"process {rank} of 3 has lost the others")
        assert found[rank].do == "resume with: lpss train --resume"
    assert together(train, "a.pt", True)[0][1] == train("b.pt")[1]


def refused(*words):
    return lpss(*words)


def test_an_error_is_said_once():
    artifact.save(Path("a.pt"), {"w": torch.zeros(2)}, {})
    before = Path("a.pt").read_bytes()
    results = together(refused, "train", "--out", "a.pt", "--epochs", "1")
    assert [code for code, _, _ in results] == [2, 1]
    assert results[0][2].startswith("Error: a.pt already exists")
    assert results[1][1:] == ("", "")
    assert Path("a.pt").read_bytes() == before
    results = together(refused, "train", "--batch-size", "1", "--epochs", "1", "--out", "b.pt")
    assert [code for code, _, _ in results] == [2, 2]
    assert sorted("too small for 2 processes" in err for _, _, err in results) == [False, True]
    assert sum(err.count("Error:") for _, _, err in results) == 1


# --- torchrun itself -----------------------------------------------------------------------------


@contextlib.contextmanager
def torchrun(*words):
    """Start two processes on digits; yields their launcher, killed with them in the end."""
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with Path("stderr").open("wb") as said, subprocess.Popen(
        [*line, "-m", "lpss_cli", *words], stderr=said, env=environment
    ) as process:  # fmt: skip
        timer = threading.Timer(120.0, process.terminate)
        timer.start()
        try:
            yield process
        finally:
            timer.cancel()
            process.terminate()


def workers(process):
    """The processes that a launcher has started, by rank."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == process.pid:
                variables = (entry / "environ").read_bytes().split(b"\0")
                found += [(v, int(entry.name)) for v in variables if v.startswith(b"RANK=")]
    return [pid for _, pid in sorted(found)]


LONG = ("--arch", "mlp:64-8-10", "--epochs", "3000", "--batch-size", "256", "--out", "a.pt",
        "--checkpoint-steps", "20")  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="it looks processes up as Linux has them")
@pytest.mark.parametrize("who", ["torchrun", pytest.param("process", marks=pytest.mark.slow)])
def test_a_signal_to_torchrun_saves_and_a_killed_process_is_spoken_of(who):
    with torchrun("train", "--sparsity", "0.9", *LONG) as process:
        wait_for(Path("a.pt.partial").exists, "the first save")
        if who == "torchrun":
            process.send_signal(signal.SIGTERM)
        else:
            os.kill(workers(process)[1], signal.SIGKILL)
        process.wait()
    said = Path("stderr").read_text()
    what = "interrupted by SIGTERM after step" if who == "torchrun" else "process 0 of 2 has lost"
    assert said.count(f"Error: {what}") == said.count("Error: ") - said.count("ChildFailedError: ")
    resumed = f"train --sparsity 0.9 {' '.join(LONG)} --resume"
    assert said.count(f"  resume with: torchrun --nproc-per-node 2 -m lpss_cli {resumed}\n") == 1
    assert Path("a.pt.partial").exists()
    assert not list(Path().glob(".a.pt*"))  # no lock, no temporary file
