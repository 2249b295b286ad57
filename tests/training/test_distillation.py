"""Distillation: the loss in closed form, a teacher that never changes, and options that fit."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import blobs, network

from lpss_cli.data import TensorSource
from lpss_cli.data.tasks import REGRESSION
from lpss_cli.errors import InputError
from lpss_cli.training import callbacks, method
from lpss_cli.training.distillation import divergence, teacher_of
from lpss_cli.training.settings import TrainingSettings
from lpss_cli.training.trainer import Trainer


def test_the_divergence_by_hand():
    # Teacher 3/4 and 1/4 at T = 2, student even: KL = 3/4 log(3/2) + 1/4 log(1/2), times 4.
    teacher = 2 * torch.tensor([[math.log(3.0), 0.0]], dtype=torch.float64)
    student = torch.zeros(1, 2, dtype=torch.float64)
    wanted = 4 * (0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert float(divergence(student, teacher, 2.0)) == pytest.approx(wanted, rel=1e-12)
    assert float(divergence(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-15)
    both = torch.cat([student, teacher]), torch.cat([teacher, teacher])
    assert float(divergence(*both, 2.0)) == pytest.approx(wanted / 2, rel=1e-12)  # a mean


def test_at_a_high_temperature_its_gradient_is_that_of_squared_logits():
    # Hinton et al., equation 4: (z - v)/C per example for logits of zero mean.
    generator = torch.Generator().manual_seed(0)
    z, v = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    z, v = z - z.mean(1, keepdim=True), v - v.mean(1, keepdim=True)
    z.requires_grad_()
    divergence(z, v, 1e4).backward()
    torch.testing.assert_close(z.grad, (z.detach() - v) / 5 / 3, rtol=1e-3, atol=1e-6)


def test_the_two_parts_are_weighted_and_the_teacher_stays():
    student = network().eval()
    teacher = teacher_of(student, 0.25, 4.0, "fp32")
    x = torch.randn(6, 12)
    outputs, task = torch.randn(6, 4), torch.tensor(2.0)
    wanted = 0.75 * 2 + 0.25 * divergence(outputs, student(x), 4.0)
    torch.testing.assert_close(teacher.loss(x, outputs, task), wanted)
    before = student(x)
    with torch.no_grad():
        student[0].weight.zero_()
    torch.testing.assert_close(teacher.model(x), before)
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not teacher.model.training


def run_with(distill, data, seed=0):
    model = network()
    settings = TrainingSettings(6, 16, seed=seed, sparsity=0.8, keep_zeros=True, distill=distill)
    run = Trainer(model, data, method.make("gmp"), settings).train()
    return model, run


def test_with_the_teacher_alone_the_targets_play_no_part():
    data = blobs()
    wrong = blobs()
    wrong.train.y.copy_(wrong.train.y.flip(0))
    states = [run_with(1.0, each)[0].state_dict() for each in (data, wrong)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    half = [run_with(0.5, each)[0].state_dict() for each in (data, wrong)]
    assert any(not torch.equal(half[0][name], half[1][name]) for name in half[0])


def test_a_student_comes_nearer_to_its_teacher_than_without():
    data, given = blobs(), network().eval()
    x = data.test.x
    students = [run_with(w, data)[0].eval() for w in (1.0, 0.0)]
    near, far = (float(divergence(s(x), given(x), 1.0).detach()) for s in students)
    assert near < 0.2 * far


def test_a_run_goes_on_with_the_same_teacher():
    data = blobs()
    whole = run_with(0.5, data)[0].state_dict()
    saved = {}

    class Keep(callbacks.Callback):
        def on_epoch(self, run):
            if run.epoch == 3:
                saved.update(copy.deepcopy(run.state_dict()))

    settings = TrainingSettings(6, 16, sparsity=0.8, keep_zeros=True, distill=0.5)
    Trainer(network(), data, method.make("gmp"), settings, callback=Keep()).train()
    model = network()
    Trainer(model, data, method.make("gmp"), settings).train(saved)
    assert all(torch.equal(whole[name], t) for name, t in model.state_dict().items())


def test_what_is_no_classification_has_no_teacher():
    data = replace(blobs(), task=REGRESSION)
    assert isinstance(data.train, TensorSource)
    with pytest.raises(InputError, match="the task is regression"):
        run_with(0.5, data)


def test_the_command_line_takes_it_and_the_record_keeps_it(lpss):
    train = ("train", "--arch", "mlp:64-20-10", "--epochs", "2", "-q")
    assert lpss(*train)[0] == 0
    typed = ("sparsify", "model.pt", "--epochs", "1", "--distill", "0.5", "--temperature", "2")
    code, out, err = lpss(*typed, "--json")
    assert code == 0, err
    settings = json.loads(out)["report"]["run"]["settings"]
    assert (settings["distill"], settings["temperature"]) == (0.5, 2.0)
    assert "0.5 of the loss, temperature 2.0" in lpss("report")[1]


@pytest.mark.parametrize(
    ("typed", "what"),
    [
        (["--distill", "1.5"], "--distill 1.5 is out of range"),
        (["--distill", "-0.1"], "--distill -0.1 is out of range"),
        (["--distill", "nan"], "--distill nan is out of range"),
        (["--distill", "0.5", "--temperature", "0"], "--temperature 0 is out of range"),
        (["--temperature", "2"], "--temperature needs --distill"),
    ],
)
def test_what_cannot_be_is_refused(lpss, typed, what):
    assert lpss("train", "--arch", "mlp:64-20-10", "--epochs", "0", "-q")[0] == 0
    code, out, err = lpss("sparsify", "model.pt", *typed)
    assert (code, out) == (2, "")
    assert what in err
