"""Options of training, declared once for the command line, recipes, settings and Python.

Like every module that declares options, this one does not import PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from lpss_cli.sparsity.targets import parse_sparsity
from lpss_cli.training import method as methods
from lpss_cli.utils.options import SPARSITY_PANEL, TRAINING_PANEL, option

#: ``int`` once the number is chosen, ``int | None`` while it may be open; likewise for floats.
Count = TypeVar("Count", int, "int | None")
Number = TypeVar("Number", float, "float | None")

#: Number formats of activations and products; weights, gradients and optimizer state are fp32.
PRECISIONS = ("fp32", "bf16")
#: Fraction of zeros that a network is sparsified to where nothing is asked for.
SPARSITY = 0.9
#: Temperature of distillation: soft enough to show the order of the wrong classes (Hinton et al.,
#: arXiv:1503.02531, use 1 to 20).
TEMPERATURE = 4.0


class Budget(NamedTuple):
    """Length of a training whose number of epochs is open: the longer of the two."""

    epochs: int
    steps: int


#: Long enough to settle on small data; on large data, epochs count.
TRAIN_BUDGET, SPARSIFY_BUDGET = Budget(12, 2000), Budget(4, 1000)

_MORE = "more on small data"


@dataclass(frozen=True)
class TrainingOptions(Generic[Count, Number]):
    """Options that decide what a training computes, except those of its method.

    A request has numbers that are still open (``TrainingOptions[int | None, float | None]``);
    settings have numbers (``TrainingOptions[int, float]``).
    """

    epochs: Count = option(
        None,
        "number of passes over the training data; 0 prunes without training",
        low=0,
        group=TRAINING_PANEL,
        default_text={
            "": f"{SPARSIFY_BUDGET.epochs}, {_MORE}",
            "train": f"{TRAIN_BUDGET.epochs}, {_MORE}",
            "ticket": f"{TRAIN_BUDGET.epochs}, {_MORE}",
            "compare": f"{TRAIN_BUDGET.epochs}, {_MORE}",
        },
        python_default=SPARSIFY_BUDGET.epochs,
    )
    batch_size: Count = option(
        None,
        "number of examples per step, over all processes",
        low=1,
        group=TRAINING_PANEL,
        default_text="16 to 256, by the size of the data",
        python_default=256,
    )
    seed: int = option(
        0,
        "seed for initialization, data order, dropout and random masks",
        low=0,
        high=2**63 - 1,
        high_text="2^63 - 1",
        group=TRAINING_PANEL,
    )
    sparsity: Number = option(
        None,
        "fraction of the prunable weights that become zero: 0.9, 90%, or 10x for one weight in "
        "ten kept",
        group=SPARSITY_PANEL,
        short="-s",
        parse=parse_sparsity,
        default_text={"": f"{SPARSITY:g}", "train": "0"},
        python_default=SPARSITY,
    )
    layers: tuple[str, ...] = option(
        (),
        "PATTERN=SPARSITY, the exact sparsity of the layers that match; the other layers share "
        "what the overall target leaves; repeatable, later ones win",
        group=SPARSITY_PANEL,
        key="layer",
    )
    skip: tuple[str, ...] = option(
        (), "weights that are not pruned, by pattern; repeatable", group=SPARSITY_PANEL
    )
    precision: str = option(
        "fp32",
        "number format of the forward and backward passes; weights and optimizer stay in fp32",
        choices=PRECISIONS,
        group=TRAINING_PANEL,
        advanced=True,
    )
    distill: Number = option(
        None,
        "weight of distillation in the loss, 0 to 1: compares the class scores with those of the "
        "network as it was before",
        low=0,
        high=1,
        group=TRAINING_PANEL,
        default_text="0",
        python_default=0.0,
        advanced=True,
    )
    temperature: Number = option(
        None,
        "temperature of --distill; higher is softer",
        low=0.1,
        high=100,
        group=TRAINING_PANEL,
        default_text=f"{TEMPERATURE:g}",
        python_default=TEMPERATURE,
        advanced=True,
    )


@dataclass(frozen=True)
class MethodOptions:
    """How a network becomes sparse.

    Attributes:
        method: Name of a registered method; None: ``default_method``.
    """

    method: str | None = option(
        None,
        f"how the network becomes sparse: {', '.join(methods.registry())}",
        group=SPARSITY_PANEL,
        short="-m",
        default_text={
            "": methods.DEFAULT,
            "train": f"{methods.DENSE}, or {methods.DEFAULT} with --sparsity or --layer",
        },
        suggestions=lambda: tuple(methods.registry()),
        python_default=methods.DEFAULT,
    )


def suitable_batch_size(examples: int) -> int:
    """Return the batch size for so many examples: a power of two from 16 to 256.

    It leaves 64 steps or more per epoch where 16 allows that.
    """
    return max(16, min(256, 1 << max(0, (examples // 64).bit_length() - 1)))


def suitable_epochs(budget: Budget, examples: int, batch_size: int) -> int:
    """Return the number of epochs in which a budget is spent on so many examples."""
    return max(budget.epochs, -(-budget.steps // max(1, examples // batch_size)))
