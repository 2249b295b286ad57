"""Knowledge distillation: a sparse network learns what the dense one says of every example.

Hinton, Vinyals & Dean, arXiv:1503.02531. With logits z of the student and v of the teacher, both
divided by a temperature T before the softmax,

    L = (1 - W) · L_task + W · T² · KL(softmax(v/T) ‖ softmax(z/T)),

where T² keeps the gradient of the second part as large as it is at T = 1.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lpss_cli.data.tasks import Task
from lpss_cli.errors import InputError
from lpss_cli.utils import torch_utils


@dataclass(frozen=True)
class Teacher:
    """A fixed network and how much it counts.

    Attributes:
        model: in evaluation mode, without gradients, on the student's device.
        weight: W in (0, 1]; at 1 the targets play no part.
        temperature: T > 0.
        precision: of its forward pass.
    """

    model: nn.Module
    weight: float
    temperature: float
    precision: str = "fp32"

    def loss(self, x: Tensor, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the task's loss with the teacher's part.

        Args:
            x: (N, …) the inputs as the student saw them.
            outputs: (N, C) the student's logits, in fp32.
            loss: scalar, the task's.
        """
        with torch.no_grad(), torch_utils.autocast(x.device, self.precision):
            said = self.model(x)
        return (1 - self.weight) * loss + self.weight * divergence(
            outputs, said.to(outputs.dtype), self.temperature
        )


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T²·KL(softmax(teacher/T) ‖ softmax(student/T))``, a mean over the examples.

    Args:
        student: (N, C) logits.
        teacher: (N, C) logits.
        temperature: T > 0.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def teacher_of(model: nn.Module, weight: float, temperature: float, precision: str) -> Teacher:
    """Return a teacher with the weights that a model has now; it takes as much memory again."""
    fixed = copy.deepcopy(model).eval().requires_grad_(False)
    return Teacher(fixed, weight, temperature, precision)


def check_task(task: Task) -> None:
    """Refuse tasks without class scores.

    Raises:
        InputError: it is no classification.
    """
    if task.name != "classification":
        raise InputError(
            f"--distill compares scores of classes, and the task is {task.name}",
            "leave --distill out, or let the factory's own loss do it",
        )
