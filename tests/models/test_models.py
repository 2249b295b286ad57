from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from lpss_cli.errors import InputError
from lpss_cli.models import (
    FAMILIES,
    KNOWN,
    build,
    families,
    family_of,
    find_family,
    resolve,
    runs_code,
)
from lpss_cli.models.families import ModelFamily

GRAY = (1, 16, 16)


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@functools.cache
def small(arch: str) -> nn.Module:
    """One network per name for the tests that only look at it: VGGs take time to draw."""
    return build(arch, GRAY, 3).eval()


def kernels(network: nn.Module) -> int:
    layers = (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    return sum(m.weight.numel() for m in layers)


def refused(call, *args) -> str:
    """The two lines of the InputError that the call must raise, as one text."""
    with pytest.raises(InputError) as caught:
        call(*args)
    assert "\n" not in caught.value.what + caught.value.do
    assert caught.value.do
    return f"{caught.value.what} | {caught.value.do}"


# Published sizes


@pytest.mark.parametrize(
    ("arch", "shape", "outputs", "parameters"),
    [
        ("wrn12", (1, 28, 28), 10, 170_298),
        ("wrn18", (1, 28, 28), 10, 267_514),
        ("wrn22-2", (3, 32, 32), 10, 1_154_074),
        ("wrn22-4", (3, 64, 64), 200, 4_644_120),
        ("lenet300", (1, 28, 28), 10, 266_610),
        ("mlp", (1, 28, 28), 10, 266_610),
        ("lenet5", (1, 28, 28), 10, 431_080),
        ("conv2", (3, 32, 32), 10, 4_301_642),
        ("conv4", (3, 32, 32), 10, 2_425_930),
        ("conv6", (3, 32, 32), 10, 2_262_602),
    ],
)
def test_parameter_counts(arch, shape, outputs, parameters):
    assert size(build(arch, shape, outputs)) == parameters


@pytest.mark.parametrize(
    ("arch", "weights"),
    [
        ("resnet20", 270_896),
        ("resnet56", 851_504),  # GSM: 852K
        ("vgg16", 14_715_584),
    ],
)
def test_kernel_weights_on_cifar(arch, weights):
    assert kernels(build(arch, (3, 32, 32), 10)) == weights


def test_lenet5_kernel_weights():
    assert kernels(build("lenet5", (1, 28, 28), 10)) == 430_500


def test_wrn18_has_the_seventeen_convolutions_of_the_published_list_of_exponents():
    names = [n for n, m in build("wrn18", GRAY, 10).named_modules() if isinstance(m, nn.Conv2d)]
    assert len([n for n in names if "shortcut" not in n]) == 17
    assert [n for n in names if "shortcut" in n] == [
        "layer2.0.shortcut.conv",
        "layer3.0.shortcut.conv",
    ]


# Every name


@pytest.mark.parametrize("arch", KNOWN)
@pytest.mark.parametrize("shape", [GRAY, (3, 17, 19)], ids=["gray", "odd colour"])
def test_builds_and_answers(arch, shape):
    network = build(arch, shape, 7)
    assert network.training
    x = torch.randn(2, *shape)
    logits = network(x)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("arch", [n for n in KNOWN if n != "lenet5"])
def test_takes_eight_by_eight_digits(arch):
    assert build(arch, (1, 8, 8), 10).eval()(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("arch", KNOWN)
def test_exports_with_a_free_batch(arch):
    network = small(arch)
    batch = {0: torch.export.Dim("batch", min=1, max=4096)}
    program = torch.export.export(network, (torch.randn(2, *GRAY),), dynamic_shapes=(batch,))
    x = torch.randn(5, *GRAY)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), network(x))


@pytest.mark.parametrize("arch", KNOWN)
def test_traces_with_fx(arch):
    torch.fx.symbolic_trace(small(arch))


@pytest.mark.parametrize("arch", KNOWN)
def test_no_module_is_used_twice(arch):
    network = small(arch)
    calls: list[nn.Module] = []
    leaves = [m for m in network.modules() if not list(m.children())]
    hooks = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in leaves]
    network(torch.zeros(1, *GRAY))
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(set(calls)) == len(leaves)


