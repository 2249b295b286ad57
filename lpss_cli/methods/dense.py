"""Plain momentum SGD: dense training, or one magnitude cut followed by fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lpss_cli.training.method import Method, MethodConfig, option


class Dense(Method):
    """Train densely; with a target, cut once at ``end`` and fine-tune what is left."""

    name: ClassVar[str] = "dense"
    paper: ClassVar[str] = "momentum SGD; with --sparsity one magnitude cut (Han et al. 2015)"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """SGD with a little decay."""

        weight_decay: float = option(5e-4, "L2 decay of weights", low=0)
