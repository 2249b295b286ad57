"""Networks of other origin with a person's own images: three commands and no --arch."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models as torchvision_models

from lpss_cli.checkpoints.identify import (
    check_data,
    complete_data_spec,
    identify,
    model_info,
)
from lpss_cli.checkpoints.loading import Checkpoint, read
from lpss_cli.data import DataSpec, load
from lpss_cli.errors import InputError
from lpss_cli.jobs.config import Request
from lpss_cli.jobs.resolve import restore
from lpss_cli.models import Fit, ImagePreprocessing, build, family_of
from lpss_cli.training.evaluation import outputs

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Images of several sizes; each class has its own colour."""
    root = tmp_path_factory.mktemp("data") / "pictures"
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("val", 3)):
        for c, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 120, (40 + 3 * i, 60 - 2 * i, 3), dtype=np.uint8)
                pixels[..., c] += 110
                Image.fromarray(pixels).save(root / part / name / f"{i}.png")
    return root


def small(network: nn.Module) -> nn.Module:
    """The same network with BN statistics of its own, so that evaluation is no chance."""
    network.train()
    with torch.no_grad():
        network(torch.randn(16, 3, 64, 64))
    return network.eval()


def refused(outcome, what, do):
    code, _, err = outcome
    assert code == 2
    assert what in err.splitlines()[-2]
    assert do in err.splitlines()[-1]


def save(network: nn.Module, name: str = "weights.pt") -> None:
    torch.save(network.state_dict(), name)


def test_a_resnet_becomes_sparse_in_three_commands(lpss, pictures):
    torch.manual_seed(0)
    save(small(torchvision_models.resnet18(num_classes=3)))
    options = ("--data", pictures, "--image-size", "32")
    code, out, err = lpss("sparsify", "weights.pt", *options, "--epochs", "1")
    assert code == 0, err
    assert "recognized as torchvision:resnet18: all 102 names and shapes fit, 3 outputs" in err
    assert "images: as torchvision evaluates its IMAGENET1K_V1" in err
    assert "shorter side to 37 (bilinear), center of 32x32, standardized by mean/std 0.485/" in err
    assert "90.00%" in out
    code, out, err = lpss("report")
    assert code == 0, err
    assert "layer4.1.conv2.weight" in out
    code, out, err = lpss("export", "--no-latency")
    assert code == 0, err
    assert {p.suffix for p in Path().iterdir()} == {".pt", ".safetensors", ".onnx", ".lpss"}
    meta = torch.load("weights.sparse.pt", weights_only=True)["lpss"]
    assert meta["arch"] == "torchvision:resnet18"
    assert meta["classes"] == list(CLASSES)
    assert (meta["data"]["image_size"], meta["data"]["resize"]) == (32, 37)
    before = meta["metrics"]["before"]["accuracy"]
    assert float(lpss("eval", "weights.pt", *options)[1]) == pytest.approx(before, abs=1e-6)


def test_what_only_reads_a_file_says_what_it_is(lpss):
    state = build("resnet20", (3, 32, 32), 10).state_dict()
    torch.save({"model.net." + name: tensor for name, tensor in state.items()}, "weights.pt")
    for command in ("report", "plan"):
        code, _, err = lpss(command, "weights.pt")
        assert code == 0
        assert "recognized as resnet20: all 107 names and shapes fit, 10 outputs" in err
    torch.save({"x": torch.ones(4, 4)}, "other.pt")
    for command in ("report", "plan"):
        code, _, err = lpss(command, "other.pt")
        assert (code, "recognized" in err) == (0, False)


def test_own_networks_without_a_record(lpss):
    lpss("train", "--epochs", "2")
    facts = torch.load("model.pt", weights_only=True)
    # As a training program writes it: the network is an attribute, its state one entry of several.
    state = {f"model.{name}": tensor for name, tensor in facts["state_dict"].items()}
    torch.save({"epoch": 2, "net": state | {"criterion.weight": torch.ones(10)}}, "bare.pt")
    arch = ("--arch", "mlp:64-300-100-10", "--data", "digits")
    code, out, err = lpss("eval", "bare.pt", *arch)
    assert code == 0, err
    assert "took the part of the file under 'model.'; left out: criterion.weight" in err
    assert float(out) == pytest.approx(facts["lpss"]["metrics"]["after"]["accuracy"], abs=1e-6)
    torch.save({"epoch": 2, "net": state}, "bare.pt")
    code, out, err = lpss("eval", "bare.pt", "--data", "digits")
    assert code == 0, err
    assert "recognized as mlp:64-300-100-10" in err
    assert "inputs are standardized by mean/std 0.3054/0.3761" in err
    assert float(out) == pytest.approx(facts["lpss"]["metrics"]["after"]["accuracy"], abs=1e-6)
    refused(lpss("eval", "bare.pt"), "does not say which data", "--data")
    # A bare file is exported as it is, and its pack is proved by the network's answers.
    code, out, err = lpss("export", "bare.pt", "--data", "digits", "--format", "pack")
    assert (code, "; accuracy 9" in out) == (0, True), err


