"""LpSS: LpSGD on Lp spheres with semi-pruning (Li et al., arXiv:2103.16013)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from lpss_cli.errors import InputError
from lpss_cli.sparsity.patterns import resolve_patterns
from lpss_cli.sparsity.schedules import cubic_sparsity
from lpss_cli.training.method import Method, MethodConfig, option

if TYPE_CHECKING:
    from torch import Tensor

    from lpss_cli.optim.lpsgd import LpSGD
    from lpss_cli.training.context import MethodContext

# MERGED: Which layer gets which exponent p: one value, values by pattern, a list, or ``auto``.
AUTO = "auto"


def check(items: Sequence[str], parse: Callable[[str], float]) -> None:
    """Refuse impossible values at once; patterns and the length of a list need the network.

    Raises:
        InputError: a value is no number, or ``parse`` refuses it.
    """
    for item in items:
        _values(item.rpartition("=")[2], parse)


def assign(
    items: Sequence[str],
    names: Sequence[str],
    parse: Callable[[str], float],
    choose: Callable[[str], float],
) -> dict[str, float]:
    """Return p for every weight on a sphere.

    Args:
        items: ``VALUE`` for all, ``PATTERN=VALUE``, or a list ``1.2*4,1.07,…`` in the order of
            ``names``; VALUE is a number or ``auto``; later items win; without any, ``auto``.
        names: the weights on the sphere, in layer order.
        parse: text → p; raises ValueError or InputError.
        choose: name → the p that ``auto`` means there.

    Raises:
        InputError: a pattern matches nothing, a value is no p, or a list has another length.
    """
    values: dict[str, float | None] = dict.fromkeys(names)
    for item in items:
        pattern, _, text = item.rpartition("=")
        given = _values(text, parse)
        targets = resolve_patterns([pattern], names, "--p") if pattern else list(names)
        if len(given) == 1:
            given = given * len(targets)
        if len(given) != len(targets):
            raise InputError(
                f"--p lists {len(given)} values for {len(targets)} weights on the sphere",
                f"give one for each of: {', '.join(targets)}",
            )
        values |= dict(zip(targets, given, strict=True))
    return {name: choose(name) if p is None else p for name, p in values.items()}


def _values(text: str, parse: Callable[[str], float]) -> list[float | None]:
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


def on_sphere(fan_ins: Mapping[str, int | None], off: Sequence[str]) -> list[str]:
    """Return the weights that go on spheres, in layer order.

    Args:
        fan_ins: name → fan-in in layer order; None where rows are no simple slices.
        off: patterns of weights kept off.

    Raises:
        InputError: a pattern matches nothing.
    """
    left = resolve_patterns(off, list(fan_ins), "--off-sphere")
    # A row of one entry has no direction to move in.
    return [name for name, n in fan_ins.items() if name not in left and n is not None and n > 1]


class LpSS(Method):
    """Keep weight rows on Lp spheres and cut the smallest latents along a path to the target.

    A cut weight is zero in the network while its latent lives on: it fades for p > 1, stays for
    p ≤ 1, and returns with its remembered value. Two paths lead to the exact cut: ``cubic`` ranks
    all latents again at every update, ``controller`` drops and grows as the paper does.
    """

    name: ClassVar[str] = "lpss"
    paper: ClassVar[str] = "Li et al. 2021, arXiv:2103.16013"

    @dataclass(frozen=True)
    class Config(MethodConfig):
        """LpSGD's own settings; ``lr`` is for the parameters that are on no sphere."""

        lr: float = option(0.05, "peak learning rate of the parameters off the sphere", low=0)
        weight_decay: float = option(
            0.0, "L2 decay of weights off the sphere; those on it have none", low=0
        )
        p: tuple[str, ...] = option(
            (),
            "exponent p of the sphere, 0.2 to 1 or 1.03 to 4 (above 1, smaller is sparser), "
            "PATTERN=VALUE, a list in layer order, or auto: by target and fan-in, the default",
        )
        eta: float | None = option(
            None,
            "peak step on the sphere, a part of the radius; default 0.01, for p ≤ 1 0.0075·p^1.75",
            low=0,
            high=0.5,
        )
        gain: str = option(
            "learned",
            "radius of each row: trained, kept, or the paper's 1",
            choices=("fixed", "learned", "unit"),
        )
        gain_lr: float = option(0.03, "step of a learned radius, on its logarithm", low=0)
        off_sphere: tuple[str, ...] = option(
            (), "weights kept off the sphere, by pattern; default none"
        )
        path: str = option(
            "cubic",
            "way to the target: rank all latents, or the paper's drop and grow",
            choices=("cubic", "controller"),
        )
        initial_sparsity: float = option(
            0.2, "controller: random zeros at the start of training from scratch", low=0, high=0.99
        )
        drop_threshold: float = option(
            0.2,
            "controller: drop |w| below this part of the row's mean, annealed to 0",
            low=0,
            high=1,  # above the mean, a row of equal weights would lose them all
        )
        delta: float = option(
            0.1, "controller: strength of the threshold adaptation", low=0, high=1
        )

        def __post_init__(self) -> None:
            """Check every p at once; its patterns need the network.

            Raises:
                InputError: a value is out of range, or a p is no number with a rule.
            """
            super().__post_init__()
            check(self.p, _parse_p)

    def prepare(self, run: MethodContext) -> None:
        """Choose every sphere weight's p; from scratch, start the controller at a random mask."""
        for name, p in self.exponents(run.fan_ins, run.targets).items():
            run.layer_info[name]["p"] = p
        # A random mask would destroy what a checkpoint has learned.
        if self.config.path == "controller" and run.sparsity > 0 and not run.from_checkpoint:
            run.random_masks(min(self.config.initial_sparsity, run.sparsity), "uniform")

    def on_weights(self, run: MethodContext) -> None:
        """Sum up how far rows may have moved: what the prediction of Hoyer needs to know."""
        optimizer: LpSGD = run.optimizer  # type: ignore[assignment]  # made below
        run.method_state["travel"] = run.method_state.get("travel", 0.0) + optimizer.lr_ratio()
        if run.step == run.total_steps:
            for fact in run.layer_info.values():
                if "p" in fact:
                    fact["travel"] = run.method_state["travel"] * self._eta(fact["p"])

    def _eta(self, p: float) -> float:
        from lpss_cli.optim.lp_step import default_eta

        return default_eta(p) if self.config.eta is None else float(self.config.eta)

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
            gain=config.gain,
            gain_lr=config.gain_lr,
        )
        optimizer.take_latents()  # the engine enforces the masks next
        return optimizer

    def scores(self, run: MethodContext) -> Mapping[str, Tensor]:
        """Return ``log|γŵ|`` of the latents, so that cut weights compete on.

        On the controller's path the gradient decides what returns: there every active connection
        ranks before every inactive one, and those without a latent come last: a layer with a
        target of its own may need them.
        """
        from lpss_cli.sparsity.masks import RANK_OFFSET

        optimizer: LpSGD = run.optimizer  # type: ignore[assignment]  # made above
        scores = {name: optimizer.log_magnitude(w) for name, w in run.weights.items()}
        if self.config.path == "controller":
            ranked = {name: s.where(run.masks[name], s - RANK_OFFSET) for name, s in scores.items()}
            return {name: s.clamp_min(-2 * RANK_OFFSET) for name, s in ranked.items()}
        return scores

    def sparsity_at(self, run: MethodContext) -> float | None:
        """Return the cubic path's sparsity at updates; the controller has its own way."""
        config = self.config
        if config.path == "controller" or not run.is_update_step(config.begin, config.frequency):
            return None
        return cubic_sparsity(
            run.progress, config.begin, config.end, run.start_sparsity, run.sparsity
        )

    def on_gradients(self, run: MethodContext) -> bool:
        """Drop and grow by the dense gradients, where the controller is wanted."""
        config = self.config
        wanted = config.path == "controller" and run.sparsity > 0
        if wanted and run.is_update_step(config.begin, config.frequency):
            self._drop_and_grow(run)
        return True

    def _drop_and_grow(self, run: MethodContext) -> None:
        from lpss_cli.sparsity import drop_grow
        from lpss_cli.sparsity.lp_geometry import row_dims

        config = self.config
        threshold = drop_grow.cosine_decay(
            config.drop_threshold, run.progress, config.begin, config.end
        )
        growth = drop_grow.growth_fraction(
            run.masked / run.total, run.sparsity, threshold, config.delta
        )
        masks = {}
        for name, weight in run.weights.items():
            if weight.grad is None:
                continue
            mask, dims = run.masks[name], row_dims(weight, run.row_dims[name] or 0)
            dropped = drop_grow.below_row_mean(weight, mask, threshold, dims)
            count = int(growth * int(dropped.sum()))
            gradient = drop_grow.row_normalized(weight.grad, dims)
            grown = drop_grow.top_candidates(gradient, ~mask, count)
            masks[name] = (mask & ~dropped) | grown
            self._seed(run, weight, grown)
        run.set_masks(masks)

    def _seed(self, run: MethodContext, weight: Tensor, grown: Tensor) -> None:
        """Give grown weights that have no latent one of half the usual size, against the gradient.

        Under the signed-power rule a latent of exactly zero has no gradient of its own, and under
        both a much smaller one would stay invisible: the weight is a high power of it.
        """
        latent = run.optimizer.state[weight].get("latent")
        if latent is not None and weight.grad is not None:
            empty = grown & (latent == 0)
            scale = 0.5 * latent.abs().mean()
            latent.copy_((-scale * weight.grad.sign()).to(latent.dtype).where(empty, latent))

    def exponents(
        self, fan_ins: Mapping[str, int | None], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return p for every weight that goes on a sphere.

        Args:
            fan_ins: name → fan-in, in layer order; None where rows are no simple slices.
            targets: name → the sparsity that is aimed at: the layer's own, else the others'.

        Raises:
            InputError: a pattern matches nothing, or a list of p has another length.
        """
        from lpss_cli.sparsity.lp_geometry import snap_p

        names = self.on_sphere(fan_ins)
        suitable = self.suitable_p({name: fan_ins[name] or 0 for name in names}, targets)
        wanted = assign(self.config.p, names, _parse_p, suitable.__getitem__)
        return {name: snap_p(p) for name, p in wanted.items()}

    def on_sphere(self, fan_ins: Mapping[str, int | None]) -> list[str]:
        """Return the weights that go on spheres: all that have rows, unless told otherwise."""
        return on_sphere(fan_ins, self.config.off_sphere)

    def suitable_p(
        self, fan_ins: Mapping[str, int], targets: Mapping[str, float]
    ) -> dict[str, float]:
        """Return what ``auto`` means for every weight on a sphere."""
        from lpss_cli.sparsity.hoyer_prediction import suitable_p

        return {name: suitable_p(n, targets[name]) for name, n in fan_ins.items()}


def _parse_p(text: str) -> float:
    from lpss_cli.sparsity.lp_geometry import check_p

    return check_p(float(text))
