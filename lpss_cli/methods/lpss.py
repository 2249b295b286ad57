"""LpSS: LpSGD on Lp spheres with semi-pruning (Li et al., arXiv:2103.16013)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lpss_cli.errors import InputError
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.schedules import cubic_sparsity
from lpss_cli.training.method import LayerColumn, LayerFact, Method, MethodConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.optim.lpsgd import LpSGD
    from lpss_cli.training.run import MethodContext

#: Chooses p by the target sparsity and the fan-in.
AUTO = "auto"


class SparsityPath:
    """A way from the first masks to the final pruning step, which ``--path`` chooses by name.

    Subclasses register themselves; they override what differs from leaving the masks alone.

    Args:
        config: of the method.
    """

    registry: ClassVar[dict[str, type[SparsityPath]]] = {}

    def __init_subclass__(cls, *, name: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        SparsityPath.registry[name] = cls

    def __init__(self, config: LpSS.Config) -> None:
        self.config = config

    def prepare(self, run: MethodContext) -> None:
        """Set the first masks, before the optimizer exists."""

    def scores(self, run: MethodContext, scores: dict[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the scores that weights are ranked by, from the log-magnitudes of the latents."""
        return scores

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity to prune to after this step; None leaves the masks alone."""
        return None

    def on_gradients(self, run: MethodContext) -> None:
        """See dense gradients before they are masked."""


class CubicPath(SparsityPath, name="cubic"):
    """Rank all latents again at every update, at a sparsity that rises by a cubic schedule."""

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity of the schedule at updates."""
        config = self.config
        if not run.is_update_step(config.begin, config.frequency):
            return None
        return cubic_sparsity(
            run.progress, config.begin, config.end, run.start_sparsity, run.sparsity
        )


def _is_exponent(value: Any) -> bool:
    from lpss_cli.sparsity.lp_geometry import P_RANGES  # imports PyTorch; few records need it

    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and any(low <= value <= high for low, high in P_RANGES)


