"""LAMP scores as the paper defines them (Lee et al., arXiv:2010.07611), by sorting every layer."""

from __future__ import annotations

import math

import torch


def lamp_scores(scores):
    """Log of ``w_i² / Σ_{|w_j| ≥ |w_i|} w_j²`` within each layer, of log|w|."""
    result = {}
    for name, s in scores.items():
        double = s.flatten().double().mul(2)
        ordered, index = double.sort(descending=True, stable=True)
        lamp = torch.empty_like(double)
        lamp[index] = ordered - ordered.logcumsumexp(0)
        lamp[double.isneginf()] = -math.inf
        result[name] = lamp.view(s.shape)
    return result
