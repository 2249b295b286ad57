"""The global random generators: saved, restored and seeded."""

import io
import random

import numpy as np
import torch
from helpers import blobs, network

from lpss_cli.training import method
from lpss_cli.training.run import to_device
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer
from lpss_cli.utils import seeds

CPU = torch.device("cpu")


def draw():
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(),
        np.random.randn(),
        float(torch.rand(())),
    )


def test_restored_generators_draw_the_same_again():
    seeds.seed_everything(2**40 + 5)
    draw()  # leaves half a pair of normal numbers behind
    saved, first = seeds.rng_state(CPU), draw()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    buffer.seek(0)
    assert draw() != first
    seeds.restore_rng_state(torch.load(buffer, weights_only=True), CPU)
    assert draw() == first


def test_one_number_seeds_all_of_them():
    seeds.seed_everything(1)
    first = draw()
    seeds.seed_everything(1)
    assert draw() == first
    seeds.seed_everything(2)
    assert not set(draw()) & set(first)


def test_what_a_block_draws_leaves_no_trace():
    seeds.seed_everything(0)
    first = draw()
    seeds.seed_everything(0)
    with seeds.preserve_rng_state(CPU):
        draw()
    assert draw() == first


def test_what_a_method_keeps_goes_to_the_models_device():
    memory = {"start": {"w": torch.zeros(2)}, "list": [(torch.ones(1), 3)], "decay": 0.5}
    there = to_device(memory, torch.device("meta"))
    assert there["start"]["w"].device.type == there["list"][0][0].device.type == "meta"
    assert there["list"][0][1] == 3
    assert type(there["list"][0]) is tuple
    assert there["decay"] == 0.5
    assert memory["start"]["w"].device.type == "cpu"


def test_a_restored_run_moves_what_it_holds(monkeypatch):
    """Saved on the CPU, as every file is: asked to go where the model is."""
    run = Trainer(
        network(), blobs(), method.make("lottery"), TrainingSettings(2, 16, sparsity=0.5)
    ).train()
    asked = []
    monkeypatch.setattr(
        "lpss_cli.training.run.to_device", lambda v, device: asked.append((v, device)) or v
    )
    run.load_state_dict(run.state_dict())
    assert {device for _, device in asked} == {CPU}
    held = [value for value, _ in asked if isinstance(value, dict) and "start" in value]
    assert set(held[0]["start"]) == set(run.model.state_dict())
