"""The command line as a person or a script meets it."""

import csv
import inspect
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import here

from lpss_cli.cli import app
from lpss_cli.cli.parser import with_options
from lpss_cli.sparsity import targets
from lpss_cli.training import method
from lpss_cli.utils import subprocesses

FAST = ["--epochs", "2", "--batch-size", "64"]


def test_the_four_commands_as_typed_in_an_empty_directory(tmp_path):
    for command in ("train", "sparsify model.pt --p 0.5", "report", "export"):
        done = subprocess.run(
            [sys.executable, "-m", "lpss_cli", *command.split()],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.pt", "model.sparse.pt", "model.sparse.safetensors", "model.sparse.onnx",
        "model.sparse.lpss",
    }  # fmt: skip
    state = torch.load(tmp_path / "model.sparse.pt", weights_only=True)["state_dict"]
    weights = [t for t in state.values() if t.dim() == 2]
    assert sum(w.numel() for w in weights) == 50_200
    assert sum(int((w == 0).sum()) for w in weights) == 45_180
    dense = torch.load(tmp_path / "model.pt", weights_only=True)["lpss"]["metrics"]["after"]
    sparse = torch.load(tmp_path / "model.sparse.pt", weights_only=True)["lpss"]["metrics"]
    assert dense["accuracy"] >= 0.96
    assert sparse["before"] == dense
    assert sparse["after"]["accuracy"] >= dense["accuracy"] - 0.02


def test_json_is_exactly_one_document_for_every_command(lpss):
    for command in (
        ["train", *FAST], ["sparsify", "model.pt", *FAST], ["report"], ["export"], ["eval"],
    ):  # fmt: skip
        code, out, err = lpss(*command, "--json")
        assert code == 0, err
        json.loads(out)  # fails on anything before or after the document
    code, out, _ = lpss("eval", "nothing.pt", "--json")
    assert code == 2
    assert "no file nothing.pt" in json.loads(out)["error"]


def test_report_of_several_files_as_json_csv_and_tables(lpss):
    lpss("train", *FAST)
    lpss("sparsify", "model.pt", "--sparsity", "10x", "--p", "0.5", "--p", "fc2*=1.07", *FAST)
    code, out, _ = lpss("report", "model.pt", "model.sparse.pt", "--json")
    dense, sparse = json.loads(out)
    assert code == 0
    assert (dense["zeros"], sparse["zeros"], sparse["prunable"]) == (0, 45_180, 50_200)
    assert [x["p"] for x in sparse["layers"]] == [0.5, 1.07, 0.5]
    assert sparse["run"]["command"].startswith("lpss sparsify model.pt --sparsity 10x")
    rows = list(csv.DictReader(io.StringIO(lpss("report", "model.sparse.pt", "--csv")[1])))
    assert sum(int(r["zeros"]) for r in rows) == 45_180
    assert rows[0]["shape"] == "300x64"
    code, out, err = lpss("report")
    assert "45,180" in out
    assert "90.00%" in out
    assert "model.sparse.pt, the newest artifact" in err


def test_eval_prints_the_metric_alone(lpss):
    lpss("train", *FAST)
    code, out, _ = lpss("eval", "model.pt")
    assert code == 0
    assert 0 < float(out) <= 1


def test_quiet_says_nothing_by_the_way(lpss):
    code, _, err = lpss("train", *FAST, "--quiet")
    assert (code, err) == (0, "")


