"""Loaded data: two sources of batches, and what a run has to know about them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lpss_cli.data.splits import fingerprint_texts, split
from lpss_cli.data.tasks import Task
from lpss_cli.errors import InputError
from lpss_cli.utils.seeds import derive_seed

if TYPE_CHECKING:
    from lpss_cli.data.sources import Augment, Source
    from lpss_cli.data.spec import DataSpec


@dataclass(frozen=True)
class Data:
    """A training and a test part, ready to be batched.

    Attributes:
        spec: the specification with the data's own defaults (sizes, mean, std, augmentation)
            filled in, so that loading it again gives the same tensors.
        name: a short name for display.
        train: the examples to learn from.
        test: the examples to measure with; never used to choose anything.
        task: loss and metrics.
        input_shape: shape of one example, (C, H, W) for images, (F,) for tables.
        outputs: number of outputs of the network.
        classes: class names by index; empty for regression.
        preprocessing: what was done to the values, in plain JSON-able containers: ``kind`` and
            ``mean``, ``std``, ``image_size`` or the table's columns.
        fingerprint: SHA-256 in hex of the raw data.
        augment: the augmentation of training batches; None: none.
        default_augment: the policy that is usual for this data set; None: none.
    """

    spec: DataSpec
    name: str
    train: Source
    test: Source
    task: Task
    input_shape: tuple[int, ...]
    outputs: int
    classes: tuple[str, ...]
    preprocessing: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    augment: Augment | None = None
    default_augment: str | None = None

    def holdout(self, fraction: float, seed: int) -> Data:
        """Split the training part into two, to choose settings without using the test part.

        The split is stratified for classification if the labels are known in advance. The
        preprocessing stays that of the whole training part. The fingerprint changes, because the
        data are different.

        Args:
            fraction: the share of the training examples to measure with, in (0, 1).
            seed: fixes the split.

        Raises:
            InputError: a fraction out of range, or a part that would lack a class.
        """
        if not 0 < fraction < 1:
            raise InputError(f"holdout fraction {fraction} is not between 0 and 1", "give e.g. 0.1")
        labels = self.train.labels if self.task.name == "classification" else None
        n = len(self.train)
        sklearn_seed = derive_seed("holdout", seed) % 2**32
        train, test = split(n, round(fraction * n), sklearn_seed, labels, self.classes)
        return replace(
            self,
            train=self.train.subset(train),
            test=self.train.subset(test),
            fingerprint=fingerprint_texts(
                (self.fingerprint, "holdout", repr(fraction), repr(seed))
            ),
        )
