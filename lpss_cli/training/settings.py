"""Training settings, besides those of the method."""

from __future__ import annotations

from dataclasses import dataclass

from lpss_cli.training.options import TEMPERATURE, TrainingOptions


@dataclass(frozen=True)
class TrainingSettings(TrainingOptions[int, float]):
    """The options of one training, with every number chosen.

    Attributes, besides those of :class:`TrainingOptions`:
        keep_zeros: whether training starts from a checkpoint whose zeros stay zero.
    """

    sparsity: float = 0.0
    distill: float = 0.0
    temperature: float = TEMPERATURE
    keep_zeros: bool = False