def test_the_global_seed_decides_the_weights():
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(build("wrn12", GRAY, 10).parameters())

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_wrn_convolutions_start_from_kaiming_fan_out():
    conv = build("wrn22-2", (3, 32, 32), 10).get_submodule("layer3.0.conv1")
    assert conv.weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.02)


def test_parameter_names():
    names = dict(build("wrn12", GRAY, 10).named_parameters())
    assert {"conv1.weight", "layer1.0.conv1.weight", "layer2.0.shortcut.bn.bias"} <= set(names)
    assert list(dict(build("lenet300", (4,), 2).named_parameters()))[:2] == [
        "fc1.weight",
        "fc1.bias",
    ]


def test_a_linear_model_is_an_mlp():
    assert size(build("mlp:4-2", (4,), 2)) == 10


def test_vgg_pools_no_further_than_one_pixel():
    pools = [m for m in build("vgg11", (1, 8, 8), 10).modules() if isinstance(m, nn.MaxPool2d)]
    assert len(pools) == 3


# Specs


@pytest.mark.parametrize(
    ("arch", "shape", "outputs", "spec"),
    [
        (None, (1, 8, 8), 10, "mlp:64-300-100-10"),
        ("mlp", (1, 28, 28), 10, "mlp:784-300-100-10"),
        (None, (3, 64, 64), 200, "mlp:12288-300-100-200"),
        ("mlp:784-20-10", (1, 28, 28), 10, "mlp:784-20-10"),
        ("mlp:04-2", (4,), 2, "mlp:4-2"),
        ("lenet300", (1, 8, 8), 10, "lenet300"),
        ("wrn22-2", (3, 32, 32), 10, "wrn22-2"),
        ("torchvision:resnet18", (3, 224, 224), 1000, "torchvision:resnet18"),
        ("net.py:make", (3, 224, 224), 1000, "net.py:make"),
    ],
)
def test_resolve(arch, shape, outputs, spec):
    assert resolve(arch, shape, outputs) == spec
    assert resolve(spec, shape, outputs) == spec


@pytest.mark.parametrize("spec", ["net.py:make", "a/b.py:f", "pkg.mod:f", "torchvision.models:f"])
def test_import_paths(spec):
    assert runs_code(spec)


@pytest.mark.parametrize("spec", [*KNOWN, "mlp:4-2", "torchvision:resnet18", "timm:x", "net.py"])
def test_not_import_paths(spec):
    assert not runs_code(spec)


def test_every_spec_belongs_to_one_family():
    for spec in (*KNOWN, "mlp:4-2", "torchvision:resnet18", "timm:x", "hf:folder"):
        matching = [family for family in FAMILIES if family.matches(spec) and not family.runs_code]
        assert [family_of(spec)] == matching
    assert find_family("net.py") is None
    assert [family.usage for family in FAMILIES if family.runs_code] == ["file.py:factory"]


def test_a_new_family_is_one_entry(monkeypatch):
    new = ModelFamily(prefix="lenet:", usage="lenet:NAME", builder="classic.build_lenet")
    monkeypatch.setattr(families, "FAMILIES", (new, *FAMILIES))
    assert size(build("lenet:5", (1, 28, 28), 10)) == 431_080
    assert not runs_code("lenet:5")
    assert "lenet:NAME, mlp:A-B-C, " in refused(resolve, "lenet30", (4,), 2)


def test_unknown_name_suggests_the_nearest():
    text = refused(resolve, "lenet30", (1, 28, 28), 10)
    assert text.startswith("unknown network 'lenet30' | did you mean 'lenet300'? known: mlp, ")
    assert "torchvision:NAME" in text
    assert "did you mean" not in refused(build, "zzzz", (1, 28, 28), 10)


def test_a_file_without_its_function():
    assert refused(resolve, "net.py", (4,), 2).endswith("too: net.py:FUNCTION")