def test_what_does_not_fit_is_said_with_both_numbers(lpss, pictures):
    data = ("--data", pictures, "--image-size", "32")
    save(torchvision_models.squeezenet1_1(num_classes=7), "seven.pt")
    refused(
        lpss("sparsify", "seven.pt", *data),
        "seven.pt ends in 7 outputs, and pictures has 3 classes",
        "order of the classes",
    )
    # The same where the network was typed.
    typed = ("--arch", "torchvision:squeezenet1_1")
    refused(lpss("eval", "seven.pt", *data, *typed), "7 outputs, and pictures has 3", "")
    save(build("wrn12", (1, 28, 28), 3), "grey.pt")
    refused(lpss("eval", "grey.pt", *data), "images of 1 channel, and", "trained on")
    save(build("mlp:27-9-3", (27,), 3), "flat.pt")
    refused(lpss("eval", "flat.pt", *data), "takes 27 numbers, and pictures gives 3072", "--image")
    save(build("lenet5", (3, 28, 28), 3), "lenet.pt")
    refused(lpss("eval", "lenet.pt", *data), "fc1.weight has shape (500, 800), not", "")
    save(torchvision_models.get_model("squeezenet1_1", num_classes=3).features, "part.pt")
    refused(lpss("eval", "part.pt", *data), "part.pt is not a network that lpss knows", "file.py")


def test_a_transformer_takes_the_images_it_was_made_for(tmp_path, pictures):
    spec = DataSpec(str(pictures))
    fit, file = Fit("torchvision:vit_b_16", 3, 3, 384), Checkpoint(tmp_path / "w.pt", {})
    info = model_info(fit.arch, fit, file)
    chosen = complete_data_spec(spec, info, lambda _: None)
    assert (chosen.image_size, chosen.resize, chosen.interpolation) == (384, 384, "bicubic")
    data = load(replace(spec, image_size=32))
    with pytest.raises(InputError, match="takes images of 384x384 pixels, not 32x32") as error:
        check_data(info, data, file)
    assert error.value.do == "pass --image-size 384"


def test_what_was_typed_wins(tmp_path, pictures):
    notes: list[str] = []
    fit, file = Fit("torchvision:efficientnet_b0", 3, 3), Checkpoint(tmp_path / "w.pt", {})
    given = DataSpec(str(pictures), image_size=56, mean=(0.1,), std=(0.2,))
    chosen = complete_data_spec(given, model_info(fit.arch, fit, file), notes.append)
    assert (chosen.image_size, chosen.resize, chosen.mean, chosen.std) == (56, 64, (0.1,), (0.2,))
    assert chosen.interpolation == "bicubic"
    assert notes == [
        "images: as torchvision evaluates its IMAGENET1K_V1, except for what was given"
    ]
    # Nothing is assumed for other data, other channels and other networks.
    for spec, other in (
        (DataSpec("cifar10"), fit),
        (given, replace(fit, channels=1)),
        (given, Fit("resnet20", 3, 3)),
        (given, None),
    ):
        arch = other.arch if other else "net.py:make"
        assert complete_data_spec(spec, model_info(arch, other, file), notes.append) is spec
    assert len(notes) == 1


