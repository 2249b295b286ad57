"""Plain momentum SGD: dense training, or one magnitude pruning followed by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lpss_cli.training.method import Method, MethodConfig, option


class Dense(Method):
    """Train densely; with a target, prune once at ``end`` and fine-tune the weights that stay."""

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "momentum SGD; with --sparsity one magnitude pruning (Han et al. 2015)"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """SGD with a small weight decay."""

        weight_decay: float = option(5e-4, "L2 decay of the weights", low=0)