WRONG = [
    (["train", "--sparsity", "1"], "outside [0, 1)", "0.9"),
    (["train", "--sparsity", "-0.1"], "outside [0, 1)", "0.9"),
    (["train", "--sparsity", "nan"], "outside [0, 1)", "0.9"),
    (["train", "--sparsity", "much"], "not a number", "10x"),
    (["train", "--sparsity", "0x"], "not a number", "10x"),
    (["train", "--sparsity", "0.99999999"], "leaves none of the 50,200", "at most"),
    (["train", "--method", "gpm"], "unknown method 'gpm'", "did you mean 'gmp'"),
    (["train", "--data", "digts"], "no data set called 'digts'", "did you mean 'digits'"),
    (["train", "--data", "a/b.csv"], "no file or folder", "--data"),
    (["train", "--arch", "lenet30"], "unknown network 'lenet30'", "did you mean 'lenet300'"),
    (["train", "--arch", "net.py:make"], "net.py", ""),
    (["train", "--arch", "mlp:10-5"], "10", ""),
    (["train", "--epochs", "-1"], "--epochs -1 is out of range", "from 0 up"),
    (["train", "--epochs", "many"], "--epochs", "lpss train --help"),
    (["train", "--batch-size", "0"], "--batch-size 0 is out of range", "from 1 up"),
    (["train", "--threads", "0"], "--threads 0 is out of range", "from 1 to"),
    (["train", "--threads", "100000"], "--threads 100000", "from 1 to"),
    (["train", "--seed", "-1"], "--seed -1 is out of range", "from 0 to"),
    (["train", "--seed", "99999999999999999999"], "--seed 9999", "from 0 to"),
    (["train", "--sparsity", "0.5", "--skip", "*"], "no prunable weight", "Linear or Conv"),
    (["train", "--lr", "-1"], "--lr -1 is out of range", "from 0"),
    (["train", "--sparsity", "0.5", "--begin", "0.9"], "--begin 0.9 comes after", "--begin"),
    (["train", "--end", "0.9"], "--end 0.9 is out of range", "0.85"),
    (["train", "--sparsity", "0.5", "--frequency", "0"], "--frequency 0", "from 1"),
    (["sparsify", "x.pt", "--method", "snip", "--end", "0.5"], "--end is not an option of", "gmp"),
    (["train", "--ranking", "lmap"], "'lmap' is not a choice", "did you mean 'lamp'"),
    (["train", "--p", "1.15"], "--p is not an option of the method 'dense'", "--method lpss"),
    (["train", "--device", "warp"], "no device 'warp'", "--device cpu"),
    (["train", "--skip", "fc9*"], "--skip 'fc9*' matches no weight", "fc1.weight"),
    (["train", "--mean", "a,b"], "--mean 'a,b'", "0.48"),
    (["train", "--target", "y"], "--target", ""),
    (["train", "--holdout", "1.5"], "holdout fraction", ""),
    (["train", "--out", "no/such/dir.pt"], "does not exist", "--out"),
    (["train", "--out", "."], ". is not a regular file", "choose another --out"),
    (["train", "--colour"], "--colour", "lpss train --help"),
    (["prune"], "prune", "--help"),
    (["sparsify", "none.pt"], "there is no file none.pt", "lpss train"),
    (["sparsify"], "file", "lpss sparsify --help"),
    (["report"], "no lpss artifact", "lpss train"),
    (["report", "none.pt"], "there is no file", ""),
    (["export"], "no lpss artifact", "lpss train"),
    (["eval"], "no lpss artifact", "lpss train"),
]
# What an empty path is called: the flag, or the word that stands for the argument.
EMPTY = [
    *(["train", flag] for flag in ("--out", "--log", "--tensorboard", "--data-dir")),
    *(["compare", flag] for flag in ("--out-dir", "--data-dir")),
    *(["export", "m.pt", "--out-dir"], ["report", "--html"], ["init", "m.pt", "--out"]),
    *(["unpack", "m.lpss", "--out"], ["ticket", "m.pt", "-o"], ["sparsify", "m.pt", "--out"]),
    *([name] for name in ("sparsify", "eval", "export", "init", "plan", "ticket", "unpack")),
    *(["report", "m.pt"], ["report"], ["verify"], ["verify", "m.pt"]),
]
WRONG_P = [
    (["--p", "1.01"], "p = 1.01 is outside", "1.03"),
    (["--p", "0.1"], "p = 0.1 is outside", "0.2"),
    (["--p", "5"], "p = 5 is outside", "4"),
    (["--p", "nan"], "p = nan is outside", "1.03"),
    (["--p", "small"], "'small' is not understood", "--p 1.15"),
    (["--p", "1.2,1.3"], "lists 2 values for 3 weights", "fc2.weight"),
    (["--p", "conv*=1.2"], "'conv*' matches no weight", "fc1.weight"),
    (["--eta", "0.7"], "--eta 0.7 is out of range", "0.5"),
    (["--radius", "huge"], "--radius 'huge' is not a choice", "fixed"),
    (["--gain", "huge"], "'huge' is not a choice", "fixed"),
    (["--off-sphere", "x"], "matches no weight", "fc1.weight"),
]


def arguments(value):
    return " ".join(value) if isinstance(value, list) else ""


