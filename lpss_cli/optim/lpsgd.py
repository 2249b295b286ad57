"""LpSGD: momentum SGD whose weight rows stay on Lp spheres.

Li, Yang, Li, Lu, Xie, "Training Sparse Neural Network by Constraining Synaptic Weight on Unit Lp
Sphere", arXiv:2103.16013, extended in two ways: every row keeps a radius (its *gain* γ, so that a
trained network starts as the function it is), and a second rule covers 0 < p ≤ 1.

``p > 1``, the *dual rule* (the paper's): the latent is the feature vector
``v = sign(ŵ)|ŵ|^(p-1)``, ``‖v‖_q = 1`` with ``q = p/(p-1)``; with ``a = 1/(p-1)``::

    v ← (1-η) v - η d/‖d‖_q ;  v ← v/‖v‖_q ;  w = γ sign(v)|v|^a

``0 < p ≤ 1``, the *signed-power rule*: ``‖u‖_2 = 1  ⇔  ‖sign(u)|u|^(2/p)‖_p = 1``, so the step is
one along a great circle::

    h = γ g∘(2/p)|u|^(2/p-1) ;  d ← d - <d,u>u ;  u ← u - η d/‖d‖ ;  u ← u/‖u‖

``d`` is the (Nesterov) momentum of g, or of h. One full-size copy (the latent) is kept beside the
momentum, and one scalar per row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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
from lpss_cli.optim.sharding import check_rows, local, numbers_of_rows
from lpss_cli.sparsity.lp_geometry import check_p, dual_exponents, fan_in, row_dims, snap_p
from lpss_cli.sparsity.masks import log_magnitude

# MERGED: Groups of parameters of LpSGD: their options, and which of their parameters go on spheres.
GAINS = ("fixed", "learned", "unit")


def divide(group: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the sphere part of a group and its ordinary part, those of them that there are.

    Args:
        group: every option, and ``params`` as PyTorch's optimizers take them.

    Raises:
        InputError: an option is out of range.
    """
    _check(group)
    p = None if group["p"] is None else snap_p(group["p"])
    group = {**group, "p": p}
    params = group["params"]
    named = [
        item if isinstance(item, tuple) else (None, item)
        for item in ([params] if isinstance(params, Tensor) else list(params))
    ]
    on: list[tuple[str | None, Tensor]] = []
    off: list[tuple[str | None, Tensor]] = []
    for item in named:
        (on if _on_sphere(item[1], group) else off).append(item)
    eta = default_eta(p) if group["eta"] is None and p is not None else group["eta"]
    for part, options in ((on, {"lr": eta}), (off, {"p": None})):
        if part or (not named and part is off):
            items = [w if name is None else (name, w) for name, w in part]
            yield {**group, **options, "params": items}