def _is_distance(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and value >= 0 and math.isfinite(value)


def _exponent(info: Mapping[str, Any], fan_in: int | None, sparsity: float) -> float | None:
    return info.get("p")


def _predicted_hoyer(info: Mapping[str, Any], fan_in: int | None, sparsity: float) -> float | None:
    """Return the Hoyer sparsity that p, the fan-in and the sparsity of a layer let one expect.

    None off the sphere, for p ≤ 1, where nothing is predicted, and where all weights are zero.
    """
    p = info.get("p")
    if p is None or p <= 1 or fan_in is None or fan_in <= 1 or sparsity >= 1:
        return None
    from lpss_cli.sparsity.hoyer_prediction import TYPICAL_TRAVEL, predicted_hoyer

    return predicted_hoyer(p, fan_in, sparsity, info.get("travel") or TYPICAL_TRAVEL)


def _hoyer_limit(info: Mapping[str, Any], fan_in: int | None, sparsity: float) -> float | None:
    """Return what the closed form for an infinite fan-in predicts; it exceeds 1 for small p."""
    p = info.get("p")
    if p is None or p <= 1 or fan_in is None or fan_in <= 1:
        return None
    from lpss_cli.sparsity.hoyer_prediction import hoyer_limit, shape

    return hoyer_limit(fan_in, shape(p), p)


class LpSS(Method):
    """Keep the rows of weights on Lp spheres and prune the smallest latents along a path.

    A pruned weight is zero in the network while its latent lives on: it fades for p > 1, stays for
    p ≤ 1, and returns with its remembered value. The path to the target is a choice, see
    :class:`SparsityPath`: ``cubic`` is the default, ``controller`` is that of the paper.
    """

    name: ClassVar[str] = "lpss"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2103.16013"
    #: p is the exponent of the sphere, travel how far rows may have moved in all, in radii.
    layer_facts: ClassVar[tuple[LayerFact, ...]] = (
        LayerFact("p", _is_exponent, format=".5g", exported=True),
        LayerFact("travel", _is_distance),
    )
    layer_columns: ClassVar[tuple[LayerColumn, ...]] = (
        LayerColumn("p", _exponent, format=".4g"),
        LayerColumn("predicted", _predicted_hoyer, predicts="hoyer"),
    )
    plan_columns: ClassVar[tuple[LayerColumn, ...]] = (
        LayerColumn("p", _exponent, format=".4g"),
        LayerColumn("hoyer", _predicted_hoyer, title="Hoyer"),
        LayerColumn("hoyer_limit", _hoyer_limit, title="n → ∞", minor=True),
        LayerColumn("hoyer_at_target", _predicted_hoyer, title="Hoyer then", at_target=True),
    )
    plan_options: ClassVar[tuple[str, ...]] = ("p", "off_sphere", "ranking")

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """Settings of LpSGD; ``lr`` is that of the parameters that are not on a sphere."""

        lr: float = option(0.05, "peak learning rate of parameters off the sphere", low=0)
        weight_decay: float = option(
            0.0, "L2 decay of weights off the sphere; those on a sphere have none", low=0
        )
        p: tuple[str, ...] = option(
            (),
            "exponent p of the sphere, 0.2 to 1 or 1.03 to 4 (above 1, smaller is sparser): "
            "VALUE, PATTERN=VALUE, a list in layer order, or auto, the default: by target and "
            "fan-in",
        )
        eta: float | None = option(
            None,
            "peak step on the sphere, as a fraction of the radius; default 0.01, "
            "for p ≤ 1 0.0075·p^1.75",
            low=0,
            high=0.5,
        )
        radius: str = option(
            "learned",
            "radius of each row: trained, kept, or 1 as in the paper",
            choices=("fixed", "learned", "unit"),
            aliases=("gain",),
        )
        radius_lr: float = option(
            0.03, "step of a learned radius, on its logarithm", low=0, aliases=("gain_lr",)
        )
        off_sphere: tuple[str, ...] = option(
            (), "weights kept off the sphere, by pattern; default none"
        )
        path: str = option(
            "cubic",
            "path to the target: rank all latents, or drop and grow as in the paper",
            choices=("cubic", "controller"),
        )
        initial_sparsity: float = option(
            0.2, "controller: random zeros at the start of training from scratch", low=0, high=0.99
        )
        drop_threshold: float = option(
            0.2,
            "controller: drop |w| below this fraction of the mean of its row, annealed to 0",
            low=0,
            high=1,  # above the mean, a row of equal weights would lose them all
        )
        delta: float = option(
            0.1, "controller: strength of the threshold adaptation", low=0, high=1
        )

        def __post_init__(self) -> None:
            """Check every p at once; its patterns need the network.

            Raises:
                InputError: a value is out of range, or a p is not a number that has a rule.
            """
            super().__post_init__()
            check(self.p, _parse_p)

    def __init__(self, config: MethodConfig | None = None) -> None:
        super().__init__(config)
        self._path = SparsityPath.registry[self.config.path](self.config)

    def plan_layers(
        self,
        fan_ins: Mapping[str, int | None],
        targets: Mapping[str, float],
        hoyer: float | None = None,
    ) -> dict[str, dict[str, Any]]:
        """Return p of every layer on a sphere, which is the one predicted to give ``hoyer`` if any.

        Raises:
            InputError: ``hoyer`` and p are both given, no p reaches it, or see :meth:`exponents`.
        """
        if hoyer is not None and self.config.p:
            raise InputError("--hoyer and --p exclude each other", "give one of the two")
        exponents = self.exponents(fan_ins, targets)
        if hoyer is not None:
            from lpss_cli.sparsity.hoyer_prediction import p_for

            exponents = {name: p_for(hoyer, fan_ins[name] or 0, name) for name in exponents}
        return {name: {"p": p} for name, p in exponents.items()}

    def prepare(self, run: MethodContext) -> None:
        """Choose the p of every weight on a sphere, and let the path set the first masks."""
        for name, p in self.exponents(run.fan_ins, run.targets).items():
            run.layer_info[name]["p"] = p
        self._path.prepare(run)

    def make_optimizer(self, run: MethodContext) -> LpSGD:
        """Return LpSGD with one group per p and dimension of rows."""
        from lpss_cli.optim.lpsgd import LpSGD

        config = self.config
        by_kind: dict[tuple[float, int], list[Tensor]] = {}
        for name, weight in run.candidates.items():
            if "p" in run.layer_info[name]:
                kind = run.layer_info[name]["p"], run.row_dims[name] or 0
                by_kind.setdefault(kind, []).append(weight)
        groups = [
            {"params": params, "p": p, "row_dim": row_dim}
            for (p, row_dim), params in by_kind.items()
        ]
        on_sphere = [w for params in by_kind.values() for w in params]
        ordinary = [
            {**group, "p": None} for group in run.decay_groups(config.weight_decay, on_sphere)
        ]
        optimizer = LpSGD(
            groups + ordinary,
            lr=config.lr,
            eta=config.eta,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            radius=config.radius,
            radius_lr=config.radius_lr,
        )
        optimizer.take_latents()  # the trainer applies the masks next
        return optimizer

    def scores(self, run: MethodContext) -> Mapping[str, Tensor]:
        """Return ``log|γŵ|`` of the latents, so that pruned weights keep competing."""
        optimizer: LpSGD = run.optimizer  # type: ignore[assignment]  # made above
        scores = {name: optimizer.log_magnitude(w) for name, w in run.weights.items()}
        return self._path.scores(run, scores)

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the sparsity that the path has at this step."""
        return self._path.sparsity_at(run)

    def on_gradients(self, run: MethodContext) -> bool:
        """Show the dense gradients to the path."""
        self._path.on_gradients(run)
        return True

    def on_weights(self, run: MethodContext) -> None:
        """Add up how far rows may have moved, which the prediction of Hoyer sparsity needs."""
        optimizer: LpSGD = run.optimizer  # type: ignore[assignment]  # made above
        run.method_state["travel"] = run.method_state.get("travel", 0.0) + optimizer.lr_ratio()
        if run.step == run.total_steps:
            for info in run.layer_info.values():
                if "p" in info:
                    info["travel"] = run.method_state["travel"] * self._eta(info["p"])

    def _eta(self, p: float) -> float:
        from lpss_cli.optim.lp_step import default_eta

        return default_eta(p) if self.config.eta is None else float(self.config.eta)

    def exponents(
        self, fan_ins: Mapping[str, int | None], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return p for every weight that goes on a sphere.

        Args:
            fan_ins: name → fan-in, in layer order; None where rows are not simple slices.
            targets: name → target sparsity: that of the layer, else that of the others.

        Raises:
            InputError: a pattern matches nothing, or a list of p has another length.
        """
        from lpss_cli.sparsity.lp_geometry import snap_p

        names = self.on_sphere(fan_ins)
        suitable = self.suitable_p({name: fan_ins[name] or 0 for name in names}, targets)
        assigned = assign(self.config.p, names, _parse_p, suitable.__getitem__)
        return {name: snap_p(p) for name, p in assigned.items()}

    def on_sphere(self, fan_ins: Mapping[str, int | None]) -> list[str]:
        """Return the weights that go on spheres: all with rows, unless configured otherwise."""
        return on_sphere(fan_ins, self.config.off_sphere)

    def suitable_p(
        self, fan_ins: Mapping[str, int], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return what ``auto`` means for every weight on a sphere."""
        from lpss_cli.sparsity.hoyer_prediction import suitable_p

        return {name: suitable_p(n, targets[name]) for name, n in fan_ins.items()}


def on_sphere(fan_ins: Mapping[str, int | None], off: Sequence[str]) -> list[str]:
    """Return the weights that go on spheres, in layer order.

    Args:
        fan_ins: name → fan-in, in layer order; None where rows are not simple slices.
        off: patterns of weights that are kept off.

    Raises:
        InputError: a pattern matches nothing.
    """
    kept_off = resolve_patterns(off, list(fan_ins), "--off-sphere")
    # A row of one entry has no direction to move in.
    return [name for name, n in fan_ins.items() if name not in kept_off and n is not None and n > 1]


def check(items: Sequence[str], parse: Callable[[str], float]) -> None:
    """Check the values of ``--p`` at once; patterns and the length of a list need the network.

    Raises:
        InputError: a value is not a number, or ``parse`` refuses it.
    """
    for item in items:
        _parse_values(item.rpartition("=")[2], parse)


def assign(
    items: Sequence[str],
    names: Sequence[str],
    parse: Callable[[str], float],
    choose: Callable[[str], float],
) -> dict[str, float]:
    """Return p for every weight on a sphere.

    Args:
        items: ``VALUE`` for all, ``PATTERN=VALUE``, or a list ``1.2*4,1.07,…`` in the order of
            ``names``, where VALUE is a number or ``auto``. Later items win; without any, all are
            ``auto``.
        names: the weights on spheres, in layer order.
        parse: text → p; raises ValueError or InputError.
        choose: name → the p that ``auto`` means there.

    Raises:
        InputError: a pattern matches nothing, a value is not a p, or a list has another length.
    """
    exponents: dict[str, float | None] = dict.fromkeys(names)
    for item in items:
        pattern, _, text = item.rpartition("=")
        values = _parse_values(text, parse)
        targets = resolve_patterns([pattern], names, "--p") if pattern else list(names)
        if len(values) == 1:
            values = values * len(targets)
        if len(values) != len(targets):
            raise InputError(
                f"--p lists {len(values)} values for {len(targets)} weights on the sphere",
                f"give one for each of: {', '.join(targets)}",
            )
        exponents |= dict(zip(targets, values, strict=True))
    return {name: choose(name) if p is None else p for name, p in exponents.items()}


def _parse_values(text: str, parse: Callable[[str], float]) -> list[float | None]:
    """Read ``auto``, ``1.2`` or ``1.2*4,1.07`` (four times 1.2, then 1.07); None is auto."""
    values: list[float | None] = []
    for part in text.split(","):
        value, star, times = part.strip().partition("*")
        try:
            count = int(times) if star else 1
            if count < 1:
                raise ValueError
            values += [None if value.strip() == AUTO else parse(value)] * count
        except InputError:
            raise
        except ValueError:
            raise InputError(
                f"--p {text!r} is not understood",
                "write --p 1.15, --p auto, --p 'fc*=1.15', or a list --p '1.2*4,1.07*13'",
            ) from None
    return values


def _parse_p(text: str) -> float:
    from lpss_cli.sparsity.lp_geometry import check_p

    return check_p(float(text))