def refused(result, what, do):
    code, out, err = result
    assert code == 2, err
    lines = err.strip().splitlines()
    assert [line for line in lines if line.startswith("Error: ")] == lines[-2:-1]
    assert what in lines[-2]
    assert do in lines[-1]
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize(("args", "what", "do"), WRONG, ids=arguments)
def test_wrong_requests_are_two_lines_exit_2_and_no_file(lpss, args, what, do):
    refused(lpss(*args), what, do)
    assert list(Path().iterdir()) == []


def test_an_empty_path_is_not_the_current_folder(lpss):
    arguments = {"report": "FILES", "verify": "A", "verify m.pt": "B", "report m.pt": "FILES"}
    for words in EMPTY:
        name = arguments.get(" ".join(words), "FILE") if words[-1][0] != "-" else words[-1]
        what = f"{'--out' if name == '-o' else name} is empty"
        do = "give a path; . is the current folder"
        code, out, err = lpss(*words, "", "--json")
        assert (code, err) == (2, f"Error: {what}\n  {do}\n")
        assert json.loads(out) == {"error": what, "do": do}
    refused(lpss("ticket", "."), "folder without config.json", "name the checkpoint")
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("args", "what", "do"), WRONG_P, ids=arguments)
def test_wrong_sphere_options(lpss, args, what, do):
    refused(lpss("train", "--sparsity", "0.5", *FAST, *args), what, do)
    assert list(Path().iterdir()) == []


def test_a_diverged_run_is_exit_1_and_leaves_the_old_file(lpss):
    lpss("train", *FAST)
    before = Path("model.pt").read_bytes()
    code, _, err = lpss("train", *FAST, "--lr", "1e30", "--force")
    assert code == 1
    assert "loss" in err
    assert "lower --lr" in err
    assert Path("model.pt").read_bytes() == before
    assert [p.name for p in Path().iterdir()] == ["model.pt"]


def test_an_existing_output_needs_force(lpss):
    lpss("train", *FAST)
    before = Path("model.pt").read_bytes()
    refused(lpss("train", *FAST), "model.pt already exists", "--force")
    assert Path("model.pt").read_bytes() == before
    assert lpss("train", *FAST, "--seed", "3", "--force")[0] == 0
    assert Path("model.pt").read_bytes() != before
    lpss("export", "model.pt")
    refused(lpss("export", "model.pt"), "already exists", "--force")


