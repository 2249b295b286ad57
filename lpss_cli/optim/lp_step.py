"""One step of LpSGD on the rows of one weight, in PyTorch operations: any device, any layout.

The letters are those of ``lpsgd.py``: v and u are latents, d a direction, γ the radius of a row,
η the step on the sphere. All functions work in the shape and the memory format of the weight;
``dims`` are the dimensions that make up a row.

``native`` takes the same step in machine code. Both change the weight, the momentum, the latent and
the radii in place, and both are compared with the formulas in ``tests/reference``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpss_cli.sparsity.lp_geometry import Dims, dual_exponents, fan_in, lp_norm, power, row_dims

#: The largest change of log γ in one step. A gradient may be of any size, and its exponential too.
MAX_LOG_RADIUS_STEP = 0.05
# Weights in one block of whole rows on a CPU: few enough for the temporaries of a block to stay in
# a cache, and enough to outweigh the operations on one number per row.
_BLOCK = 1 << 17


@dataclass(frozen=True)
class Rule:
    """What all weights of a parameter group share in one step.

    Attributes:
        p: exponent of the sphere.
        eta: step on the sphere, as a fraction of the radius.
        momentum, dampening, nesterov: as in ``torch.optim.SGD``.
        radius_rate: step on log γ; radii are learned where rows have a ``radius_momentum``.
        unit: all radii are 1.
    """

    p: float
    eta: float
    momentum: float
    dampening: float
    nesterov: bool
    radius_rate: float
    unit: bool


@dataclass(frozen=True)
class Rows:
    """One weight with its gradient and its state.

    Attributes:
        weight, grad: tensors of one shape, in any floating-point format.
        momentum, latent: tensors of that shape, fp32 or fp64.
        radius: one number per row, with kept dimensions, in the format of the latent.
        radius_momentum: the same for the momentum of log γ; None where radii are not learned.
        row_dim: the dimension that counts rows.
    """

    weight: Tensor
    grad: Tensor
    momentum: Tensor
    latent: Tensor
    radius: Tensor
    radius_momentum: Tensor | None
    row_dim: int = 0


def step(rows: Rows, rule: Rule) -> None:
    """Take one step on all rows, in place."""
    dims = row_dims(rows.weight, rows.row_dim)
    tensors = [rows.weight, rows.grad, rows.momentum, rows.latent, rows.radius]
    if rows.radius_momentum is not None:
        tensors.append(rows.radius_momentum)
    for w, g, m, latent, radius, *learned in blocks(rows.row_dim, *tensors):
        radius_momentum = learned[0] if learned else None
        _step_block(Rows(w, g, m, latent, radius, radius_momentum, rows.row_dim), rule, dims)


def revive(rows: Rows, dead_rows: Tensor, rule: Rule) -> None:
    """Give rows of zeros that have received a gradient the direction of an ordinary step.

    Args:
        rows: the weight and its state.
        dead_rows: indices of the rows whose radius may be zero; those among them that have a
            radius by now stay as they are.
        rule: of the group.
    """
    dim, dims = rows.row_dim, row_dims(rows.weight, rows.row_dim)
    radius, latent = (t.index_select(dim, dead_rows) for t in (rows.radius, rows.latent))
    moved = rows.grad.index_select(dim, dead_rows).to(latent.dtype).mul_(-rule.eta)
    new_radius, direction = to_sphere(moved, rule.p, dims)
    revived = (radius == 0) & (new_radius > 0)
    new_radius = torch.ones_like(new_radius) if rule.unit else new_radius
    rows.latent.index_copy_(dim, dead_rows, torch.where(revived, direction, latent))
    rows.radius.index_copy_(dim, dead_rows, torch.where(revived, new_radius, radius))


def blocks(row_dim: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of every tensor, as views: in blocks on a CPU, all at once elsewhere.

    Args:
        row_dim: the dimension that counts rows.
        tensors: the first one has the shape of a weight.
    """
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= _BLOCK:
        return iter((tensors,))
    count = max(1, _BLOCK // fan_in(first, row_dim))
    return zip(*(t.split(count, row_dim) for t in tensors), strict=True)


def _step_block(rows: Rows, rule: Rule, dims: Dims) -> None:
    latent = rows.latent
    g = rows.grad.to(latent.dtype)
    live = max_magnitude(g, dims) > 0
    # ∂L/∂log γ, of the weight before it moves.
    slope = (g * rows.weight).sum(dims, keepdim=True) if rows.radius_momentum is not None else None
    powers = None
    if rule.p > 1:
        d = _update_momentum(rows.momentum, g, rule)
        powers = dual_step(latent, d, rule.eta, rule.p, dims, live)
    else:
        h = power(latent.abs(), 2.0 / rule.p - 1.0).mul_(g).mul_(rows.radius * (2.0 / rule.p))
        d = _update_momentum(rows.momentum, h, rule)
        power_step(latent, d, rule.eta, dims, live)
    if slope is not None and rows.radius_momentum is not None:
        change = _update_momentum(rows.radius_momentum, slope, rule)
        bound = MAX_LOG_RADIUS_STEP
        log_step = (-rule.radius_rate * change).clamp_(-bound, bound)
        rows.radius.mul_(log_step.mul_(live).exp_())
    write_weights(rows.weight, latent, rows.radius, rule.p, powers)


def _update_momentum(buffer: Tensor, g: Tensor, rule: Rule) -> Tensor:
    """Update the buffer with g; return the direction, a tensor that the caller may not keep."""
    if rule.dampening:
        buffer.mul_(rule.momentum).add_(g, alpha=1.0 - rule.dampening)
    else:
        torch.add(g, buffer, alpha=rule.momentum, out=buffer)
    return g.add(buffer, alpha=rule.momentum) if rule.nesterov else buffer


def dual_step(
    v: Tensor, d: Tensor, eta: float, p: float, dims: Dims, live: Tensor
) -> tuple[Tensor, Tensor]:
    """Move the feature vector ``v`` by η along ``-d/‖d‖_q`` and renormalize it, in place.

    Rows whose ``d`` is zero, or that are not ``live``, keep their v: the step is normalized, so
    what is left of an old momentum would move a row without a gradient forever.

    Returns:
        ``|v|^a`` before the renormalization, and ``S^(-1/p)``, its factor per row: since
        ``|v|^q = |v|·|v|^a``, one power serves both the norm ``S = Σ|v|^q`` and the weight.
    """
    q, a = dual_exponents(p)
    largest = max_magnitude(d, dims)
    live = live & (largest > 0)
    # The η of every row, in its number format: torch.where on two scalars would round to fp32.
    step = live.to(v.dtype).mul_(eta)
    largest = torch.where(live, largest, 1)
    d = d.div(largest)
    magnitude = d.abs()
    # At least 1, except for rows of zeros.
    norm = power(magnitude, q).sum(dims, keepdim=True).pow_(1.0 / q).clamp_min_(1.0)
    # (1-η)v - ηd/‖d‖, divided by 1-η: it is renormalized anyway.
    v.addcmul_(d, step / norm.mul_(step - 1.0))
    if eta > 0.5:
        v.mul_(1.0 - step)  # undo the division: a power of 1/(1-η) would overflow
    torch.abs(v, out=magnitude)
    w0 = power(magnitude, a)
    total = magnitude.mul_(w0).sum(dims, keepdim=True)
    total = torch.where(live & (total > 0), total, 1.0)
    v.mul_(total.pow(-1.0 / q))
    return w0, total.pow_(-1.0 / p)


def power_step(u: Tensor, d: Tensor, eta: float, dims: Dims, live: Tensor) -> None:
    """Move ``u`` by η along the part of ``-d`` that is tangent to the unit 2-sphere, in place.

    Rows that are not ``live`` keep their u.
    """
    largest = max_magnitude(d, dims)
    d = d / torch.where(largest > 0, largest, 1)
    scratch = d.square()
    before = scratch.sum(dims, keepdim=True)
    along = torch.mul(d, u, out=scratch).sum(dims, keepdim=True)
    tangent = d.addcmul_(u, along.neg_())
    after = torch.square(tangent, out=scratch).sum(dims, keepdim=True)
    # What a gradient along u leaves behind is rounding noise, which has no direction.
    noise = (8 * torch.finfo(u.dtype).eps) ** 2
    live = live & (after > noise * before)
    u.addcmul_(tangent, torch.where(live, -eta * after.rsqrt(), 0.0))
    u.mul_(torch.square(u, out=scratch).sum(dims, keepdim=True).rsqrt().where(live, 1.0))


def write_weights(
    weight: Tensor,
    latent: Tensor,
    radius: Tensor,
    p: float,
    powers: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write ``w = γ sign(latent)|latent|^e`` into the weight, kept away from underflow.

    Args:
        weight: overwritten.
        latent: v with ``e = 1/(p-1)`` for p > 1, else u with ``e = 2/p``.
        radius: γ of every row.
        p: exponent of the sphere.
        powers: what :func:`dual_step` returned; None: the power is computed here.
    """
    if powers is None:
        exponent = dual_exponents(p)[1] if p > 1 else 2.0 / p
        powers = power(latent.abs(), exponent), torch.ones_like(radius)
    magnitude, factor = powers
    # Only a mask makes a weight zero. The smallest normal number also spares the forward pass the
    # slow arithmetic of denormals.
    tiny = torch.finfo(weight.dtype).tiny
    torch.mul(magnitude.mul_(radius * factor).clamp_min_(tiny), latent.sign(), out=weight)


def to_sphere(w: Tensor, p: float, dims: Dims) -> tuple[Tensor, Tensor]:
    """Return the radii and the latents of the rows of ``w``; both are 0 for rows of zeros."""
    radius = lp_norm(w, p, dims)
    unit = w.abs() / torch.where(radius > 0, radius, 1)
    latent = power(unit, p - 1.0 if p > 1 else p / 2.0).mul_(w.sign())
    return radius, latent


def max_magnitude(x: Tensor, dims: Dims) -> Tensor:
    """Return the largest magnitude of every row; reading twice is cheaper than a copy of |x|."""
    return torch.maximum(x.amax(dims, keepdim=True), x.amin(dims, keepdim=True).neg_())


def default_eta(p: float) -> float:
    """Return the peak step η on the sphere that suits p: 0.01 above 1, else ``0.0075·p^1.75``.

    For p ≤ 1, the step acts on ``|u|^(2/p)``: the same angle moves a weight 2/p times as far.
    """
    return 0.01 if p > 1 else 0.0075 * p**1.75
