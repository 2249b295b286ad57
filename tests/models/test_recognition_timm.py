"""timm's networks are recognized where torchvision has none, and shown images as timm does."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from helpers import pictures
from torch import Tensor

from lpss_cli.cli import app
from lpss_cli.models import Fit, family_of, signatures, templates
from lpss_cli.models.families import TIMM
from lpss_cli.models.recognition import fit_of, recognize
from lpss_cli.models.signatures import library_table
from lpss_cli.models.templates import make_timm

timm = pytest.importorskip("timm")
#: Of some families of timm that torchvision does not have.
NAMES = ("convnextv2_atto", "deit3_small_patch16_224", "edgenext_xx_small", "ghostnet_100",
         "mobilevit_xxs", "regnetz_c16", "repvgg_a0", "resnet18d", "vit_tiny_patch16_224",
         "xcit_nano_12_p8_224")  # fmt: skip


def state_of(name: str, outputs: int = 7, channels: int = 3) -> dict[str, Tensor]:
    """As ``torch.save`` would get it from timm, without memory."""
    with templates.WithoutMemory():
        network = timm.create_model(name, num_classes=outputs, in_chans=channels)
    return dict(network.state_dict())


@pytest.mark.parametrize("name", NAMES)
def test_networks_with_other_classes_and_channels(name):
    found = recognize(state_of(name, 7, 2))
    assert f"timm:{name}" in [fit.arch for fit in found.fits]
    assert {(fit.outputs, fit.channels) for fit in found.fits} == {(7, 2)}
    assert "7 outputs" in found.note()
    assert fit_of(f"timm:{name}", state_of(name)) == Fit(f"timm:{name}", 7, 3)


def test_the_usual_one_comes_first_and_all_are_listed():
    found = recognize(state_of("vit_tiny_patch16_224"))
    archs = [fit.arch for fit in found.fits]
    assert archs[0] == "timm:vit_tiny_patch16_224"
    assert len(archs) > 1
    assert f"; {archs[1]}" in found.note()
    assert "would fit as well" in found.note()
    assert "--arch chooses" in found.note()


def test_another_shape_is_another_network():
    state = state_of("vit_tiny_patch16_224")
    state["blocks.3.mlp.fc1.weight"] = torch.zeros(700, 192, device="meta")
    assert not recognize(state, explain=False).fits


def test_torchvision_comes_first_where_both_have_a_network():
    first = recognize(state_of("resnet18")).fits[0]
    assert first.arch == "torchvision:resnet18"


def test_without_timm_nothing_is_looked_for(monkeypatch):
    monkeypatch.setattr("lpss_cli.models.libraries.find_spec", lambda name: None)
    assert not recognize(state_of("resnet18d"), explain=False).fits


def test_the_table_is_what_its_maker_writes():
    rows = json.loads(signatures.PATH.with_name(TIMM.signatures).read_text())
    made = json.loads(make_timm(NAMES))
    assert made == {name: rows[name] for name in made}
    assert len(made) == len(NAMES)
    assert len(library_table(TIMM.signatures)) > 1000


def test_what_has_no_classifier_or_needs_more_is_left_out(capsys):
    assert json.loads(make_timm(["no_such_network"])) == {}
    assert "no_such_network is left out: InputError" in capsys.readouterr().out


def test_images_are_shown_as_timm_shows_them():
    arch = "timm:vit_tiny_patch16_224"
    found = family_of(arch).preprocessing(arch)
    config = timm.data.resolve_data_config(
        pretrained_cfg=timm.models.get_pretrained_cfg("vit_tiny_patch16_224").to_dict()
    )
    assert (found.mean, found.std) == (config["mean"], config["std"]) == ((0.5,) * 3, (0.5,) * 3)
    assert (found.crop, found.resize) == (224, 248)  # 224 / 0.9
    assert found.interpolation == "bicubic"
    assert found.source.startswith("as timm evaluates its augreg")


def test_a_bare_state_dict_becomes_sparse_with_its_images_right(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), "weights.pt")
    pictures(tmp_path / "photos")
    typed = ["sparsify", "weights.pt", "--data", "photos", "--epochs", "1", "-s", "0.5", "--json"]
    monkeypatch.setattr(sys, "argv", ["lpss", *typed])
    with pytest.raises(SystemExit) as stop:
        app.main()
    captured = capsys.readouterr()
    assert stop.value.code == 0, captured.err
    assert "recognized as timm:test_vit: all " in captured.err
    assert "images: as timm evaluates" in captured.err
    assert "shorter side to 168 (bicubic), centre of 160x160, " in captured.err
    report = json.loads(captured.out)["report"]
    assert report["run"]["arch"] == "timm:test_vit"
    assert report["zeros"] == report["prunable"] / 2
