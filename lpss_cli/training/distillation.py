"""Knowledge distillation: a sparse network learns the dense network's outputs.

Hinton, Vinyals & Dean, arXiv:1503.02531. With logits z of the student and v of the teacher, both
divided by a temperature T before the softmax,

    L = (1 - W) · L_task + W · T² · KL(softmax(v/T) ‖ softmax(z/T)),

where T² keeps the gradient of the second term as large as it is at T = 1.
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
    """A fixed network, and the weight of its loss.

    Attributes:
        model: in evaluation mode, without gradients, on the student's device.
        weight: W in (0, 1]; at 1 the targets do not count.
        temperature: T > 0.
        precision: precision of the teacher's forward pass.
    """

    model: nn.Module
    weight: float
    temperature: float
    precision: str = "fp32"

    def loss(self, x: Tensor, outputs: Tensor, loss: Tensor) -> Tensor:
        """Return the weighted sum of the task's loss and the distillation loss.

        Args:
            x: (N, …) inputs, as the student sees them.
            outputs: (N, C) logits of the student, in fp32.
            loss: scalar loss of the task.
        """
        with torch.no_grad(), torch_utils.autocast(x.device, self.precision):
            logits = self.model(x)
        return (1 - self.weight) * loss + self.weight * divergence(
            outputs, logits.to(outputs.dtype), self.temperature
        )


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return ``T²·KL(softmax(teacher/T) ‖ softmax(student/T))``, averaged over the examples.

    Args:
        student: (N, C) logits.
        teacher: (N, C) logits.
        temperature: T > 0.
    """
    log_q = F.log_softmax(student / temperature, dim=1)
    log_p = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def teacher_of(model: nn.Module, weight: float, temperature: float, precision: str) -> Teacher:
    """Return a teacher with a copy of the model's present weights."""
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    return Teacher(copied, weight, temperature, precision)


def check_task(task: Task) -> None:
    """Refuse tasks without class scores.

    Raises:
        InputError: the task is not classification.
    """
    if task.name != "classification":
        raise InputError(
            f"--distill compares class scores, and the task is {task.name}",
            "leave --distill out, or put distillation into the factory's own loss",
        )
