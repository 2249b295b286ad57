"""LpSGD as the equations say it, one row at a time, in float64: slow and literal.

The letters are the paper's (Li et al., arXiv:2103.16013) and those of the signed-power rule.
"""

from __future__ import annotations

import numpy as np


class DualRow:
    """p > 1: mirror descent with potential ‖w‖_p^p / p, normalized on both sides."""

    def __init__(self, w, p, radius):
        self.p, self.q, self.a = p, p / (p - 1), 1 / (p - 1)
        norm = (np.abs(w) ** p).sum() ** (1 / p)
        self.gamma = 1.0 if radius == "unit" else norm
        w_hat = w / norm
        self.v = np.sign(w_hat) * np.abs(w_hat) ** (p - 1)
        self.m = np.zeros_like(w)
        self.mg = 0.0

    def w(self):
        return self.gamma * np.sign(self.v) * np.abs(self.v) ** self.a

    def step(self, g, *, eta, mu, dampening, nesterov, radius_lr=None):
        w = self.w()
        self.m = mu * self.m + (1 - dampening) * g
        d = g + mu * self.m if nesterov else self.m
        norm = (np.abs(d) ** self.q).sum() ** (1 / self.q)
        if np.abs(g).max() > 0:  # a row without a gradient stays, whatever its momentum
            v = (1 - eta) * self.v - eta * d / norm
            self.v = v / (np.abs(v) ** self.q).sum() ** (1 / self.q)
        self._learn_radius(g, w, mu, dampening, nesterov, radius_lr)

    def _learn_radius(self, g, w, mu, dampening, nesterov, radius_lr):
        if radius_lr is None:
            return
        slope = float((g * w).sum())  # ∂L/∂log γ
        self.mg = mu * self.mg + (1 - dampening) * slope
        if np.abs(g).max() == 0:
            return
        change = slope + mu * self.mg if nesterov else self.mg
        self.gamma *= np.exp(np.clip(-radius_lr * change, -0.05, 0.05))


class PowerRow(DualRow):
    """0 < p ≤ 1 (and 2, for comparison): a Euclidean sphere seen through a signed power."""

    def __init__(self, w, p, radius):
        self.p = p
        norm = (np.abs(w) ** p).sum() ** (1 / p)
        self.gamma = 1.0 if radius == "unit" else norm
        self.u = np.sign(w) * np.abs(w / norm) ** (p / 2)
        self.m = np.zeros_like(w)
        self.mg = 0.0

    def w(self):
        return self.gamma * np.sign(self.u) * np.abs(self.u) ** (2 / self.p)

    def step(self, g, *, eta, mu, dampening, nesterov, radius_lr=None):
        w = self.w()
        h = self.gamma * g * (2 / self.p) * np.abs(self.u) ** (2 / self.p - 1)
        self.m = mu * self.m + (1 - dampening) * h
        d = h + mu * self.m if nesterov else self.m
        d = d - (d @ self.u) * self.u
        norm = np.sqrt((d**2).sum())
        if np.abs(g).max() > 0:
            u = self.u - eta * d / norm
            self.u = u / np.sqrt((u**2).sum())
        self._learn_radius(g, w, mu, dampening, nesterov, radius_lr)


def ordinary_step(w, m, g, *, lr, mu, dampening, nesterov, weight_decay):
    """The momentum step of parameters that are not on a sphere."""
    g = g + weight_decay * w
    m = g if m is None else mu * m + (1 - dampening) * g
    d = g + mu * m if nesterov else m
    return w - lr * d, m
