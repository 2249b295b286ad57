"""LpSGD: momentum SGD that keeps the rows of weights on Lp spheres.

Li, Yang, Li, Lu, Xie, "Training Sparse Neural Network by Constraining Synaptic Weight on Unit Lp
Sphere", arXiv:2103.16013, extended in two ways: every row keeps a *radius* γ, so that a trained
network starts as the function it is, and a second rule covers 0 < p ≤ 1.

``p > 1``, the *dual rule* of the paper: the latent is the feature vector
``v = sign(ŵ)|ŵ|^(p-1)``, ``‖v‖_q = 1`` with ``q = p/(p-1)``; with ``a = 1/(p-1)``::

    v ← (1-η) v - η d/‖d‖_q ;  v ← v/‖v‖_q ;  w = γ sign(v)|v|^a

``0 < p ≤ 1``, the *signed-power rule*: ``‖u‖_2 = 1  ⇔  ‖sign(u)|u|^(2/p)‖_p = 1``, so the step
follows a great circle::

    h = γ g∘(2/p)|u|^(2/p-1) ;  d ← d - <d,u>u ;  u ← u - η d/‖d‖ ;  u ← u/‖u‖

``d`` is the (Nesterov) momentum of g, or of h. Besides the momentum, the optimizer keeps one
full-size tensor (the latent) and one number per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer
from torch.optim.sgd import sgd

from lpss_cli.errors import InputError
from lpss_cli.optim import lp_step, native
from lpss_cli.optim.lp_step import Rows, Rule, default_eta, to_sphere, write_weights
from lpss_cli.optim.native import SWITCH, library
from lpss_cli.optim.sharding import check_rows, local, shard_like_rows
from lpss_cli.sparsity.lp_geometry import check_p, dual_exponents, fan_in, row_dims, snap_p
from lpss_cli.sparsity.masks import log_magnitude

#: What happens to the radius of a row.
RADIUS_MODES = ("fixed", "learned", "unit")

# Former name → present name, of options of groups and of entries of the state. Keywords and saved
# states under the former names are still accepted.
_FORMER_NAMES = {
    "gain": "radius",
    "gain_lr": "radius_lr",
    "gain_momentum": "radius_momentum",
    "zero_rows": "dead_rows",
}


class LpSGD(Optimizer):
    """Stochastic gradient descent on unit Lp spheres with radii.

    Parameters of fewer than two dimensions or with a fan-in of 1, and those of groups with
    ``p=None``, take PyTorch's ordinary momentum step. A group that holds both kinds is split in
    two, so that every group has its own ``lr`` (η on the sphere) and any scheduler drives both.

    Args:
        params: parameters, named parameters or groups; a group may set every option below.
        lr: step of the ordinary parameters, ≥ 0.
        p: exponent of the sphere, 0.2…1 or 1.03…4; None for an ordinary group.
        eta: step on the sphere as a fraction of the radius, in [0, 1); None: ``default_eta(p)``.
        momentum: μ in [0, 1).
        dampening: in [0, 1); Nesterov momentum needs 0.
        nesterov: use Nesterov momentum.
        weight_decay: L2 decay of the ordinary parameters; weights on a sphere have none.
        radius: ``learned`` starts from the norm of every row and trains it: a step on log γ, along
            ``∂L/∂log γ = <g, w>``, of at most 5 %; ``fixed`` keeps the norm; ``unit`` is the radius
            1 of the paper, which changes the function of the network at once.
        radius_lr: step of log γ where the radius is learned.
        row_dim: the dimension that counts neurons; 1 for transposed convolutions.
        fused: take the step in machine code (``lpss_cli.optim.native``). None does so for fp32
            and fp64 weights on a CPU where there is a C++ compiler; False never does; True raises
            an error where there is no compiler.
        gain: former name of ``radius``; takes its place if given.
        gain_lr: former name of ``radius_lr``; takes its place if given.

    Raises:
        InputError: an option is out of range, or ``fused=True`` without a compiler.
    """

    #: State that lives on where a mask holds the weight at zero (semi-pruning).
    dormant: ClassVar[tuple[str, ...]] = ("latent",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.05,
        *,
        p: float | None = 1.15,
        eta: float | None = None,
        momentum: float = 0.9,
        dampening: float = 0.0,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        radius: str = "learned",
        radius_lr: float = 0.03,
        row_dim: int = 0,
        fused: bool | None = None,
        gain: str | None = None,
        gain_lr: float | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "p": p,
            "eta": eta,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "radius": radius if gain is None else gain,
            "radius_lr": radius_lr if gain_lr is None else gain_lr,
            "row_dim": row_dim,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, split into its part on spheres and its ordinary part."""
        for part in _split_group({**self.defaults, **_renamed(param_group)}):
            super().add_param_group(part)
        for added in self.param_groups[-2:]:
            added.setdefault("peak_lr", added["lr"])

    def take_latents(self) -> None:
        """Start the state of every weight on a sphere from its present value, unless it has one.

        The first step does so by itself; call this where weights are masked before that.
        """
        for group in self.param_groups:
            for weight in group["params"] if group["p"] is not None else ():
                if "latent" not in self.state[weight]:
                    self._take_latent(weight, group)

    @torch.no_grad()
    def _take_latent(self, weight: Tensor, group: dict[str, Any]) -> None:
        """Start the state of one weight from its present value."""
        dim, dims = group["row_dim"], row_dims(weight, group["row_dim"])
        check_rows(weight, dim)
        dtype = torch.promote_types(weight.dtype, torch.float32)
        latent = torch.empty_like(weight, dtype=dtype, requires_grad=False)
        norms = []
        for w, latent_rows in lp_step.blocks(dim, local(weight.detach()), local(latent)):
            norm, direction = to_sphere(w.to(latent.dtype), group["p"], dims)
            latent_rows.copy_(direction)
            norms.append(norm)
        norm = torch.cat(norms, dim)
        state = self.state[weight]
        state["latent"] = latent
        state["momentum_buffer"] = torch.zeros_like(latent)
        radius = (norm > 0).to(norm.dtype) if group["radius"] == "unit" else norm
        state["radius"] = shard_like_rows(radius, weight, dim)
        state["dead_rows"] = _dead_rows(norm)
        if group["radius"] == "learned":
            state["radius_momentum"] = torch.zeros_like(state["radius"])
        if group["radius"] == "unit":
            write_weights(local(weight), local(latent), radius, group["p"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a saved state, under former names too.

        Latents of half-precision weights stay in fp32, where PyTorch would cast them.
        """
        super().load_state_dict(state_dict)
        indices = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        params = chain.from_iterable(g["params"] for g in self.param_groups)
        for index, weight in zip(indices, params, strict=True):
            state = self.state[weight]
            for key, value in _renamed(state_dict["state"].get(index, {})).items():
                if isinstance(value, Tensor) and value.dtype != state[key].dtype:
                    state[key] = value.to(weight.device, copy=True)
            if "radius" in state:
                state["dead_rows"] = _dead_rows(local(state["radius"]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes of a loaded or unpickled optimizer, under former names too."""
        super().__setstate__(state)
        for named in (self.defaults, *self.param_groups, *self.state.values()):
            if not _FORMER_NAMES.keys().isdisjoint(named):
                present = _renamed(named)
                named.clear()
                named.update(present)

    def log_magnitude(self, weight: Tensor) -> Tensor:
        """Return ``log|γŵ|`` of the latent rows, masked entries included; -inf where it is zero.

        The logarithm ranks weights that have underflowed in their own number format.
        """
        p = next(g["p"] for g in self.param_groups if any(q is weight for q in g["params"]))
        if p is None:
            return log_magnitude(weight)
        self.take_latents()
        state = self.state[weight]
        exponent = dual_exponents(p)[1] if p > 1 else 2.0 / p
        latent: Tensor = state["latent"]
        return latent.abs().log().mul_(exponent).add_(state["radius"].log())

    def lr_ratio(self) -> float:
        """Return where the schedule of the spheres is, from 0 to 1; 0 where there are none.

        All their groups are driven alike, by the schedule of a method or by another one.
        """
        on_sphere = (group for group in self.param_groups if group["p"] is not None)
        return next(map(_lr_ratio, on_sphere), 0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # untyped
        # (the base class overloads closure for typing only)
        """Update every parameter that has a gradient once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.take_latents()
        for group in self.param_groups:
            weights = [w for w in group["params"] if w.grad is not None]
            if group["p"] is None:
                self._ordinary_step(weights, group)
                continue
            rule = _rule_of(group)
            for weight in weights:
                self._sphere_step(weight, group, rule)
        return loss

    def _ordinary_step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        if not params:
            return
        buffers = [self.state[p].get("momentum_buffer") for p in params]
        sgd(
            params,
            [p.grad for p in params if p.grad is not None],
            buffers,
            lr=group["lr"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
            maximize=False,
        )
        if group["momentum"]:
            for p, buffer in zip(params, buffers, strict=True):
                self.state[p]["momentum_buffer"] = buffer

    def _sphere_step(self, weight: Tensor, group: dict[str, Any], rule: Rule) -> None:
        state = self.state[weight]
        assert weight.grad is not None  # step() selected the weights that have one
        radius_momentum = state.get("radius_momentum")
        # Every process holds whole rows, so a shard of them is a weight of its own.
        rows = Rows(
            local(weight.detach()),
            local(weight.grad),
            local(state["momentum_buffer"]),
            local(state["latent"]),
            local(state["radius"]),
            None if radius_momentum is None else local(radius_momentum),
            group["row_dim"],
        )
        if not rows.weight.numel():
            return
        if group.get("fused") is not False and native.fits(rows):
            native.step(rows, rule)
            return
        if len(state["dead_rows"]):
            lp_step.revive(rows, state["dead_rows"], rule)
        lp_step.step(rows, rule)


def _split_group(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the part of a group that goes on spheres and its ordinary part, if not empty.

    Args:
        group: every option, and ``params`` as PyTorch's optimizers take them.

    Raises:
        InputError: an option is out of range.
    """
    _check_group(group)
    p = None if group["p"] is None else snap_p(group["p"])
    group = {**group, "p": p}
    params = group["params"]
    named = [
        item if isinstance(item, tuple) else (None, item)
        for item in ([params] if isinstance(params, Tensor) else list(params))
    ]
    spherical: list[tuple[str | None, Tensor]] = []
    ordinary: list[tuple[str | None, Tensor]] = []
    for item in named:
        (spherical if _on_sphere(item[1], group) else ordinary).append(item)
    eta = default_eta(p) if group["eta"] is None and p is not None else group["eta"]
    for part, options in ((spherical, {"lr": eta}), (ordinary, {"p": None})):
        if part or (not named and part is ordinary):
            items = [w if name is None else (name, w) for name, w in part]
            yield {**group, **options, "params": items}


def _on_sphere(weight: Tensor, group: dict[str, Any]) -> bool:
    """Whether a parameter of a group goes on a sphere: it has rows, and these a direction."""
    return (
        group["p"] is not None
        and weight.dim() > max(1, group["row_dim"])
        and fan_in(weight, group["row_dim"]) > 1
        and weight.is_floating_point()
    )


def _check_group(group: dict[str, Any]) -> None:
    """Check the options of a group.

    Raises:
        InputError: one is out of range, or two exclude each other.
    """
    if group["p"] is not None:
        check_p(group["p"])
    for name in ("lr", "eta", "weight_decay", "radius_lr"):
        if group[name] is not None and not 0 <= group[name] < float("inf"):
            raise InputError(f"{name} = {group[name]} is not a step", f"give a {name} ≥ 0")
    if group["eta"] is not None and group["p"] is not None and group["eta"] >= 1:
        raise InputError(
            f"eta = {group['eta']} moves a row by more than its radius", "give an eta below 1"
        )
    if not 0 <= group["momentum"] < 1 or not 0 <= group["dampening"] < 1:
        raise InputError("momentum and dampening lie in [0, 1)", "0.9 and 0 are the defaults")
    if group["nesterov"] and (group["momentum"] == 0 or group["dampening"] != 0):
        raise InputError("Nesterov needs a momentum above 0 and no dampening", "set nesterov=False")
    if group["radius"] not in RADIUS_MODES:
        raise InputError(
            f"unknown radius {group['radius']!r}", f"choose one of {', '.join(RADIUS_MODES)}"
        )
    if group["fused"] and library() is None:
        raise InputError(
            "fused=True needs a C++ compiler, and none works here",
            f"install g++ or clang++, do not set {SWITCH}=0, or leave fused out",
        )


def _rule_of(group: dict[str, Any]) -> Rule:
    """Return what all weights of a group share in the coming step."""
    return Rule(
        p=group["p"],
        eta=group["lr"],
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        # A schedule that drives the lr of the group drives its radii too.
        radius_rate=group["radius_lr"] * _lr_ratio(group),
        unit=group["radius"] == "unit",
    )


def _lr_ratio(group: dict[str, Any]) -> float:
    """Return the present step of a group over its peak, from 0 to 1."""
    return group["lr"] / group["peak_lr"] if group["peak_lr"] else 0.0


def _renamed(named: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return options or state of an earlier version under their present names."""
    return {_FORMER_NAMES.get(name, name): value for name, value in named.items()}


def _dead_rows(radius: Tensor) -> Tensor:
    """Return the indices of rows of zeros: without a direction, they wait for a gradient.

    They are looked up once, so that no step has to wait for the device to tell whether there are
    any.
    """
    return (radius.flatten() == 0).nonzero().squeeze(1)
