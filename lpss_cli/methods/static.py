"""A random mask that never changes: the baseline of every other choice of connections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.training.method import RANKINGS, Method, MethodConfig, option

if TYPE_CHECKING:
    from lpss_cli.training.run import MethodContext


class Static(Method):
    """Keep random connections of every layer from the first step on.

    The ranking decides how many connections each layer keeps; which ones is random. The same is
    done to a checkpoint, whatever its weights are; its zeros stay zeros.
    """

    name: ClassVar[str] = "static"
    paper: ClassVar[str] = "fixed random mask (as in Evci et al. 2020, arXiv:1911.11134)"
    ignores: ClassVar[tuple[str, ...]] = ("begin", "end", "frequency")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Plain momentum SGD."""

        ranking: str = option("erk", "how the layers share the budget", choices=RANKINGS)

    def prepare(self, run: MethodContext) -> None:
        """Draw the mask."""
        run.random_masks(run.sparsity, self.config.ranking)