def test_ctrl_c_is_130(lpss, monkeypatch):
    def interrupt(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("lpss_cli.training.trainer.Trainer.train", interrupt)
    code, _, err = lpss("train", *FAST)
    assert code == 130
    assert "interrupted" in err
    assert list(Path().iterdir()) == []


def test_debug_shows_the_traceback(lpss, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lpss", "eval", "none.pt", "--debug"])
    with pytest.raises(Exception, match="there is no file"):
        app.main()


@pytest.mark.parametrize(
    ("text", "value"), [("0.9", 0.9), ("90%", 0.9), ("10x", 0.9), ("60×", 59 / 60), ("0", 0.0)]
)
def test_sparsity_is_understood_as_fraction_percent_and_ratio(text, value):
    assert targets.parse_sparsity(text) == pytest.approx(value)


def test_a_new_method_gets_its_flags_by_itself(monkeypatch):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config(method.MethodConfig):
        shake: float = method.option(0.25, "how hard to shake", low=0, high=1)

    monkeypatch.setattr(method.Method, "registry", dict(method.Method.registry))
    cls = type("Shaker", (method.Method,), {"name": "shaker", "paper": "none", "Config": Config})
    monkeypatch.setattr(method, "registry", lambda: {**method.Method.registry, "shaker": cls})

    @with_options(of_methods=True)
    def command(out, typed):
        """Do nothing."""

    parameters = inspect.signature(command).parameters
    assert "shake" in parameters
    flag = parameters["shake"].annotation.__metadata__[0]
    assert "how hard" in flag.help.lower()
    assert "0.25" in flag.help


def test_help_names_every_method_and_flag(lpss):
    for level in ("--help", "--help-all"):
        code, out, _ = lpss("sparsify", level)
        assert code == 0
        assert "--sparsity" in out
        assert all(name in out for name in method.registry())
    assert all(flag in out for flag in ("--p", "--eta", "--radius", "--sparsity", "--ranking"))


def test_names_from_files_cannot_write_to_the_terminal(lpss):
    torch.save({"\x1b[31m[bold]evil\n.weight": torch.ones(2, 3)}, "evil.pt")
    code, out, _ = lpss("report", "evil.pt")
    assert code == 0
    assert "\x1b" not in out
    assert "[bold]evil" in out


def test_a_plan_needs_neither_data_nor_training(lpss):
    args = ("plan", "--arch", "lenet300", "--data", "mnist", "--sparsity", "10x")
    code, out, _ = lpss(*args, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["kept"], document["prunable"]) == (26620, 266200)
    assert [layer["fan_in"] for layer in document["layers"]] == [784, 300, 100]
    code, out, _ = lpss(*args, "--hoyer", "0.6")
    assert code == 0
    assert out.count("0.600") == 3
    assert list(Path().iterdir()) == []


def test_a_plan_of_a_checkpoint_and_the_report_agree_on_its_layers(lpss):
    lpss("train", "--sparsity", "0.5", *FAST)
    planned = json.loads(lpss("plan", "--sparsity", "0.5", "--json")[1])
    reported = json.loads(lpss("report", "--json")[1])
    assert [x["name"] for x in planned["layers"]] == [x["name"] for x in reported["layers"]]
    assert [x["p"] for x in planned["layers"]] == [x["p"] for x in reported["layers"]]
    assert all(0 < x["predicted"] < 1 for x in reported["layers"])
    _, out, _ = lpss("report")
    assert "predicted" in out
    assert "mean |err|" in out


@pytest.mark.parametrize(
    ("args", "what", "do"),
    [
        (["--arch", "lenet300", "--hoyer", "0.99"], "no p gives fc1.weight", "choose from"),
        (["--arch", "lenet300", "--hoyer", "0.5", "--p", "1.2"], "exclude each other", "give"),
        (["--arch", "lenet301"], "unknown network", "lenet300"),
        (["--arch", "lenet300", "--sparsity", "1"], "outside [0, 1)", "0.9"),
        (["missing.pt"], "there is no file", "check the path"),
        ([], "no lpss artifact", "name a file"),
    ],
)
def test_wrong_plans(lpss, args, what, do):
    refused(lpss("plan", *args), what, do)


def test_a_ticket_from_the_command_line(lpss):
    lpss("train", "--sparsity", "0.5", "--keep-init", *FAST)
    code, out, _ = lpss("ticket", "model.pt", "--epochs", "1", "--lr", "0.05")
    assert code == 0
    for text in ("its mask, rewind", "trained again", "a random mask", "model.ticket.pt"):
        assert text in out
    two = ("--init", "centroids", "--epochs", "1", "--no-control", "--out", "two.pt")
    code, out, _ = lpss("ticket", "model.pt", *two, "--json")
    document = json.loads(out)
    assert document["control"] is None
    assert document["initial_bytes"] == Path("two.init.safetensors").stat().st_size
    refused(
        lpss("ticket", "two.pt", "--out", "x.pt"),
        "does not hold the initial weights",
        "--keep-init",
    )
    refused(lpss("ticket", "model.pt", "--init", "rewnd"), "not a choice", "rewind")


def test_a_comparison_from_the_command_line(lpss, monkeypatch):
    monkeypatch.setattr(subprocesses, "call", here)
    args = ("--methods", "gmp", "--sparsities", "2x", "--seeds", "1", "--no-tune")
    code, out, _ = lpss("compare", *args, "--arch", "mlp:64-8-10", "--epochs", "1", "--json")
    assert code == 0
    Path("model.pt").touch()
    document = json.loads(out)
    assert [row["method"] for row in document["rows"]] == ["dense", "gmp"]
    assert document["rows"][1]["zeros"] == round(0.5 * (64 * 8 + 80))
    assert document["rows"][1]["target"] == "2x"
    assert Path(document["picture"]).read_text().startswith("<?xml")
    code, out, _ = lpss("compare", *args, "--arch", "mlp:64-8-10", "--epochs", "1")
    assert "gmp" in out
    assert "2x" in out
    refused(lpss("compare", *args), "of another network, data or budget", "--out-dir")
    refused(lpss("compare", "--methods", "gpm"), "unknown method 'gpm'", "did you mean 'gmp'")
    refused(lpss("compare", "--sparsities", "0.5,x"), "'x' is not a number", "write 0.9")
    refused(lpss("compare", "--checkpoint-steps", "0"), "out of range", "from 1 up")
    refused(lpss("compare", *args, "--out-dir", "model.pt/x"), "folder of results", "--out-dir")


@pytest.fixture
def sparse_model(lpss):
    lpss("train", "--sparsity", "0.9", "--out", "m.pt", *FAST)
    return lpss


def test_a_pack_serves_wherever_a_checkpoint_does(sparse_model):
    lpss = sparse_model
    accuracy = lpss("eval", "m.pt")[1]
    code, out, _ = lpss("export", "m.pt", "--format", "pack", "--values", "fp32", "--json")
    assert code == 0
    document = json.loads(out)
    assert [x["path"] for x in document["files"]] == ["m.lpss"]
    assert document["files"][0]["bytes"] == Path("m.lpss").stat().st_size
    rows = {x["name"]: x for x in document["sizes"]}
    assert set(rows) == {"dense fp32", "safetensors", "safetensors + zstd -19", "pack"}
    assert rows["pack"]["bytes"] == Path("m.lpss").stat().st_size
    assert rows["dense fp32"]["bytes"] == 4 * (50_200 + 410)
    assert lpss("eval", "m.lpss")[1] == accuracy
    assert lpss("verify", "m.pt", "m.lpss")[0] == 0
    report = json.loads(lpss("report", "m.lpss", "--json")[1])
    assert report["zeros"] == 45_180
    assert report["bound_values"] == "fp32"
    assert report["file_bytes"] < 1.1 * report["bound_bytes"]
    assert "of it" in lpss("report", "m.lpss")[1]
    assert lpss("unpack", "m.lpss")[0] == 0
    assert lpss("verify", "m.lpss", "m.safetensors")[0] == 0
    code, out, _ = lpss("export", "m.lpss", "--force", "--json")
    assert code == 0
    assert [x["kind"] for x in json.loads(out)["files"]] == ["safetensors", "onnx"]
    assert [x["name"] for x in json.loads(out)["sizes"]][-1] == "pack"
    assert lpss("sparsify", "m.lpss", "--sparsity", "0.95", *FAST)[0] == 0
    # The newest artifact is still one that training wrote.
    assert "m.sparse.pt, the newest" in lpss("eval")[2]


def test_rounded_values_are_told_apart_and_pass_within_a_tolerance(sparse_model):
    lpss = sparse_model
    code, out, _ = lpss("export", "m.pt", "--format", "pack")
    assert code == 0
    assert "rounded to fp16" in out
    assert "accuracy" in out
    code, out, err = lpss("verify", "m.pt", "m.lpss")
    assert (code, err) == (1, "")
    assert "not equal exactly" in out
    assert "the same" in out
    assert "predictions changed" in out
    code, out, _ = lpss("verify", "m.pt", "m.lpss", "--tolerance", "0.1", "--json")
    document = json.loads(out)
    assert (code, document["equal"]) == (0, True)
    assert all(x["same_zeros"] for x in document["tensors"])
    assert document["predictions"]["examples"] == 360


def test_a_pack_without_its_data_is_proved_by_its_tensors(sparse_model):
    lpss = sparse_model
    state = torch.load("m.pt", weights_only=True)["state_dict"]
    torch.save(state, "bare.pt")
    code, out, err = lpss("export", "bare.pt", "--format", "pack,safetensors")
    assert code == 0
    assert "outputs are not compared: bare.pt does not say which data" in err
    assert "accuracy" not in out
    args = ("export", "bare.pt", "--format", "pack", "--force", "--arch", "lenet300")
    refused(lpss(*args), "", "")  # what was typed must be right


def test_what_cannot_be_packed_is_found_before_any_file_is_written(lpss):
    torch.save({"w": torch.tensor([[1.0, float("nan")]])}, "bare.pt")
    args = ("export", "bare.pt", "--format", "safetensors,pack")
    refused(lpss(*args), "w holds 1 values that are not finite", "diverged")
    assert [p.name for p in Path().iterdir()] == ["bare.pt"]


def test_wrong_packs_and_comparisons(sparse_model):
    lpss = sparse_model
    lpss("export", "m.pt", "--format", "pack")
    refused(lpss("export", "m.pt", "--format", "zip"), "--format 'zip' is not a choice", "pack")
    refused(
        lpss("export", "m.pt", "--values", "fp61"),
        "--values 'fp61' is not a choice",
        "did you mean 'fp16'",
    )
    refused(lpss("unpack", "m.pt"), "m.pt is not a packed file", "lpss export")
    refused(lpss("verify", "m.pt", "none.pt"), "there is no file", "check the path")
    refused(lpss("verify", "m.pt", "m.lpss", "--tolerance", "-1"), "--tolerance", "from 0 up")
    whole = Path("m.lpss").read_bytes()
    for name, data in {"cut": whole[:-1], "flipped": whole[:-1] + bytes([whole[-1] ^ 1])}.items():
        Path(f"{name}.lpss").write_bytes(data)
        for command in (["eval"], ["report"], ["unpack"], ["export"], ["sparsify"]):
            refused(lpss(*command, f"{name}.lpss"), f"{name}.lpss is a damaged pack", "again")


def test_the_forms_of_an_onnx_export_and_what_a_report_says_of_them(lpss):
    lpss("train", *FAST, "--sparsity", "0.95")
    code, out, err = lpss("export", "--format", "onnx", "--int8")
    assert code == 0, err
    assert "live shape" in out
    assert "FLOPs" in out
    assert "batch 64" in out
    assert "model.int8.onnx" in out
    assert "does not skip zeros" in err
    refused(lpss("export", "--format", "onnx", "--int8"), "already exists", "--force")
    Path("model.onnx").unlink()
    refused(
        lpss("export", "--format", "onnx", "--int8"), "model.int8.onnx already exists", "--force"
    )
    refused(
        lpss("export", "--onnx-encoding", "gap"), "--onnx-encoding 'gap' is not a choice", "'gaps'"
    )
    sizes = {}
    for encoding in ("dense", "gaps"):
        code, out, err = lpss(
            "export", "--format", "onnx", "--no-compact", "--no-latency",
            "--onnx-encoding", encoding, "--json", "--force",
        )  # fmt: skip
        assert code == 0, err
        (file,) = json.loads(out)["files"]
        assert (file["changed"], file["savings"], file["latency"]) == (0, None, [])
        assert file["metrics"]["accuracy"] > 0.5
        sizes[encoding] = file["bytes"]
    assert sizes["gaps"] < 0.15 * sizes["dense"]
    _reported(lpss)


def _reported(lpss):
    """A report measures the files that export would write, and writes none."""
    quick = json.loads(lpss("report", "--json")[1])
    assert (quick["sizes"], quick["latency"]) == ([], [])
    before = sorted(Path().iterdir())
    code, out, err = lpss("report", "--sizes", "--json", "--html", "r.html")
    assert code == 0, err
    found = json.loads(out)
    assert sorted(path for path in Path().iterdir() if path.name != "r.html") == before
    assert found["live"] == quick["live"]
    assert found["live"]["parameters"][0] == 50_610
    assert found["live"]["parameters"][1] < 50_610
    assert found["live"]["flops"][0] == 2 * (64 * 300 + 300 * 100 + 100 * 10)
    names = [row["name"] for row in found["sizes"]]
    assert names == ["dense fp32", "safetensors", "safetensors + zstd -19", "onnx", "pack"]
    assert found["sizes"][0]["bytes"] == 4 * 50_610
    assert found["sizes"][4]["against_dense"] > 10
    networks = [(row["network"], row["batch"]) for row in found["latency"]]
    assert networks == [(n, b) for n in ("with all units", "model.onnx") for b in (1, 64)]
    page = Path("r.html").read_text()
    for part in ("<h3>Sizes</h3>", "<h3>Times</h3>", "live shape", "with all units", "FLOPs"):
        assert part in page, part
    refused(lpss("report", "--mean", "0.5"), "--mean says how to measure", "add --sizes")
    refused(lpss("report", "--sizes", "--csv"), "--csv has the layers only", "use --json")
    torch.save(torch.load("model.pt", weights_only=True)["state_dict"], "bare.pt")
    for page in ("bare.pt", "../" + Path().resolve().name + "/bare.pt"):
        result = lpss("report", "model.pt", "bare.pt", "--html", page, "--force")
        refused(result, f"--html names {page}, which is one of the files to read", "another name")
    code, out, err = lpss("report", "bare.pt", "--sizes")
    assert code == 0
    assert "no ONNX file, operations or times: bare.pt" in err
    assert err.count("recognized as mlp") == 1
    assert "pack" in out
    assert "FLOPs" not in lpss("report", "bare.pt")[1]
