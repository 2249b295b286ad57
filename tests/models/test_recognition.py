"""A bare state_dict is recognized by its names and shapes."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models as torchvision_models

from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.state_dict import fold_state_dict
from lpss_cli.models import KNOWN, Fit, build, signatures, templates
from lpss_cli.models.recognition import fit_of, recognize
from lpss_cli.models.signatures import Template, sign, table
from lpss_cli.models.templates import template

State = dict[str, Tensor]

OWN = [name for name in KNOWN if name not in ("mlp", "lenet300")]
#: Of every family of torchvision the smallest, and some that share all their names.
TORCHVISION = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "mnasnet0_5", "mobilenet_v2",
    "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50",
    "resnext50_32x4d", "wide_resnet50_2", "shufflenet_v2_x0_5", "squeezenet1_0", "squeezenet1_1",
    "swin_t", "vgg11", "vgg11_bn", "vit_b_16", "vit_b_32",
)  # fmt: skip


def torchvision_state(name: str, outputs: int = 7, **options: object) -> State:
    """As ``torch.save`` would get it from torchvision, without memory."""
    with templates.WithoutMemory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torchvision_models.get_model(name, weights=None, num_classes=outputs, **options)
    return dict(network.state_dict())


def own_state(name: str, shape: tuple[int, ...] = (3, 32, 32), outputs: int = 7) -> State:
    with torch.device("meta"):
        return dict(build(name, shape, outputs).state_dict())


def refusal(state: State) -> str:
    error = recognize(state).refusal("w.pt")
    return f"{error.what} | {error.do}"


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_networks_with_another_number_of_classes(name):
    (fit,) = recognize(torchvision_state(name)).fits
    assert fit == Fit(f"torchvision:{name}", 7, 3, 224 if name.startswith("vit") else None)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize(("shape", "outputs"), [((3, 32, 32), 7), ((1, 28, 40), 2)])
def test_own_networks_for_any_images_and_classes(name, shape, outputs):
    assert recognize(own_state(name, shape, outputs)).fits == (Fit(name, outputs, shape[0]),)


@pytest.mark.parametrize("widths", ["784-10", "64-30-5", "12-300-100-1", "5-4-3-2-1"])
def test_widths_of_an_mlp_follow_from_the_shapes(widths):
    state = own_state(f"mlp:{widths}", (int(widths.split("-")[0]),), int(widths.split("-")[-1]))
    fits = recognize(state).fits
    assert fits[0] == Fit(f"mlp:{widths}", int(widths.split("-")[-1]))
    assert [fit.arch for fit in fits[1:]] == ["lenet300"] * ("-300-100-" in widths)


def test_several_fits_are_listed_and_the_first_is_taken():
    note = recognize(own_state("lenet300", (1, 28, 28), 10)).note()
    assert note == (
        "recognized as mlp:784-300-100-10: all 6 names and shapes fit, 10 outputs; lenet300 "
        "would fit as well, --arch chooses; names and shapes do not show activations: check its "
        "accuracy"
    )
    note = recognize(torchvision_state("resnet18", 1000)).note()
    assert note == (
        "recognized as torchvision:resnet18: all 102 names and shapes fit, 1000 outputs, images "
        "of 3 channels"
    )


def test_the_size_of_the_images_of_a_transformer_is_read_off_its_positions():
    state = torchvision_state("vit_b_16", image_size=384)
    (fit,) = recognize(state).fits
    assert fit.side == 384
    assert "384x384 pixels" in recognize(state).note()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_wrapped_and_from_files_in_any_order(tmp_path, prefix, kind):
    torch.manual_seed(0)
    network = torchvision_models.squeezenet1_1(num_classes=3)
    state = {prefix + name: t for name, t in sorted(network.state_dict().items())}
    path = tmp_path / f"w.{kind}"
    if kind == "pt":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    (fit,) = recognize(read(path).state_dict).fits
    assert fit == Fit("torchvision:squeezenet1_1", 3, 3)


def test_other_channels():
    state = torchvision_state("resnet18")
    state["conv1.weight"] = torch.empty(64, 1, 7, 7)
    assert recognize(state).fits == (Fit("torchvision:resnet18", 7, 1),)


def test_a_file_of_an_older_pytorch_has_no_counters():
    state = torchvision_state("resnet18")
    old = {name: t for name, t in state.items() if "num_batches" not in name}
    assert len(old) == 102
    assert len(state) == 122
    assert recognize(old).fits == recognize(state).fits


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_are_no_part_of_the_network(name):
    whole = torchvision_state(name)  # with them, as it is published
    bare = torchvision_state(name, aux_logits=False)
    assert len(whole) > len(bare)
    assert recognize(whole).fits == recognize(bare).fits == (Fit(f"torchvision:{name}", 7, 3),)


@pytest.mark.parametrize(
    ("name", "former"),
    [
        ("densenet121", lambda n: n.replace(".norm1", ".norm.1").replace(".conv2", ".conv.2")),
        ("vit_b_16", lambda n: n.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2")),
    ],
)
def test_names_of_published_weights_are_brought_up_to_date(name, former):
    state = torchvision_state(name)
    old = {former(key) if "layer" in key else key: t for key, t in state.items()}
    assert not recognize(old, explain=False).fits
    renamed, notes = fold_state_dict(old)
    assert list(renamed) == list(state)
    assert notes == ["renamed tensors to torchvision's current names"]


def test_a_near_miss_names_what_differs():
    state = torchvision_state("resnet18")
    state["head.weight"] = state.pop("fc.weight")
    assert refusal(state) == (
        "w.pt is not a network that lpss knows; nearest: torchvision:resnet18 (fc.weight is "
        "missing, head.weight is unknown) | pass --arch file.py:factory, a function that makes the "
        "network"
    )
    state = torchvision_state("resnet18")
    state["layer1.0.conv1.weight"] = torch.empty(64, 64, 5, 5)
    text = refusal(state)
    assert "(layer1.0.conv1.weight has shape (64, 64, 5, 5), not (64, 64, 3, 3))" in text
    state = own_state("resnet20")
    del state["fc.bias"]
    assert "nearest: resnet20 (fc.bias is missing)" in refusal(state)


def test_classes_that_disagree_are_no_fit():
    state = torchvision_state("resnet18")
    state["fc.bias"] = torch.empty(8)
    assert "torchvision:resnet18 (fc.bias has shape (8,), not (7,))" in refusal(state)
    state["fc.bias"] = torch.empty(0)
    assert not recognize(state, explain=False).fits


def test_what_is_like_nothing_shows_its_names():
    text = refusal(dict(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)).state_dict()))
    assert text.startswith(
        "w.pt is not a network that lpss knows; it holds 0.weight (4, 3), 0.bias (4,), 2.weight "
        "(5, 4) and 1 more |"
    )
    assert "it holds x (2, 2)" in refusal({"x": torch.ones(2, 2)})
    broken = own_state("mlp:3-4-2", (3,), 2) | {"fc2.weight": torch.ones(2, 5)}
    assert not recognize(broken, explain=False).fits  # its widths do not chain


def test_a_network_by_name():
    state = torchvision_state("vgg11")
    assert fit_of("torchvision:vgg11", state) == Fit("torchvision:vgg11", 7, 3)
    assert fit_of("torchvision:vgg13", state) is None
    assert fit_of("net.py:make", state) is None


def test_a_template_is_the_network_itself():
    """Closed form: one layer, two free numbers."""
    t = Template("t", {"w": ("outputs", "channels", 5), "b": ("outputs",)})
    assert t.compare({"w": (3, 4, 5), "b": (3,)}) == (Fit("t", 3, 4), [])
    assert t.compare({"w": (3, 4, 5), "b": (2,)})[1] == ["b has shape (2,), not (3,)"]
    assert t.compare({"w": (3, 4, 6), "b": (3,)})[1] == ["w has shape (3, 4, 6), not (3, 4, 5)"]
    assert t.compare({"w": (3, 4), "b": (3,)})[0] is None


def stale(archs: list[str]) -> list[str]:
    """Rows of the table that would be written otherwise now."""
    rows = {known.arch: known for known in table()}
    return [a for a in archs if rows.get(a) != sign(a, template(a).shapes)]


def test_the_table_is_what_its_script_writes():
    assert stale(OWN) == []
    assert stale([f"torchvision:{name}" for name in TORCHVISION]) == []
    made = json.loads(templates.make(["lenet5", "resnet20"]))
    stored = json.loads(signatures.PATH.read_text())
    assert {name: stored[name] for name in made} == made


@pytest.mark.slow
def test_the_whole_table_is_what_its_script_writes():
    assert stale(templates.known()) == []
    assert [known.arch for known in table()] == templates.known()


def test_the_table_knows_every_network_of_this_torchvision():
    assert set(templates.known()) <= {known.arch for known in table()}
