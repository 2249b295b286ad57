"""ASNI-II: an initialization of two numbers per layer (Damadi et al., arXiv:2202.09284).

Every layer keeps the mask and the signs of a sparse network, and two numbers: the means of its
positive and of its negative weights. The paper calls a network amenable if it can be trained from
there, with the mask fixed. A file holds the compressed mask, one bit per kept weight, and 2L
numbers.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lpss_cli.checkpoints import safetensors_file
from lpss_cli.checkpoints.read_file import read_bytes
from lpss_cli.errors import InputError, one_line
from lpss_cli.utils.files import atomic_write

_KEY = "lpss-amenable"


@dataclass(frozen=True)
class TernaryInit:
    """A ternary initialization.

    Attributes:
        signs: name → int8 tensor of the weight's shape: the sign of a kept weight, 0 for others.
        centroids: name → (mean of the positive weights, mean of the negative ones); 0 if there are
            none.
        meta: what is needed to rebuild the network, as plain containers.
    """

    signs: dict[str, Tensor]
    centroids: dict[str, tuple[float, float]]
    meta: dict[str, Any]

    def weight(self, name: str) -> Tensor:
        """Return the initial weight of a layer, float32."""
        up, down = self.centroids[name]
        signs = self.signs[name]
        return up * (signs > 0).float() + down * (signs < 0).float()

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Initialize a network: these weights, zero biases, and normalization layers of 1 and 0.

        Other parameters keep their values.

        Raises:
            InputError: a weight is missing or has another shape.
        """
        # The weight may be named by either name of a tied parameter.
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, parameter in parameters.items():
            if name.endswith("bias"):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm)):
                module.reset_parameters()
        for name, signs in self.signs.items():
            if name not in parameters or parameters[name].shape != signs.shape:
                raise InputError(
                    f"the network has no weight {name} of shape {tuple(signs.shape)}",
                    "give the --arch it was made from",
                )
            parameters[name].copy_(self.weight(name))


def derive(weights: Mapping[str, Tensor], meta: Mapping[str, Any]) -> TernaryInit:
    """Return the signs and centroids of the weights of a sparse network.

    Args:
        weights: name → weight with zeros.
        meta: what is needed to rebuild the network, as plain containers.
    """
    signs, centroids = {}, {}
    for name, weight in weights.items():
        values = weight.detach().float().cpu()
        signs[name] = values.sign().to(torch.int8)
        centroids[name] = _mean(values[values > 0]), _mean(values[values < 0])
    return TernaryInit(signs, centroids, dict(meta))


def _mean(values: Tensor) -> float:
    # Rounded to float32, as in the file.
    return float(values.double().mean().float()) if len(values) else 0.0


def save(path: Path, initial: TernaryInit) -> None:
    """Write a safetensors file of three tensors: ``mask``, ``signs``, ``centroids``.

    ``mask`` is a zlib stream of the bits of all layers in row-major order, one layer after the
    other; ``signs`` has one bit per kept weight (1: positive) in the same order; ``centroids`` is
    float32 of shape (L, 2).
    """
    flat = torch.cat([signs.flatten() for signs in initial.signs.values()]).numpy()
    mask = zlib.compress(np.packbits(flat != 0).tobytes(), 9)
    tensors = {
        "mask": torch.frombuffer(bytearray(mask), dtype=torch.uint8),
        "signs": torch.from_numpy(np.packbits(flat[flat != 0] > 0)),
        "centroids": torch.tensor(list(initial.centroids.values()), dtype=torch.float32),
    }
    layers = {name: list(signs.shape) for name, signs in initial.signs.items()}
    text = json.dumps({"layers": layers, "meta": initial.meta}, separators=(",", ":"))
    with atomic_write(path) as temporary:
        safetensors_file.write(temporary, tensors, {_KEY: text})


def load(path: Path) -> TernaryInit:
    """Read a file of ``save``.

    Raises:
        InputError: the file is not one of these, or is damaged.
    """
    try:
        stored, texts = safetensors_file.load(path, read_bytes(path))
        described = json.loads(texts[_KEY])
        shapes = {name: tuple(map(int, shape)) for name, shape in described["layers"].items()}
        sizes = [math.prod(shape) for shape in shapes.values()]
        if any(extent < 0 for shape in shapes.values() for extent in shape):
            raise ValueError("negative sizes")
        # No more than the layers need is decompressed: a hostile stream cannot fill the memory.
        stream = zlib.decompressobj().decompress(
            stored["mask"].numpy().tobytes(), sum(sizes) // 8 + 1
        )
        mask = _bits(np.frombuffer(stream, np.uint8), sum(sizes)).astype(bool)
        flat = np.zeros(sum(sizes), np.int8)
        flat[mask] = 2 * _bits(stored["signs"].numpy(), int(mask.sum())).astype(np.int8) - 1
        parts = torch.from_numpy(flat).split(sizes)
        pairs = [(float(up), float(down)) for up, down in stored["centroids"]]
        return TernaryInit(
            {n: part.view(s) for (n, s), part in zip(shapes.items(), parts, strict=True)},
            dict(zip(shapes, pairs, strict=True)),
            dict(described["meta"]),
        )
    # ValueError includes the InputErrors of reading.
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise InputError(
            f"{path} is not a ternary initialization: {one_line(error)}",
            "make one with lpss ticket",
        ) from error


def _bits(packed: np.ndarray, count: int) -> np.ndarray:
    """Unpack exactly ``count`` bits; NumPy would fill up a short stream with zeros."""
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count)
