"""Folders as the Hub has them: transformers' image classifiers and timm's networks, offline."""

import json
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import pictures
from PIL import Image
from safetensors.torch import save_file

from lpss_cli.checkpoints.hf_folder import describe
from lpss_cli.checkpoints.loading import read
from lpss_cli.errors import InputError

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 64, "image_size": 32, "patch_size": 8, "num_labels": 3}  # fmt: skip
IMAGES = {"size": {"height": 32, "width": 32}, "image_mean": [0.5, 0.4, 0.3], "resample": 3,
          "image_std": [0.5, 0.5, 0.25]}  # fmt: skip


CROPPED = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224},
           "do_center_crop": True}  # fmt: skip


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whatever asks for a connection or an address fails the test."""

    def refused(*args, **kwargs):
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


@pytest.fixture
def vit(tmp_path):
    """A small vision transformer as transformers saves it: (the network, its folder)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("vit", **SMALL)
    model = transformers.AutoModelForImageClassification.from_config(config)
    folder = tmp_path / "vit-small"
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    return model.eval(), folder


def test_a_folder_of_transformers_is_sparsified_and_exported(lpss, vit, tmp_path):
    model, folder = vit
    pictures(tmp_path / "photos")
    code, out, err = lpss(
        "sparsify", folder.name, "--data", "photos", "--epochs", "2", "-s", "0.8", "--json"
    )
    assert code == 0, err
    assert "config.json says hf:vit-small: 3 outputs, images of 3 channels" in err
    assert "images: as preprocessor_config.json says" in err
    assert "shorter side to 32 (bicubic), centre of 32x32, " in err
    document = json.loads(out)
    report = document["report"]
    assert document["out"] == "vit-small.sparse.pt"
    assert report["zeros"] == round(0.8 * report["prunable"])
    assert report["run"]["preprocessing"]["mean"] == [0.5, 0.4, 0.3]
    assert report["run"]["arch"] == "hf:vit-small"
    # What came before is what the library's own network says of these images.
    code, out, err = lpss("eval", folder.name, "--data", "photos", "--json")
    assert json.loads(out)["accuracy"] == document["before"]["accuracy"] == own(model, tmp_path)
    code, out, err = lpss("export", "--no-latency", "--format", "onnx", "--json")
    assert code == 0, err
    assert "real inputs through onnxruntime" in json.loads(out)["files"][0]["checked"]
    code, out, err = lpss("report", folder.name, "--json")
    assert code == 0, err
    assert json.loads(out)["zeros"] == 0


def test_classes_in_another_order_are_refused(lpss, vit, tmp_path):
    _, folder = vit
    pictures(tmp_path / "photos")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {"0": "class0", "1": "class2", "2": "class1"}
    (folder / "config.json").write_text(json.dumps(config))
    code, _, err = lpss("eval", folder.name, "--data", "photos")
    assert code == 2
    assert "class 1 is 'class2' in vit-small, and 'class1' in photos" in err
    assert "000-first" in err


def own(model, folder):
    """Accuracy of the library's network, with the preprocessing written out."""
    right = total = 0
    for label in range(3):
        for path in sorted((folder / "photos" / "val" / f"class{label}").iterdir()):
            x = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None] / 255
            mean, std = (
                torch.tensor(IMAGES[k])[:, None, None] for k in ("image_mean", "image_std")
            )
            with torch.no_grad():
                right += int(model(pixel_values=(x - mean) / std).logits.argmax() == label)
            total += 1
    return right / total


def test_its_outputs_are_those_of_the_library_bit_for_bit(vit):
    from lpss_cli import models
    from lpss_cli.checkpoints.load_weights import load_into

    model, folder = vit
    checkpoint = read(folder)
    network = models.build(f"hf:{folder}", (3, 32, 32), 3).eval()
    load_into(network, checkpoint, models.ModelInfo(f"hf:{folder}"))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(x), model(pixel_values=x).logits)


def test_a_damaged_folder_is_refused_in_words(vit, lpss):
    from safetensors.torch import load_file

    _, folder = vit
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("query.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, weights, {"format": "pt"})
    with pytest.raises(InputError, match="missing tensors"):
        read(folder)
    config = json.loads((folder / "config.json").read_text())
    for text, what in (
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        (json.dumps(config | {"architectures": ["ViTModel"]}), "does not classify images"),
        (json.dumps(config | {"model_type": "unheard-of"}), "transformers cannot make"),
        (json.dumps(config | {"id2label": 3}), "is malformed"),
    ):
        (folder / "config.json").write_text(text)
        code, out, err = lpss("report", folder.name)
        assert (code, out) == (2, "")
        assert what in err
        assert "Traceback" not in err
    weights.rename(folder / "other.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        describe(folder)
    code, _, err = lpss("sparsify", ".")
    assert code == 2
    assert "is a folder without config.json" in err


def test_without_the_library_the_extra_is_named(vit, lpss, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    code, _, err = lpss("report", "vit-small")
    assert code == 2
    assert "pip install lpss-cli[hf]" in err


def test_code_in_a_folder_is_never_run(vit, lpss):
    _, folder = vit
    config = json.loads((folder / "config.json").read_text())
    (folder / "evil.py").write_text("raise SystemExit('it was run')")
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "evil.Config",
               "AutoModelForImageClassification": "evil.Net"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    code, out, err = lpss("report", folder.name)
    assert code == 2
    assert "it was run" not in out + err


def test_a_folder_of_timm_says_its_network_and_its_images(lpss, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=3)
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_file(model.state_dict(), folder / "model.safetensors")
    own_cfg = {"input_size": [3, 160, 160], "crop_pct": 0.8, "fixed_input_size": True,
               "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3}  # fmt: skip
    config = {"architecture": "test_vit", "num_classes": 3, "pretrained_cfg": own_cfg}
    (folder / "config.json").write_text(json.dumps(config))
    pictures(tmp_path / "photos", side=40)
    code, out, err = lpss(
        "sparsify", "tiny", "--data", "photos", "--epochs", "0", "-s", "0.5", "--json"
    )
    assert code == 0, err
    assert "config.json says timm:test_vit: 3 outputs" in err
    assert "images: as config.json says" in err
    assert "shorter side to 200 (bicubic), centre of 160x160, " in err
    assert json.loads(out)["report"]["run"]["preprocessing"]["std"] == [0.25] * 3


@pytest.mark.parametrize(
    ("images", "resize", "crop"),
    [
        ({"size": 224}, 224, 224),
        (CROPPED, 256, 224),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 256, 224),
    ],
)
def test_the_sizes_of_images_in_their_spellings(tmp_path, images, resize, crop):
    config = {"architectures": ["ViTForImageClassification"], "id2label": {"0": "a", "1": "b"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").touch()
    text = json.dumps({"image_mean": [0.5] * 3, "image_std": [1.0] * 3, **images})
    (tmp_path / "preprocessor_config.json").write_text(text)
    found = describe(tmp_path)
    assert (found.preprocessing.resize, found.preprocessing.crop) == (resize, crop)
    assert (found.preprocessing.interpolation, found.fit.outputs) == ("bilinear", 2)
    assert Path(found.fit.arch.removeprefix("hf:")) == tmp_path
