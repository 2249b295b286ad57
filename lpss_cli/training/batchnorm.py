"""BatchNorm statistics, re-estimated after the final pruning (``Trainer.final_prune``)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lpss_cli.utils import torch_utils

#: Enough batches for stable statistics; more change little.
RECALIBRATION_BATCHES = 50


@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
    """Re-estimate the running statistics of every BatchNorm layer as plain means over batches.

    ``torch.optim.swa_utils.update_bn`` would also train dropout and reset frozen layers. Here the
    rest of the network is in evaluation mode, and a frozen layer (in evaluation mode within a
    network in training mode) keeps its statistics. Without any batch all of them are kept.

    Args:
        model: its modules are in the same modes afterwards.
        batches: inputs and targets, on the model's device.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    norms = [norm for norm in norms if norm.training or not model.training]
    first = next(batches, None) if norms else None
    if first is None:
        return
    momenta = [norm.momentum for norm in norms]
    with torch_utils.preserve_training_mode(model):
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative mean
            norm.train()
        for x, _ in chain([first], batches):
            model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
