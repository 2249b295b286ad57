"""ASNI-II: an initialisation of two numbers per layer (Damadi et al., arXiv:2202.09284).

From a sparse network every layer keeps its mask, the signs of its survivors, and two numbers: the
mean of the positive and the mean of the negative survivors. Training from there, with the mask
fixed, is what the paper calls amenable. On disk it is the mask (compressed), one bit a survivor
and 2L numbers.
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
    """A ternary initialisation.

    Attributes:
        signs: name → int8 tensor of the weight's shape: 0 where cut, else the survivor's sign.
        centroids: name → (mean of positive survivors, mean of negative ones); 0 where there
            are none.
        meta: what is needed to rebuild the network: plain containers.
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
        """Initialise a network: these weights, biases 0, norms 1 and 0; the rest stays its own.

        Raises:
            InputError: a weight is missing or has another shape.
        """
        # A weight that is tied to another may be known by either name.
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
    """Take signs and centroids from a sparse network's weights."""
    signs, centroids = {}, {}
    for name, weight in weights.items():
        values = weight.detach().float().cpu()
        signs[name] = values.sign().to(torch.int8)
        centroids[name] = _mean(values[values > 0]), _mean(values[values < 0])
    return TernaryInit(signs, centroids, dict(meta))


def _mean(values: Tensor) -> float:
    # Through float32, as the file stores it.
    return float(values.double().mean().float()) if len(values) else 0.0


def save(path: Path, initial: TernaryInit) -> None:
    """Write a safetensors file of three tensors: ``mask``, ``signs``, ``centroids``.

    ``mask`` is the zlib stream of the layers' bits, row-major, one after the other; ``signs`` one
    bit a survivor (1: positive) in the same order; ``centroids`` float32 of shape (L, 2).
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
        InputError: it is none, or damaged.
    """
    try:
        stored, texts = safetensors_file.load(path, read_bytes(path))
        described = json.loads(texts[_KEY])
        shapes = {name: tuple(map(int, shape)) for name, shape in described["layers"].items()}
        sizes = [math.prod(shape) for shape in shapes.values()]
        if any(extent < 0 for shape in shapes.values() for extent in shape):
            raise ValueError("negative sizes")
        # The layers say how much may come out: a stream cannot fill the memory.
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
    # An InputError of the reading is a ValueError too.
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, zlib.error) as error:
        raise InputError(
            f"{path} is no amenable initialisation: {one_line(error)}", "make one with lpss ticket"
        ) from error


def _bits(packed: np.ndarray, count: int) -> np.ndarray:
    """Unpack exactly so many bits; numpy would fill up a short stream with zeros."""
    if len(packed) != -(-count // 8):
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    return np.unpackbits(packed, count=count)