@pytest.mark.parametrize("arch", [None, "mlp"])
def test_large_images_need_a_named_network(arch):
    text = refused(resolve, arch, (3, 64, 65), 10)
    assert "inputs of 3x64x65 are 12480 numbers, too many" in text
    assert "--arch torchvision:resnet18" in text


@pytest.mark.parametrize("spec", ["mlp:", "mlp:4", "mlp:4-x-2", "mlp:4-0-2", "mlp:4--2", "mlp:-4"])
def test_malformed_widths(spec):
    assert f"'{spec}' is not a list of layer widths | write" in refused(build, spec, (4,), 2)


def test_mlp_that_does_not_fit_names_both_numbers():
    assert refused(resolve, "mlp:784-300-10", (1, 8, 8), 10) == (
        "mlp:784-300-10 has 784 inputs where the data has 64 | write --arch mlp:64-300-10"
    )
    assert refused(resolve, "mlp:4-3-10", (4,), 2) == (
        "mlp:4-3-10 has 10 outputs where the data has 2 | write --arch mlp:4-3-2"
    )
    assert "5 inputs where the data has 4 and 3 outputs where" in refused(build, "mlp:5-3", (4,), 2)


@pytest.mark.parametrize("arch", [n for n in KNOWN if n not in ("mlp", "lenet300")])
def test_tables_are_no_images(arch):
    text = refused(build, arch, (12,), 2)
    assert text.startswith(f"{arch} needs images (channels x height x width), the data has samples")
    assert text.endswith("of 12 | use --arch mlp, which takes any shape")


@pytest.mark.parametrize(
    ("arch", "smallest"), [("lenet5", 16), ("conv2", 2), ("conv4", 4), ("conv6", 8)]
)
def test_smallest_image(arch, smallest):
    shape = (1, smallest, smallest)
    assert build(arch, shape, 2)(torch.zeros(1, *shape)).shape == (1, 2)
    text = refused(build, arch, (1, smallest, smallest - 1), 2)
    assert f"{arch} needs images of at least {smallest}x{smallest} pixels, the data has" in text
    assert f"{smallest}x{smallest - 1}" in text


# torchvision and timm


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_torchvision_adapts_channels_and_classes(channels):
    network = build("torchvision:resnet18", (channels, 32, 32), 5)
    assert network.training
    assert network.get_parameter("conv1.weight").shape == (64, channels, 7, 7)
    assert network(torch.zeros(2, channels, 32, 32)).shape == (2, 5)


def test_torchvision_trying_a_network_leaves_its_statistics_alone():
    network = build("torchvision:squeezenet1_1", (1, 32, 32), 5)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    network = build("torchvision:shufflenet_v2_x0_5", (3, 32, 32), 5)
    assert all(b.item() == 0 for n, b in network.named_buffers() if n.endswith("batches_tracked"))


def test_torchvision_unknown_name():
    text = refused(build, "torchvision:resnet8", (3, 32, 32), 10)
    assert text.startswith("torchvision has no network 'resnet8' | did you mean torchvision:resnet")
    assert "list_models" in text
    # Detection networks are in torchvision and are no classifiers.
    assert "has no network" in refused(build, "torchvision:ssd300_vgg16", (3, 32, 32), 10)


def test_torchvision_refuses_a_size_before_training():
    text = refused(build, "torchvision:alexnet", (3, 8, 8), 10)
    assert text.startswith("torchvision:alexnet cannot take images of 3x8x8: RuntimeError: ")
    assert text.endswith("--image-size 224")
    assert "needs images" in refused(build, "torchvision:resnet18", (12,), 10)


def test_timm_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    text = refused(build, "timm:resnet18", (3, 32, 32), 10)
    assert text.startswith("timm cannot be imported: ModuleNotFoundError")
    assert text.endswith(" | pip install lpss-cli[timm]")


