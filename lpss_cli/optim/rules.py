"""The two update rules of LpSGD on one weight: pure functions of tensors.

The letters are those of ``lpsgd.py``: v and u are latents, d a direction, γ the row's radius.
Every function works in the weight's own shape and memory format; ``dims`` make up a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lpss_cli.sphere import Dims, dual_exponents, lp_norm, power


def default_eta(p: float) -> float:
    """Return the peak sphere step η that suits p: 0.01 above 1, else ``0.0075·p^1.75``.

    Below 1 the step acts on ``|u|^(2/p)``: the same angle moves a weight 2/p times as far.
    """
    return 0.01 if p > 1 else 0.0075 * p**1.75


def dual_step(
    v: Tensor, d: Tensor, eta: float, p: float, dims: Dims, live: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the feature vector ``v`` by η along ``-d/‖d‖_q`` and renormalise it, in place.

    Rows whose ``d`` is zero, or that are not ``live``, keep their v: the step is normalised, so
    what is left of an old momentum would move a row without a gradient for ever.

    Returns:
        ``|v|^a`` before the renormalisation and ``S^(-1/p)``, its row factor: since
        ``|v|^q = |v|·|v|^a``, one power serves the norm ``S = Σ|v|^q`` and the weight.
    """
    q, a = dual_exponents(p)
    largest = largest_of(d, dims)
    live = live & (largest > 0)
    # The row's own η, in its number format: torch.where on two scalars would round to fp32.
    step = live.to(v.dtype).mul_(eta)
    largest = torch.where(live, largest, 1)
    d = d.div(largest)
    magnitude = d.abs()
    # At least 1, but for rows of zeros.
    norm = power(magnitude, q).sum(dims, keepdim=True).pow_(1.0 / q).clamp_min_(1.0)
    # (1-η)v - ηd/‖d‖, divided by 1-η: it is renormalised anyway.
    v.addcmul_(d, step / norm.mul_(step - 1.0))
    if eta > 0.5:
        v.mul_(1.0 - step)  # not divided after all: a power of 1/(1-η) would overflow
    torch.abs(v, out=magnitude)
    w0 = power(magnitude, a)
    total = magnitude.mul_(w0).sum(dims, keepdim=True)
    total = torch.where(live & (total > 0), total, 1.0)
    v.mul_(total.pow(-1.0 / q))
    return w0, total.pow_(-1.0 / p)


def power_step(u: Tensor, d: Tensor, eta: float, dims: Dims, live: Tensor) -> None:
    """Move ``u`` by η along the part of ``-d`` tangent to the unit 2-sphere, in place.

    Rows that are not ``live`` keep their u.
    """
    largest = largest_of(d, dims)
    d = d / torch.where(largest > 0, largest, 1)
    scratch = d.square()
    before = scratch.sum(dims, keepdim=True)
    along = torch.mul(d, u, out=scratch).sum(dims, keepdim=True)
    tangent = d.addcmul_(u, along.neg_())
    after = torch.square(tangent, out=scratch).sum(dims, keepdim=True)
    # What a gradient along u leaves behind is rounding noise; it has no direction.
    noise = (8 * torch.finfo(u.dtype).eps) ** 2
    live = live & (after > noise * before)
    u.addcmul_(tangent, torch.where(live, -eta * after.rsqrt(), 0.0))
    u.mul_(torch.square(u, out=scratch).sum(dims, keepdim=True).rsqrt().where(live, 1.0))


def show(
    weight: Tensor,
    latent: Tensor,
    gain: Tensor,
    p: float,
    scaled: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write ``w = γ sign(latent)|latent|^e`` into the weight, kept away from underflow."""
    if scaled is None:
        exponent = dual_exponents(p)[1] if p > 1 else 2.0 / p
        scaled = power(latent.abs(), exponent), torch.ones_like(gain)
    magnitude, factor = scaled
    # A weight is zero by a mask or not at all: the smallest normal number also spares the
    # forward pass the slow arithmetic of denormals.
    tiny = torch.finfo(weight.dtype).tiny
    torch.mul(magnitude.mul_(gain * factor).clamp_min_(tiny), latent.sign(), out=weight)


def largest_of(x: Tensor, dims: Dims) -> Tensor:
    """Largest magnitude of every row; two readings cost less than a copy of magnitudes."""
    return torch.maximum(x.amax(dims, keepdim=True), x.amin(dims, keepdim=True).neg_())


def to_sphere(w: Tensor, p: float, dims: Dims) -> tuple[Tensor, Tensor]:
    """Row radii and latents of ``w``; rows of zeros get radius 0 and latent 0."""
    radius = lp_norm(w, p, dims)
    unit = w.abs() / torch.where(radius > 0, radius, 1)
    latent = power(unit, p - 1.0 if p > 1 else p / 2.0).mul_(w.sign())
    return radius, latent
