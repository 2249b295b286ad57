"""Orders, seeds and sources of batches."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from data_helpers import ROOT, everything, forks

from lpss_cli.data import DatasetSource, Source, TensorSource, epoch_order
from lpss_cli.errors import InputError
from lpss_cli.utils.seeds import derive_seed


def test_epoch_order_is_a_function_of_its_numbers_alone():
    torch.manual_seed(1)
    first = epoch_order(100, 0, 3)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, epoch_order(100, 0, 3))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())  # and it moves no global generator
    assert torch.equal(first.sort().values, torch.arange(100))
    others = [epoch_order(100, seed, epoch) for seed, epoch in [(0, 4), (1, 3), (1, 2), (3, 0)]]
    assert not any(torch.equal(first, other) for other in others)


def test_derived_seeds_differ_by_stream_and_part():
    seeds = {derive_seed(s, *p) for s in ("order", "augment") for p in [(1, 2), (12,), (2, 1), ()]}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    # The same on every machine and in every release: runs are resumed with it.
    assert derive_seed("order", 0, 0) == 8751045294746670233


class Squares:
    """Map-style: (i, i²) with a bad example where asked."""

    def __init__(self, n: int, bad: int = -1, error: Exception | None = None):
        self.n, self.bad, self.error = n, bad, error

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        if i == self.bad and self.error is not None:
            raise self.error
        return torch.tensor([float(i)]), i * i


def sources(n: int = 10) -> list[Source]:
    x = torch.arange(float(n))[:, None]
    y = torch.arange(n) ** 2
    return [TensorSource(x, y), DatasetSource(Squares(n), labels=y)]


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_sources_agree(source):
    assert isinstance(source, Source)
    assert [len(y) for _, y in source.batches(4)] == [4, 4, 2]
    assert [len(y) for _, y in source.batches(4, drop_last=True)] == [4, 4]
    order = torch.tensor([7, 1, 1, 9, 0])
    x, y = (torch.cat(parts) for parts in zip(*source.batches(2, order=order), strict=True))
    assert x.tolist() == [[7.0], [1.0], [1.0], [9.0], [0.0]]
    assert y.tolist() == [49, 1, 1, 81, 0]
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    part = source.subset(torch.tensor([8, 2, 5])).subset(torch.tensor([2, 0]))
    assert len(part) == 2
    assert everything(part)[1].tolist() == [25, 64]
    assert part.labels is not None
    assert part.labels.tolist() == [25, 64]
    assert list(source.batches(3, order=torch.empty(0, dtype=torch.int64))) == []
    with pytest.raises(InputError, match="batch size 0"):
        source.batches(0)


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_batches_may_be_written_to(source):
    for x, y in source.batches(10):
        x.fill_(-1)
        y.fill_(-1)
    assert everything(source)[1].tolist() == [i * i for i in range(10)]


@pytest.mark.parametrize("source", sources(), ids=["tensors", "dataset"])
def test_augmentation_is_a_function_of_seed_and_batch(source):
    def noise(x, generator):
        return x + torch.rand(x.shape, generator=generator)

    def run(seed, batch_size=4):
        return torch.cat([x for x, _ in source.batches(batch_size, augment=noise, seed=seed)])

    torch.manual_seed(0)
    first, state = run((3, 1)), torch.get_rng_state()
    assert torch.equal(first, run((3, 1)))
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, run((3, 2)))
    noises = first - torch.arange(10.0)[:, None]
    assert not torch.equal(noises[:4], noises[4:8])  # each batch draws anew


def test_lengths_of_inputs_and_targets_must_agree():
    with pytest.raises(InputError, match="3 inputs but 2 targets"):
        TensorSource(torch.zeros(3, 1), torch.zeros(2))


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_errors_of_examples_arrive_as_two_lines(workers):
    good = DatasetSource(Squares(7), workers)
    assert torch.cat([y for _, y in good.batches(3)]).tolist() == [i * i for i in range(7)]
    ours = DatasetSource(Squares(7, 5, InputError("bad image x.png", "remove it")), workers)
    with pytest.raises(InputError, match=r"^bad image x\.png$") as caught:
        list(ours.batches(2))
    assert caught.value.do == "remove it"
    other = DatasetSource(Squares(7, 5, KeyError("label")), workers)
    with pytest.raises(InputError, match="example 5 of the data cannot be read: KeyError: 'label'"):
        list(other.batches(2))


def test_examples_that_do_not_stack():
    class Ragged(Squares):
        def __getitem__(self, i):
            return torch.zeros(i + 1), 0

    with pytest.raises(InputError, match="do not fit into a batch"):
        list(DatasetSource(Ragged(3)).batches(3))


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_workers_die_with_a_killed_parent():
    code = (
        "import os, signal, torch\n"
        "from lpss_cli.data import DatasetSource\n"
        "class Pid:\n"
        "    def __len__(self): return 100\n"
        "    def __getitem__(self, i): return torch.zeros(1), os.getpid()\n"
        "_, y = next(DatasetSource(Pid(), workers=1).batches(1))\n"
        "os.write(1, str(int(y)).encode())\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/stat")
    for _ in range(20):
        # A zombie that nobody has waited for yet is as dead as one that is gone.
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent by a second")
