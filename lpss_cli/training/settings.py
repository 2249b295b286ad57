"""Training settings beside the method's own."""

from __future__ import annotations

from dataclasses import dataclass

from lpss_cli.training.options import TEMPERATURE, TrainingOptions


@dataclass(frozen=True)
class TrainingSettings(TrainingOptions[int, float]):
    """The options of one training, with every number chosen.

    Attributes, beside those of :class:`TrainingOptions`:
        epochs: passes over the training data; 0 only prunes.
        batch_size: examples per step, over all processes; a smaller last batch is dropped.
        keep_zeros: whether training starts from a checkpoint whose zeros stay zero.
    """

    sparsity: float = 0.0
    distill: float = 0.0
    temperature: float = TEMPERATURE
    keep_zeros: bool = False
