"""A network sharded by FSDP2: trained on Lp spheres, then pruned to exactly 90 % zeros.

    torchrun --nproc-per-node 2 examples/fully_sharded.py

Every process holds some rows of every weight, and its own examples. LpSGD does not need to know
about sharding: each row lies on one process, and so does its sphere. Pruning ranks the weights of
all processes together.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lpss_cli import LpSGD
from lpss_cli.optim.sharding import local, top_k

SPARSITY = 0.9


def make() -> nn.Module:
    """Return a network with sharded layers, built from the same weights on every process."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(),
                          nn.Linear(100, 10))  # fmt: skip
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(
    model: nn.Module, optimizer: LpSGD, x: Tensor, y: Tensor, epochs: int, masks: dict[str, Tensor]
) -> None:
    """Train on the examples of this process; masked weights stay zero."""
    weights = dict(model.named_parameters())
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            F.cross_entropy(model(x[chosen]), y[chosen]).backward()
            optimizer.step()
            with torch.no_grad():
                for name, mask in masks.items():
                    local(weights[name]).mul_(mask)


def main() -> None:
    """Train, prune, continue training, and count the zeros."""
    dist.init_process_group("gloo")
    model = make()
    optimizer = LpSGD(model.parameters(), lr=0.05, p=1.15)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    rank, size = dist.get_rank(), dist.get_world_size()
    own = slice(rank, 1400 // size * size, size)  # the same number of examples on every process
    train(model, optimizer, x[own], y[own], 8, {})

    weights = {name: p for name, p in model.named_parameters() if p.dim() > 1}
    total = sum(weight.numel() for weight in weights.values())
    scores = {name: local(optimizer.log_magnitude(weight)) for name, weight in weights.items()}
    masks = top_k(scores, total - round(SPARSITY * total))
    train(model, optimizer, x[own], y[own], 4, masks)

    zeros = torch.tensor(sum(int((local(weight) == 0).sum()) for weight in weights.values()))
    dist.all_reduce(zeros)
    with torch.no_grad():
        right = float((model(x[1400:]).argmax(1) == y[1400:]).float().mean())
    if rank == 0:
        print(f"{int(zeros):,} of {total:,} weights are zero, accuracy {right:.1%}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
