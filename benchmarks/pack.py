"""How small packed files are, against the information bound, and the time to make and read them.

    python benchmarks/pack.py --data-dir DIR

Three networks trained to 90 % zeros (the convolutional ones shortly: sizes are measured), and the
shapes of ResNet-50 with normal weights of Kaiming's scale under one cut by magnitude. Every file is
read again; fp32 must come back bit for bit, and the zeros of the others must be the same. Times are
the process's own (CPU) on one thread. Writes benchmarks/results/pack.json and .md. Trained networks
are kept in benchmarks/artifacts.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tables import FOLDER, table, write
from torch import Tensor

from lpss_cli.checkpoints import metadata
from lpss_cli.checkpoints.loading import read
from lpss_cli.checkpoints.packed import CHOICES, pack, unpack
from lpss_cli.jobs import training_job
from lpss_cli.jobs.config import Request
from lpss_cli.models import build
from lpss_cli.reporting import sizes
from lpss_cli.reporting.report import weights_of
from lpss_cli.sparsity.patterns import bias_names
from lpss_cli.sparsity.prunable import prunable_weights

TRAINED = {
    "LeNet-300 MNIST, 12 epochs, 90 %": {"arch": "lenet300", "data": "mnist", "epochs": 12},
    "LeNet-5 MNIST, 1 epoch, 90 %": {
        "arch": "lenet5", "data": "mnist", "epochs": 1, "precision": "bf16",
    },
    "WRN-18 Fashion-MNIST, 1 epoch, 90 %": {
        "arch": "wrn18", "data": "fashion-mnist", "epochs": 1, "precision": "bf16",
    },
}  # fmt: skip
CUTS = (0.9, 0.95, 0.99)
Network = tuple[str, dict[str, Tensor], list[str], dict]


def trained(root: str) -> Iterator[Network]:
    """Train what is not there yet, and read it."""
    folder = Path(__file__).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    for name, spec in TRAINED.items():
        out = folder / f"pack-{spec['arch']}.pt"
        if not out.exists():
            overrides = {"data_dir": root}
            training_job.train(
                Request(out, data_overrides=overrides, sparsity=0.9, batch_size=256, **spec)
            )
        checkpoint = read(out)
        meta = metadata.for_export(checkpoint.meta)
        yield name, checkpoint.state_dict, list(weights_of(checkpoint)), meta


def resnet50() -> Iterator[Network]:
    """The shapes of ResNet-50 at every cut."""
    torch.manual_seed(0)
    model = build("torchvision:resnet50", (3, 224, 224), 1000)
    names = list(prunable_weights(model))
    # Norms of a fresh network are all ones and zeros, which would flatter the file.
    state = {
        name: torch.rand(tensor.shape) + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    for name in names:
        fan_in = state[name][0].numel()
        state[name] = torch.randn(state[name].shape) * math.sqrt(2 / fan_in)
    magnitudes = torch.cat([state[name].abs().flatten() for name in names])
    for cut in CUTS:
        threshold = magnitudes.kthvalue(round(cut * len(magnitudes))).values
        pruned = {
            name: tensor * (tensor.abs() > threshold) if name in names else tensor
            for name, tensor in state.items()
        }
        yield f"ResNet-50 shapes, {100 * cut:g} %", pruned, names, {"arch": "torchvision:resnet50"}


def measured(network: Network, values: str) -> dict:
    """Pack, unpack, check, and compare with the bound."""
    name, state, names, meta = network
    start = time.process_time()
    biases = bias_names(state, names)
    data = pack(state, meta, names, values, biases=biases)
    middle = time.process_time()
    back = unpack(data).state_dict
    end = time.process_time()
    for key, tensor in state.items():
        exact = values == "fp32" or key not in (*names, *biases)
        same = (back[key] == tensor) if exact else ((back[key] == 0) == (tensor == 0))
        assert bool(same.all()), (name, values, key)
    bound = sizes.bound(state, names, values)
    plain = len(pack(state, meta, names, values, biases=biases, compress=False))
    return {
        "network": name,
        "values": values,
        "weights": sum(state[key].numel() for key in names),
        "zeros": sum(int((state[key] == 0).sum()) for key in names),
        "tensors": len(state),
        "dense_bytes": sizes.dense_bytes(state),
        "bound_bytes": bound,
        "plain_bytes": plain,
        "bytes": len(data),
        "plain_over_bound": plain / bound,
        "plain_over_bound_less_256_a_tensor": (plain - 256 * len(state)) / bound,
        "over_bound": len(data) / bound,
        "dense_over_pack": sizes.dense_bytes(state) / len(data),
        "pack_seconds": middle - start,
        "unpack_seconds": end - middle,
    }


def summary(rows: list[dict]) -> str:
    head = ["network", "values", "dense fp32, kB", "bound, kB", "pack without zstd, kB", "pack, kB",
            "without zstd / bound", "pack / bound", "dense / pack", "pack, CPU s",
            "unpack, CPU s"]  # fmt: skip
    cells = []
    for row in rows:
        kilo = [f"{row[key] / 1000:,.1f}" for key in
                ("dense_bytes", "bound_bytes", "plain_bytes", "bytes")]  # fmt: skip
        ratios = [f"{row[key]:.3f}" for key in ("plain_over_bound", "over_bound")]
        seconds = [f"{row[key]:.2f}" for key in ("pack_seconds", "unpack_seconds")]
        ratios.append(f"{row['dense_over_pack']:.1f}")
        cells.append([row["network"], row["values"], *kilo, *ratios, *seconds])
    return table(head, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    root = parser.parse_args().data_dir
    torch.set_num_threads(1)
    rows = []
    for networks in (trained(root), resnet50()):
        for network in networks:
            for values in CHOICES:
                rows.append(measured(network, values))
                print(json.dumps(rows[-1]), flush=True)
    command = "`python benchmarks/pack.py --data-dir DIR`"
    write(FOLDER / "pack.json", rows, command, summary(rows))


if __name__ == "__main__":
    main()
