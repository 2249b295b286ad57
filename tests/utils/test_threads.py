import torch
from torch import nn

from lpss_cli.utils import torch_utils


def test_work_is_counted_per_example():
    model = nn.Linear(100, 1000)
    assert torch_utils.forward_flops(model, torch.zeros(2, 100)) == 2 * 100 * 1000
    assert model.training


def test_little_work_gets_one_thread_and_much_the_default(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert torch_utils.suitable_threads(1e6) == 1
    assert torch_utils.suitable_threads(1e9) == 8


def test_the_limit_ends_with_its_block():
    before = torch.get_num_threads()
    with torch_utils.limit_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
