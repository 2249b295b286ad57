"""Groups of parameters of LpSGD: their options, and which of their parameters go on spheres."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lpss_cli.errors import InputError
from lpss_cli.optim.native import SWITCH, library
from lpss_cli.optim.rowstep import Rule
from lpss_cli.optim.rules import default_eta
from lpss_cli.sphere import check_p, fan_in, snap_p

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
        gain_rate=group["gain_lr"] * part_of_peak(group),
        unit=group["gain"] == "unit",
    )


def part_of_peak(group: dict[str, Any]) -> float:
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