def test_timm_gets_channels_and_classes(monkeypatch):
    def create_model(name: str, *, pretrained: bool, num_classes: int, in_chans: int) -> nn.Module:
        assert not pretrained
        classes = 2 * num_classes if name == "detector" else num_classes
        return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 16, classes))

    names = ["tiny", "detector"]
    fake = SimpleNamespace(
        is_model=names.__contains__, list_models=lambda: names, create_model=create_model
    )
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert build("timm:tiny", (2, 4, 4), 5)(torch.zeros(1, 2, 4, 4)).shape == (1, 5)
    assert "did you mean timm:tiny?" in refused(build, "timm:tinyy", (2, 4, 4), 5)
    assert "is not a classifier" in refused(build, "timm:detector", (2, 4, 4), 5)


# Factories


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "neighbour_of_nets.py").write_text("WIDTH = 3\n")
    file = tmp_path / "nets.py"
    file.write_text(
        """
from torch import nn
from neighbour_of_nets import WIDTH

plain = lambda: nn.Linear(WIDTH, 2)
def late():
    from late_neighbour import WIDTH
    return nn.Linear(WIDTH, 2)
def sized(input_shape, outputs, bias=False): return nn.Linear(input_shape[0], outputs, bias)
def classes(num_classes=10): print("made"); return nn.Linear(1, num_classes)
def raises(): raise KeyError("two\\nlines")
def leaves(): raise SystemExit(3)
def nothing(): pass
def needs(depth): pass
class Net(nn.Linear):
    def __init__(self): super().__init__(4, 2)
instance = Net()
number = 3
"""
    )
    (tmp_path / "late_neighbour.py").write_text("WIDTH = 5\n")
    return file


def test_factory_of_a_file(nets, capsys):
    before, modules = list(sys.path), set(sys.modules)
    try:
        assert build(f"{nets}:plain", (3,), 2).in_features == 3
        assert build(f"{nets}:late", (3,), 2).in_features == 5
        assert build(f"{nets}:Net", (3,), 2).in_features == 4
        assert size(build(f"{nets}:sized", (6,), 7)) == 42
        assert build(f"{nets}:classes", (6,), 7).out_features == 7
    finally:
        for name in set(sys.modules) - modules:
            del sys.modules[name]
    assert sys.path == before
    assert capsys.readouterr() == ("", "made\n")  # stdout is for results


def test_factory_of_a_module(tmp_path, monkeypatch):
    (tmp_path / "net_module_in_cwd.py").write_text(
        "from torch import nn\ndef make(outputs): return nn.Linear(2, outputs)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert build("net_module_in_cwd:make", (2,), 3).out_features == 3
    assert sys.path == before
    del sys.modules["net_module_in_cwd"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", r"nets.py:raises raised KeyError: 'two\nlines' | call it alone in Python"),
        ("leaves", "nets.py:leaves raised SystemExit: 3 | "),
        ("needs", "missing 1 required positional argument: 'depth' | "),
        ("nothing", "nets.py:nothing returned a NoneType, not a torch.nn.Module | let the"),
        ("absent", "nets.py has no function 'absent' | did you mean"),
        ("", "nets.py has no function '' | "),
        ("number", "nets.py:number is a int, not a function | name a function"),
        ("instance", "nets.py:instance is a Net, not a function | "),
    ],
)
def test_factory_errors(nets, name, message):
    assert message in refused(build, f"{nets}:{name}", (3,), 2)


def test_factory_that_cannot_be_imported(tmp_path):
    assert "there is no file no.py | give the path" in refused(build, "no.py:make", (3,), 2)
    assert refused(build, "no_such_package.nets:make", (3,), 2).startswith(
        "importing no_such_package.nets failed with ModuleNotFoundError: No module named"
    )
    bad = tmp_path / "bad.py"
    bad.write_text("def (\n")
    assert re.search(
        r"importing .*bad.py failed with SyntaxError", refused(build, f"{bad}:f", (), 2)
    )
    assert not [name for name in sys.modules if name.startswith("_lpss_bad")]


def test_specs_without_torch():
    code = (
        "import sys; from lpss_cli.models import KNOWN, resolve; resolve(None, (1, 8, 8), 10);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
