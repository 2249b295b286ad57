"""One step of LpSGD on the rows of one weight, in PyTorch's operations: any device, any layout.

``native`` does the same in machine code. Both change weight, momentum, latent and gains in place,
and both are compared with the formulas in ``tests/reference``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpss_cli.sparsity.lp_geometry import Dims, dual_exponents, fan_in, lp_norm, power, row_dims


# MERGED: The two update rules of LpSGD on one weight: pure functions of tensors.
# MERGED: The letters are those of ``lpsgd.py``: v and u are latents, d a direction, γ the row's
# MERGED: radius.
# MERGED: Every function works in the weight's own shape and memory format; ``dims`` make up a row.
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


def write_weights(
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


# A gradient may be of any size, and exp() of it would be of any size too.
LARGEST_GAIN_STEP = 0.05
# Weights of a block of whole rows on a CPU: few enough for its temporaries to stay in a cache, and
# enough to outweigh the operations on one number a row.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Rule:
    """What is the same for all weights of a group in one step; the letters are ``lpsgd``'s.

    Attributes:
        p: exponent of the sphere.
        eta: step on the sphere, a part of the radius.
        momentum, dampening, nesterov: as in ``torch.optim.SGD``.
        gain_rate: step on log γ; radii are learned where rows have a ``gain_momentum``.
        unit: radii are 1.
    """

    p: float
    eta: float
    momentum: float
    dampening: float
    nesterov: bool
    gain_rate: float
    unit: bool


@dataclass(frozen=True)
class Rows:
    """One weight, its gradient and its state, all of the weight's shape or one number a row.

    Attributes:
        weight, grad: of any floating-point format.
        momentum, latent: of the weight's shape, fp32 or fp64.
        gain, gain_momentum: one number a row, dimensions kept; the latter where radii are learned.
        row_dim: the dimension that counts rows.
    """

    weight: Tensor
    grad: Tensor
    momentum: Tensor
    latent: Tensor
    gain: Tensor
    gain_momentum: Tensor | None
    row_dim: int = 0


def step(rows: Rows, rule: Rule) -> None:
    """Take a step on all rows, in place."""
    dims = row_dims(rows.weight, rows.row_dim)
    tensors = [rows.weight, rows.grad, rows.momentum, rows.latent, rows.gain]
    if rows.gain_momentum is not None:
        tensors.append(rows.gain_momentum)
    for w, g, m, latent, gain, *learned in blocks(rows.row_dim, *tensors):
        gain_momentum = learned[0] if learned else None
        _block_step(Rows(w, g, m, latent, gain, gain_momentum, rows.row_dim), rule, dims)


def blocks(row_dim: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of every tensor, as views: on a CPU in blocks, elsewhere all at once.

    Args:
        row_dim: the dimension that counts rows.
        tensors: the first one has a weight's shape.
    """
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        return iter((tensors,))
    count = max(1, BLOCK // fan_in(first, row_dim))
    return zip(*(t.split(count, row_dim) for t in tensors), strict=True)


def _block_step(rows: Rows, rule: Rule, dims: Dims) -> None:
    latent = rows.latent
    g = rows.grad.to(latent.dtype)
    live = largest_of(g, dims) > 0
    slope = (g * rows.weight).sum(dims, keepdim=True) if rows.gain_momentum is not None else None
    scaled = None
    if rule.p > 1:
        d = _momentum(rows.momentum, g, rule)
        scaled = dual_step(latent, d, rule.eta, rule.p, dims, live)
    else:
        h = power(latent.abs(), 2.0 / rule.p - 1.0).mul_(g).mul_(rows.gain * (2.0 / rule.p))
        d = _momentum(rows.momentum, h, rule)
        power_step(latent, d, rule.eta, dims, live)
    if slope is not None and rows.gain_momentum is not None:
        change = _momentum(rows.gain_momentum, slope, rule)
        bound = LARGEST_GAIN_STEP
        log_step = (-rule.gain_rate * change).clamp_(-bound, bound)
        rows.gain.mul_(log_step.mul_(live).exp_())
    write_weights(rows.weight, latent, rows.gain, rule.p, scaled)


def revive(rows: Rows, zero_rows: Tensor, rule: Rule) -> None:
    """Give rows of zeros that have got a gradient a direction: one ordinary step.

    Args:
        rows: the weight and its state.
        zero_rows: indices of the rows whose radius may be zero; others among them stay.
        rule: of the group.
    """
    dim, dims = rows.row_dim, row_dims(rows.weight, rows.row_dim)
    gain, latent = (t.index_select(dim, zero_rows) for t in (rows.gain, rows.latent))
    moved = rows.grad.index_select(dim, zero_rows).to(latent.dtype).mul_(-rule.eta)
    radius, direction = to_sphere(moved, rule.p, dims)
    waking = (gain == 0) & (radius > 0)
    radius = torch.ones_like(radius) if rule.unit else radius
    rows.latent.index_copy_(dim, zero_rows, torch.where(waking, direction, latent))
    rows.gain.index_copy_(dim, zero_rows, torch.where(waking, radius, gain))


def _momentum(buffer: Tensor, g: Tensor, rule: Rule) -> Tensor:
    """Update the buffer with g and return the direction, a tensor the caller may not keep."""
    if rule.dampening:
        buffer.mul_(rule.momentum).add_(g, alpha=1.0 - rule.dampening)
    else:
        torch.add(g, buffer, alpha=rule.momentum, out=buffer)
    return g.add(buffer, alpha=rule.momentum) if rule.nesterov else buffer