def rule_of(group: dict[str, Any]) -> Rule:
    """Return what is the same for all weights of a group in the coming step."""
    return Rule(
        p=group["p"],
        eta=group["lr"],
        momentum=group["momentum"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        # A schedule that drives the group's lr drives its radii too.
        gain_rate=group["gain_lr"] * lr_ratio(group),
        unit=group["gain"] == "unit",
    )


def lr_ratio(group: dict[str, Any]) -> float:
    """Return where a group's schedule is, from 0 to 1: its present step over its peak."""
    return group["lr"] / group["peak_lr"] if group["peak_lr"] else 0.0


def _on_sphere(weight: Tensor, group: dict[str, Any]) -> bool:
    return (
        group["p"] is not None
        and weight.dim() > max(1, group["row_dim"])
        and fan_in(weight, group["row_dim"]) > 1
        and weight.is_floating_point()
    )


def _check(group: dict[str, Any]) -> None:
    if group["p"] is not None:
        check_p(group["p"])
    for name in ("lr", "eta", "weight_decay", "gain_lr"):
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
    if group["gain"] not in GAINS:
        raise InputError(f"unknown gain {group['gain']!r}", f"choose one of {', '.join(GAINS)}")
    if group["fused"] and library() is None:
        raise InputError(
            "fused=True needs a C++ compiler, and none works here",
            f"install g++ or clang++, do not set {SWITCH}=0, or leave fused out",
        )


class LpSGD(Optimizer):
    """Stochastic gradient descent on unit Lp spheres with radii.

    Parameters of fewer than two dimensions or with a fan-in of 1, and those of groups with
    ``p=None``, take PyTorch's ordinary momentum step. A group that holds both kinds is split in
    two, so every group has its own ``lr`` (η on the sphere) and any scheduler drives both.

    Args:
        params: parameters, named parameters or groups; a group may set every option below.
        lr: step of the ordinary parameters, ≥ 0.
        p: exponent of the sphere, 0.2…1 or 1.03…4; None for an ordinary group.
        eta: step on the sphere as a fraction of the radius, in [0, 1); None: ``default_eta(p)``.
        momentum: μ in [0, 1).
        dampening: in [0, 1); Nesterov needs 0.
        nesterov: look one momentum step ahead.
        weight_decay: L2 decay of the ordinary parameters; a sphere has none.
        gain: ``learned`` starts from every row's own norm and trains it: a step on log γ, along
            ``∂L/∂log γ = <g, w>``, of at most 5 %; ``fixed`` keeps the norm; ``unit`` is the
            paper's radius 1 and changes the network's function at once.
        gain_lr: step of log γ when the gain is learned.
        row_dim: the dimension that counts neurons; 1 for transposed convolutions.
        fused: take the step in machine code (``lpss_cli.optim.native``). None does so for fp32
            and fp64 weights on a CPU where there is a C++ compiler; False never does; True refuses
            to do without.

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
        gain: str = "learned",
        gain_lr: float = 0.03,
        row_dim: int = 0,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "p": p,
            "eta": eta,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "gain": gain,
            "gain_lr": gain_lr,
            "row_dim": row_dim,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, split into its sphere part and its ordinary part."""
        for part in divide({**self.defaults, **param_group}):
            super().add_param_group(part)
        for added in self.param_groups[-2:]:
            added.setdefault("peak_lr", added["lr"])

    def take_latents(self) -> None:
        """Start the state of every sphere weight from its present value, unless it has one.

        The first step does so by itself; call it where weights are masked before that.
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
        wide = torch.promote_types(weight.dtype, torch.float32)
        latent = torch.empty_like(weight, dtype=wide, requires_grad=False)
        radii = []
        for part, place in lp_step.blocks(dim, local(weight.detach()), local(latent)):
            radius, direction = to_sphere(part.to(latent.dtype), group["p"], dims)
            place.copy_(direction)
            radii.append(radius)
        radius = torch.cat(radii, dim)
        state = self.state[weight]
        state["latent"] = latent
        state["momentum_buffer"] = torch.zeros_like(latent)
        gain = (radius > 0).to(radius.dtype) if group["gain"] == "unit" else radius
        state["gain"] = numbers_of_rows(gain, weight, dim)
        state["zero_rows"] = _zero_rows(radius)
        if group["gain"] == "learned":
            state["gain_momentum"] = torch.zeros_like(state["gain"])
        if group["gain"] == "unit":
            write_weights(local(weight), local(latent), gain, group["p"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; latents of half-precision weights stay in fp32 (torch would cast them)."""
        super().load_state_dict(state_dict)
        indices = chain.from_iterable(g["params"] for g in state_dict["param_groups"])
        params = chain.from_iterable(g["params"] for g in self.param_groups)
        for index, weight in zip(indices, params, strict=True):
            for key, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, Tensor) and value.dtype != self.state[weight][key].dtype:
                    self.state[weight][key] = value.to(weight.device, copy=True)
            if "gain" in self.state[weight]:
                self.state[weight]["zero_rows"] = _zero_rows(local(self.state[weight]["gain"]))

    def log_magnitude(self, weight: Tensor) -> Tensor:
        """``log|γŵ|`` of the latent row, masked entries included; -inf where it is zero.

        The logarithm ranks weights that have underflowed in their own number format.
        """
        p = next(g["p"] for g in self.param_groups if any(q is weight for q in g["params"]))
        if p is None:
            return log_magnitude(weight)
        self.take_latents()
        state = self.state[weight]
        exponent = dual_exponents(p)[1] if p > 1 else 2.0 / p
        latent: Tensor = state["latent"]
        return latent.abs().log().mul_(exponent).add_(state["gain"].log())

    def lr_ratio(self) -> float:
        """Return where the schedule of the spheres is, from 0 to 1; 0 where there are none.

        All of their groups are driven alike, by a method's schedule or by somebody else's.
        """
        on_sphere = (group for group in self.param_groups if group["p"] is not None)
        return next(map(lr_ratio, on_sphere), 0.0)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # untyped
        # (the base class overloads closure for typing only)
        """One update of every parameter that has a gradient."""
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
            rule = rule_of(group)
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
        assert weight.grad is not None  # step() chose it so
        gain_momentum = state.get("gain_momentum")
        # Rows are whole on every process, so a shard of them is a weight of its own.
        rows = Rows(
            local(weight.detach()),
            local(weight.grad),
            local(state["momentum_buffer"]),
            local(state["latent"]),
            local(state["gain"]),
            None if gain_momentum is None else local(gain_momentum),
            group["row_dim"],
        )
        if not rows.weight.numel():
            return
        if group.get("fused") is not False and native.fits(rows):
            native.step(rows, rule)
            return
        if len(state["zero_rows"]):
            lp_step.revive(rows, state["zero_rows"], rule)
        lp_step.step(rows, rule)


def _zero_rows(radius: Tensor) -> Tensor:
    """Return the indices of rows of zeros: without a direction, they wait for a gradient.

    Looked up once, so that no step has to wait for the device to know whether there are any.
    """
    return (radius.flatten() == 0).nonzero().squeeze(1)
