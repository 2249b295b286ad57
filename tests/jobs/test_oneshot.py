"""One cut of a file in blocks, against the ordinary selection on whole tensors."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from lpss_cli.errors import InputError
from lpss_cli.jobs import oneshot
from lpss_cli.sparsity.masks import top_k

NAMES = ("a.weight", "b.weight")


def write(path, state, **texts):
    save_file(state, path, metadata=texts or None)
    return path


def example(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(40, 30, generator=generator).to(dtype),
        "a.bias": torch.randn(40, generator=generator),
        "b.weight": (torch.randn(8, 4, 3, 3, generator=generator) * 0.1).to(dtype),
        "embed.weight": torch.randn(10, 4, generator=generator),
        "steps": torch.tensor(7),
    }


def reference(state, sparsity, names=NAMES):
    """The masks of the ordinary global ranking."""
    total = sum(state[name].numel() for name in names)
    scores = {name: state[name].float().abs().log() for name in names}
    return top_k(scores, total - round(sparsity * total))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_it_is_the_global_magnitude_cut(tmp_path, monkeypatch, dtype, sparsity):
    monkeypatch.setattr(oneshot, "BLOCK_SIZE", 100)  # several blocks a tensor
    state = example(dtype=dtype)
    result = oneshot.prune_tensors(
        write(tmp_path / "m.safetensors", state), tmp_path / "o.safetensors", sparsity
    )
    back = load_file(tmp_path / "o.safetensors")
    masks = reference(state, sparsity)
    assert list(back) == sorted(state) or set(back) == set(state)
    for name, tensor in state.items():
        expected = tensor.where(masks[name], torch.zeros_like(tensor)) if name in masks else tensor
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], expected), name
    assert (result.weights, result.zeros) == (1488, round(sparsity * 1488))
    assert set(result.left) == {"a.bias", "embed.weight", "steps"}


@settings(deadline=None, max_examples=60)
@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, -3e38]), min_size=2,
                    max_size=60),
    sparsity=st.floats(0, 0.99),
    block=st.integers(1, 70),
)  # fmt: skip
def test_ties_zeros_and_extremes(tmp_path_factory, values, sparsity, block):
    total = len(values)
    if round(sparsity * total) >= total:
        return
    folder = tmp_path_factory.mktemp("x")
    tensor = torch.tensor([values])
    path = write(folder / "m.safetensors", {"w": tensor})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(oneshot, "BLOCK_SIZE", block)
        result = oneshot.prune_tensors(path, folder / "o.safetensors", sparsity)
    back = load_file(folder / "o.safetensors")["w"]
    already = sum(value == 0 for value in values)
    assert result.zeros == int((back == 0).sum()) == max(already, round(sparsity * total))
    mask = reference({"w": tensor}, sparsity, ("w",))["w"]
    assert torch.equal(back, tensor.where(mask, torch.zeros(())))


def test_the_report_counts_what_was_cut(tmp_path):
    from lpss_cli.cli.views.report import origin_table
    from lpss_cli.reporting.report import report

    path = write(tmp_path / "m.safetensors", example(), origin="mine")
    oneshot.prune_tensors(path, tmp_path / "o.safetensors", 0.75)
    found = report(tmp_path / "o.safetensors")
    assert (found.weights, found.zeros) == (1488, 1116)
    assert [layer.name for layer in found.layers] == list(NAMES)
    rows = [str(cell) for cell in origin_table(found).columns[0].cells]
    assert rows == ["file", "bound", "method"]  # nothing is said of a network, data or versions


def test_nan_is_named_and_counted_and_nothing_is_written(tmp_path):
    state = example()
    state["b.weight"][0, 0, 0, :2] = torch.tensor([float("nan"), float("inf")])
    path = write(tmp_path / "m.safetensors", state)
    with pytest.raises(InputError, match=r"b\.weight holds 2 values that are not finite"):
        oneshot.prune_tensors(path, tmp_path / "o.safetensors", 0.5)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


@pytest.fixture
def lpss(lpss):
    """The command line, beside weights without a network."""
    write("m.safetensors", example())
    return lpss


def test_the_command(lpss):
    code, out, err = lpss(
        "sparsify", "m.safetensors", "--epochs", "0", "--sparsity", "4x", "--json"
    )
    assert code == 0, err
    document = json.loads(out)
    assert (document["zeros"], document["weights"]) == (1116, 1488)
    assert "embed.weight" in err
    assert Path("m.sparse.safetensors").exists()
    code, _, err = lpss("sparsify", "m.safetensors", "--epochs", "0")
    assert (code, "already exists" in err) == (2, True)
    code, out, _ = lpss("sparsify", "m.safetensors", "--epochs", "0", "--skip", "b.*", "--force")
    assert code == 0
    assert "90.00%" in out
    back = load_file("m.sparse.safetensors")
    assert int((back["a.weight"] == 0).sum()) == 1080
    assert not (back["b.weight"] == 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--skip", "nothing*"), "nothing*"),
        (("--sparsity", "1"), "outside"),
        (("--sparsity", "0.9999"), "leaves none"),
        (("--ranking", "erk"), "one-shot pruning of a bare file ranks by magnitude"),
        (("--method", "gsm"), "one-shot pruning of a bare file ranks by magnitude"),
        (("--out", "none/x.safetensors"), "does not exist"),
    ],
)
def test_what_it_refuses(lpss, options, message):
    code, _, err = lpss("sparsify", "m.safetensors", "--epochs", "0", *options)
    assert (code, message in err) == (2, True), err
    assert [p.name for p in Path().iterdir()] == ["m.safetensors"]


def test_a_damaged_file_goes_the_ordinary_way(lpss):
    whole = Path("m.safetensors").read_bytes()
    Path("m.safetensors").write_bytes(whole[:-5])
    code, _, err = lpss("sparsify", "m.safetensors", "--epochs", "0")
    assert (code, "damaged safetensors" in err) == (2, True)
