"""One step of LpSGD on the rows of one weight, in PyTorch's operations: any device, any layout.

``native`` does the same in machine code. Both change weight, momentum, latent and gains in place,
and both are compared with the formulas in ``tests/reference``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpss_cli.optim.rules import dual_step, largest_of, power_step, show, to_sphere
from lpss_cli.sphere import Dims, fan_in, power, row_dims

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
    show(rows.weight, latent, rows.gain, rule.p, scaled)


def wake(rows: Rows, zero_rows: Tensor, rule: Rule) -> None:
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