# One network for every way in which torchvision's views differ.
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "efficientnet_b0", "swin_v2_t"])
def test_images_are_those_of_torchvisions_own_transforms(pictures, tmp_path, name):
    """Bilinear and bicubic, with crops and resizes of their own, on images of several sizes."""
    arch, spec = f"torchvision:{name}", DataSpec(str(pictures))
    fit, file = Fit(arch, 3, 3), Checkpoint(tmp_path / "w.pt", {})
    data = load(complete_data_spec(spec, model_info(arch, fit, file), lambda _: None))
    theirs = torchvision_models.get_model_weights(name).DEFAULT.transforms()
    paths = sorted((pictures / "val").glob("*/*.png"))
    expected = torch.stack([theirs(Image.open(path)) for path in paths])
    ((x, _),) = data.test.batches(len(paths))
    assert (x - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_that_rescale_their_inputs_get_them_rescaled(pictures, tmp_path, name):
    """Published weights of these two are built with ``transform_input``; ours are not."""
    arch, spec = f"torchvision:{name}", DataSpec(str(pictures))
    file = Checkpoint(tmp_path / "w.pt", {})
    info = model_info(arch, Fit(arch, 3, 3), file)
    data = load(complete_data_spec(spec, info, lambda _: None))
    theirs = torchvision_models.get_model_weights(name).DEFAULT.transforms()
    network = torchvision_models.get_model(name, init_weights=False, transform_input=True)
    path = min((pictures / "val").glob("*/*.png"))
    expected = network._transform_input(theirs(Image.open(path))[None])
    ((x, _),) = data.test.subset(torch.tensor([0])).batches(1)
    assert (x - expected).abs().max() <= 1e-6


def test_the_answers_are_torchvisions_own(pictures, tmp_path):
    torch.manual_seed(0)
    network = torchvision_models.squeezenet1_1(num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "w.pt")
    model, info, data = restore(read(tmp_path / "w.pt"), Request(data=str(pictures)))
    assert info.arch == "torchvision:squeezenet1_1"
    answers, targets = outputs(model, data.test)
    theirs = torchvision_models.get_model_weights("squeezenet1_1").DEFAULT.transforms()
    paths = sorted((pictures / "val").glob("*/*.png"))
    with torch.no_grad():
        expected = network(torch.stack([theirs(Image.open(path)) for path in paths]))
    assert torch.allclose(answers, expected, atol=1e-5)
    assert [CLASSES[t] for t in targets] == [path.parent.name for path in paths]


def test_a_file_of_torchvision_is_known_by_its_hash():
    weights = torchvision_models.ResNet50_Weights.IMAGENET1K_V1
    begin = weights.url.rpartition("-")[2].removesuffix(".pth")

    def preprocessing(arch: str, sha256: str = "") -> ImagePreprocessing | None:
        return family_of(arch).preprocessing(arch, sha256)

    published = preprocessing("torchvision:resnet50", begin + "0" * 56)
    assert published is not None
    assert (published.weights, published.is_file) == ("IMAGENET1K_V1", True)
    assert published.resize == 256
    other = preprocessing("torchvision:resnet50", hashlib.sha256(b"").hexdigest())
    assert other is not None
    assert (other.weights, other.is_file, other.resize) == ("IMAGENET1K_V2", False, 232)
    assert preprocessing("resnet20") is None


def test_the_images_stay_those_of_the_artifact(lpss, pictures):
    """What was assumed for the bare file holds for what was made of it."""
    shutil.copytree(pictures, "here")
    save(torchvision_models.mnasnet0_5(num_classes=3))
    data = ("--data", "here", "--image-size", "32", "--mean", "0.5", "--std", "0.25")
    code, _, err = lpss("sparsify", "weights.pt", *data, "--epochs", "0")
    assert code == 0, err
    meta = torch.load("weights.sparse.pt", weights_only=True)["lpss"]
    assert meta["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
    assert meta["preprocessing"]["interpolation"] == "bilinear"
    after = meta["metrics"]["after"]["accuracy"]
    assert float(lpss("eval")[1]) == pytest.approx(after, abs=1e-6)
    _, _, data = restore(
        read(Path("weights.sparse.pt")), Request(data_overrides={"image_size": 28})
    )
    assert data.preprocessing["resize_shorter_side"] == 32


def test_the_arch_is_the_typed_one_else_the_artifacts_own(tmp_path):
    ours = Checkpoint(tmp_path / "m.pt", {}, {"arch": "lenet5"})
    assert identify(ours).arch == "lenet5"
    assert identify(ours, "wrn12").arch == "wrn12"
    nameless = Checkpoint(tmp_path / "m.pt", {}, {"outputs": 3})
    assert identify(nameless, "wrn12").arch == "wrn12"
    with pytest.raises(InputError, match="does not say which network") as error:
        identify(nameless)
    assert "--arch" in error.value.do


@pytest.mark.parametrize("code", ["net.py:make", "package.module:make", "/abs/net.py:make"])
def test_code_named_by_an_artifact_is_imported_only_when_typed(tmp_path, code):
    ours = Checkpoint(tmp_path / "m.pt", {}, {"arch": code})
    with pytest.raises(InputError, match="not imported unless you ask for it") as error:
        identify(ours)
    assert code in error.value.do
    assert identify(ours, code).arch == code
