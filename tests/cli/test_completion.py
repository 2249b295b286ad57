"""Shell completion knows the values that the library takes, and help is instant."""

import os
import subprocess
import sys

import pytest
import typer

from lpss_cli.checkpoints.packed import CHOICES
from lpss_cli.cli import app
from lpss_cli.data.spec import AUGMENTS, KNOWN
from lpss_cli.export.options import ENCODINGS, FORMATS
from lpss_cli.jobs import recipes
from lpss_cli.training import method
from lpss_cli.training.options import PRECISIONS


def complete(*words):
    """What a shell gets for a line whose last word is unfinished."""
    environment = {
        **os.environ,
        "_LPSS_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["lpss", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = (
        "import sys, atexit; sys.argv = ['lpss']\n"
        "atexit.register(lambda: print('HEAVY', {'torch', 'rich', 'numpy'} & set(sys.modules)))\n"
        "from lpss_cli.cli.app import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    *values, heavy = done.stdout.splitlines()
    assert heavy == "HEAVY set()"
    return values


def test_a_shell_gets_the_methods_without_importing_anything_heavy():
    assert complete("train", "--method", "") == list(method.registry())
    assert complete("train", "--method", "g") == ["gmp", "gsm"]
    assert complete("sp") == ["sparsify"]


def values(command, flag):
    """What the option of a command completes."""
    group = typer.main.get_command(app.app)
    option = next(p for p in group.commands[command].params if flag in p.opts)
    context = typer.Context(group.commands[command])
    return lambda incomplete: [item.value for item in option.shell_complete(context, incomplete)]


@pytest.mark.parametrize(
    ("command", "flag", "known"),
    [
        ("sparsify", "--data", KNOWN),
        ("train", "--ranking", method.RANKINGS),
        ("train", "--radius", ("fixed", "learned", "unit")),
        ("train", "--gain", ("fixed", "learned", "unit")),
        ("train", "--precision", PRECISIONS),
        ("train", "--augment", AUGMENTS),
        ("train", "--recipe", recipes.names()),
        ("ticket", "--init", ("rewind", "centroids", "random")),
        ("export", "--format", FORMATS),
        ("export", "--values", CHOICES),
        ("export", "--onnx-encoding", ENCODINGS),
    ],
)
def test_an_option_completes_what_the_library_takes(command, flag, known):
    found = values(command, flag)
    assert sorted(found("")) == sorted(known)
    one = sorted(known)[0]
    assert one in found(one[:2])
    assert found("zzz") == []


def test_networks_are_completed_with_those_of_torchvision():
    found = values("train", "--arch")
    assert {"lenet300", "wrn18", "mlp:", "timm:"} <= set(found(""))
    assert "torchvision:resnet18" in found("torchvision:res")


def test_several_values_are_completed_one_after_the_other():
    found = values("compare", "--methods")
    assert found("lpss,g") == ["lpss,gmp", "lpss,gsm"]
    assert "lpss,gmp,gmp" not in found("lpss,gmp,")
    assert values("export", "--format")("onnx,s") == ["onnx,safetensors"]


def test_an_option_without_known_values_leaves_it_to_the_shell():
    assert values("train", "--lr")("") == []


def test_the_first_help_imports_neither_torch_nor_the_printer_of_panels():
    code = (
        "import sys; sys.argv = ['lpss', '--help']\n"
        "from lpss_cli.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "print({'torch', 'rich', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *text, heavy = done.stdout.splitlines()
    assert heavy == "set()"
    for name in typer.main.get_command(app.app).commands:
        line = next(line for line in text if line.startswith(f"  {name} "))
        assert not line.endswith("..."), line  # its first sentence fits
