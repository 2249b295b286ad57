"""LpSS: LpSGD on Lp spheres with semi-pruning (Li et al., arXiv:2103.16013)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.method import Method, MethodConfig, option
from lpss_cli.patterns import per_name, resolve
from lpss_cli.schedule import cubic

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.lpsgd import LpSGD
    from lpss_cli.state import RunState


class LpSS(Method):
    """Keep weight rows on Lp spheres and cut the smallest latents along a cubic path.

    A cut weight is zero in the network while its latent lives on: it fades for p > 1, stays for
    p ≤ 1, and returns with its remembered value where it ranks high enough again.
    """

    name: ClassVar[str] = "lpss"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2103.16013"

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """LpSGD's own settings; ``lr`` is for the parameters that are on no sphere."""

        lr: float = option(0.05, "peak learning rate of the parameters off the sphere", low=0)
        p: tuple[str, ...] = option(
            (), "exponent of the sphere, 0.2 to 1 or 1.03 to 4: VALUE or PATTERN=VALUE; 1.15"
        )
        eta: float | None = option(
            None,
            "peak step on the sphere, a part of the radius; by p: 0.01, up to 1 0.0075·p^1.75",
            low=0,
            high=0.5,
        )
        gain: str = option(
            "learned",
            "row radius: kept, trained, or the paper's 1",
            choices=("fixed", "learned", "unit"),
        )
        gain_lr: float = option(0.03, "step of log γ with --gain learned", low=0)
        off_sphere: tuple[str, ...] = option(
            (), "weights kept off the sphere, by pattern, or 'none'; the last layer"
        )

    def prepare(self, run: RunState) -> None:
        """Choose every sphere weight's p and note it for the report."""
        for name, p in self._exponents(run).items():
            run.facts[name]["p"] = p

    def make_optimizer(self, run: RunState) -> LpSGD:
        """Return LpSGD with one group per p and dimension of rows."""
        from lpss_cli.lpsgd import LpSGD

        config = self.config
        by_kind: dict[tuple[float, int], list[Tensor]] = {}
        for name in run.weights:
            if "p" in run.facts[name]:
                kind = run.facts[name]["p"], run.row_dims[name] or 0
                by_kind.setdefault(kind, []).append(run.weights[name])
        groups = [
            {"params": params, "p": p, "row_dim": row_dim}
            for (p, row_dim), params in by_kind.items()
        ]
        on_sphere = [w for params in by_kind.values() for w in params]
        ordinary = [
            {**group, "p": None} for group in run.decay_groups(config.weight_decay, on_sphere)
        ]
        return LpSGD(
            groups + ordinary,
            lr=config.lr,
            eta=config.eta,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            gain=config.gain,
            gain_lr=config.gain_lr,
        )

    def scores(self, run: RunState) -> Mapping[str, Tensor]:
        """Return ``log|γŵ|`` of the latents, so that cut weights compete on."""
        optimizer: LpSGD = run.optimizer  # type: ignore[assignment]  # made above
        return {name: optimizer.log_magnitude(w) for name, w in run.weights.items()}

    def sparsity_at(self, run: RunState) -> float:
        """Return the cubic path's sparsity at the present step."""
        config = self.config
        return cubic(run.progress, config.begin, config.end, run.start_sparsity, run.sparsity)

    def _exponents(self, run: RunState) -> dict[str, float]:
        from lpss_cli.sphere import check_p, fan_in, snap_p

        names = list(run.weights)
        patterns = self.config.off_sphere
        off = set(names[-1:] if not patterns else ())
        if patterns and patterns != ("none",):
            off = set(resolve(patterns, names, "--off-sphere"))
        wanted = per_name(("1.15", *self.config.p), names, "--p", lambda s: check_p(float(s)))
        return {
            name: snap_p(wanted[name])
            for name in names
            if name not in off
            and run.row_dims[name] is not None
            and fan_in(run.weights[name], run.row_dims[name] or 0) > 1
        }
