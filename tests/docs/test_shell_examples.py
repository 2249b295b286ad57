"""Every command of the documents runs as it stands, one after the other.

Only the length of trainings is changed, to one epoch, and outputs may be replaced. Files that a
document shows (code blocks that begin with ``# NAME.py``) lie there for its commands.
"""

import csv
import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from test_documents import DOCUMENTS, ROOT, commands, files_of

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="the docs are not installed")
CLASSES, SIDE = 3, 40
NET = """
from torchvision.models import squeezenet1_1
def make_net():
    return squeezenet1_1(num_classes=3)
"""
# What nobody has in an empty directory: data sets and networks that must be downloaded.
ABSENT = ("mnist", "cifar", "--data-dir", "vit-base")
TRAIN = ("train", "sparsify", "ticket", "compare")
REPLACE = ("train", "sparsify", "ticket", "export", "unpack", "report", "init")


@pytest.fixture
def readers_files(lpss):
    """What a reader of the documents has: a network, images, arrays, a table, a big file."""
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    torch.save(squeezenet1_1(num_classes=CLASSES).state_dict(), "weights.pt")
    rng = np.random.default_rng(0)
    for part in ("train", "val"):
        for label in range(CLASSES):
            folder = Path("photos", part, f"class{label}")
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(60 * label, 60 * label + 90, (SIDE, SIDE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    x, y = rng.normal(size=(60, 3, SIDE, SIDE)).astype(np.float32), np.arange(60) % CLASSES
    np.savez("train.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    Path("net.py").write_text(NET)
    save_file({"a.weight": torch.randn(64, 64), "b.bias": torch.randn(64)}, "big.safetensors")
    with Path("climate.csv").open("w", newline="") as file:
        rows = [[1, n, *rng.normal(size=4).round(3), n % 2] for n in range(120)]
        csv.writer(file).writerows([["study", "run", "a", "b", "c", "d", "outcome"], *rows])


def adapted(line):
    """The same command with a short training, without timings, and with leave to replace files."""
    words = shlex.split(line)[1:]
    if words[0] in TRAIN and "--epochs" not in words:
        words += ["--epochs", "1"]
    if words[0] == "export" and not any("latency" in word for word in words):
        words.append("--no-latency")  # large images at a batch of 64
    if words[0] in REPLACE and not {"--force", "-f"} & set(words):
        words.append("--force")
    return words


@pytest.mark.parametrize("document", sorted({name for name, _ in commands()}))
def test_the_commands_run(document, readers_files, lpss):
    for file, text in files_of(document).items():
        if "/" not in file:  # the others belong to the package
            Path(file).write_text(text)
    lines = [line for name, line in commands() if name == document]
    runnable = [line for line in lines if not any(word in line for word in ABSENT)]
    if not runnable:
        pytest.skip("no command to run here")

    if document != "README.md":  # there the first commands are these
        assert lpss("train", "--epochs", "1")[0] == 0
        assert lpss("sparsify", "model.pt", "--epochs", "1")[0] == 0

    for line in runnable:
        for packed in re.findall(r"(\S+)\.lpss", line):
            if not Path(f"{packed}.lpss").exists():
                assert lpss("export", f"{packed}.pt", "--format", "pack")[0] == 0
        code, _, err = lpss(*adapted(line))
        # Comparing a rounded file with its source is meant to find a difference.
        assert code in ((0, 1) if line.startswith("lpss verify") else (0,)), f"{line}\n{err}"
    assert len(runnable) >= len(lines) - 4  # few need data that are not at hand


def test_a_network_and_data_of_the_readers_own(lpss):
    """The documented files with a plain state_dict, and with the arguments they may leave out."""
    for file, text in files_of("own_network.md").items():
        Path(file).write_text(text)
    net = runpy.run_path("net.py")["make_net"](input_shape=(1, 8, 8), outputs=3)
    torch.save(net.state_dict(), "weights.pt")
    own = ("--arch", "net.py:make_net", "--data", "data.py:make_data")

    code, out, err = lpss("eval", "weights.pt", *own, "--json")
    assert code == 0, err
    assert json.loads(out)["primary_metric"] == "exact_match"
    assert set(json.loads(out)) >= {"exact_match", "label_accuracy"}

    code, out, err = lpss("sparsify", "weights.pt", *own, "--epochs", "1", "--json")
    assert code == 0, err
    assert json.loads(out)["report"]["zeros"] == round(0.9 * 21_792)

    # Code that only a file names is not imported.
    code, _, err = lpss("eval", "weights.sparse.pt")
    assert code == 2
    assert "pass --arch net.py:make_net" in err
    assert lpss("report", "weights.sparse.pt")[0] == 0


def test_programs_of_the_documents_run(lpss, capsys):
    assert lpss("train", "--epochs", "1")[0] == 0
    assert lpss("sparsify", "model.pt", "--epochs", "1")[0] == 0
    assert lpss("export", "--no-latency")[0] == 0
    texts = {document.name: document.read_text(encoding="utf-8") for document in DOCUMENTS}
    programs = [
        (name, program)
        for name, text in texts.items()
        for program in re.findall(r"^python (\w+\.py)$", text, re.M)
    ]
    for name, program in programs:
        Path(program).write_text(files_of(name)[program])
        runpy.run_path(program)
        assert "preprocessing" in capsys.readouterr().out
    assert programs
