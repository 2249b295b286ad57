import torch
from torch import nn

from lpss_cli import threads


def test_small_networks_get_one_thread_and_large_ones_the_default(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    model = nn.Linear(100, 1000)
    model.train()
    # 2·100·1000 operations an example.
    assert threads.suitable(model, torch.zeros(10, 100)) == 1
    assert threads.suitable(model, torch.zeros(1001, 100)) == 8
    assert model.training


def test_the_limit_ends_with_its_block():
    before = torch.get_num_threads()
    with threads.limited(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
