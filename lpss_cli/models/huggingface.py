"""Image classifiers of transformers from a local folder: ``hf:FOLDER``.

Nothing is ever downloaded: the library is told that it is offline before it is imported. Code that
a folder may hold is not run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lpss_cli.errors import InputError, one_line

_LOCAL = {"local_files_only": True, "trust_remote_code": False}


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Build the network that a folder's ``config.json`` describes, with random weights.

    Raises:
        InputError: transformers is not installed, or the folder does not hold a network that it
            knows.
    """
    folder = Path(spec.partition(":")[2])
    if not os.path.isfile(folder / "config.json"):  # for any name, impossible ones too
        raise InputError(
            f"{folder} is not a folder with a config.json", "pass --arch hf:FOLDER, where it is now"
        )
    with _offline(folder) as transformers:
        config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
        network = transformers.AutoModelForImageClassification.from_config(config)
    if config.num_labels != outputs:
        raise InputError(
            f"{folder} has {config.num_labels} outputs, and the data require {outputs}",
            "give the data it was trained on",
        )
    return _returning_scores(network.float())


def weights(folder: Path) -> dict[str, Tensor]:
    """Return a folder's weights under the names that the network of :func:`build` has.

    Older files have other names, which the library knows.

    Raises:
        InputError: see :func:`build`; or tensors are missing or do not fit.
    """
    with _offline(folder) as transformers:
        network, loading = transformers.AutoModelForImageClassification.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, dtype=torch.float32, **_LOCAL
        )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        names = sorted(map(str, loading.get(kind) or ()))
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"{folder}: {kind.removesuffix('_keys')} tensors: {', '.join(names[:3])}{more}",
                "take another copy, or another version of transformers",
            )
    state: dict[str, Tensor] = network.state_dict()
    return state


@contextmanager
def _offline(folder: Path) -> Iterator[Any]:
    """Provide transformers, silent and offline, and turn its errors into ours."""
    before = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"transformers cannot be imported: {one_line(error)}", "pip install lpss-cli[hf]"
        ) from error
    finally:
        if before is None:
            del os.environ["HF_HUB_OFFLINE"]
        else:
            os.environ["HF_HUB_OFFLINE"] = before
    logging: Any = transformers.utils.logging
    verbosity, progress_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    except InputError:
        raise
    except Exception as error:  # whatever a damaged folder makes the library raise
        raise InputError(
            f"transformers cannot make a network from {folder}: {one_line(error)[:300]}",
            "take another copy, or another version of transformers",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if progress_bars:
            logging.enable_progress_bar()


def _returning_scores(network: nn.Module) -> nn.Module:
    """Let a network return its class scores alone; names and modules stay as they are."""
    original = type(network)
    # The library annotates the forward of every class differently.
    original_forward: Callable[..., Any] = original.forward

    def forward(self: nn.Module, pixel_values: Tensor) -> Tensor:
        scores: Tensor = original_forward(self, pixel_values=pixel_values, return_dict=True).logits
        return scores

    network.__class__ = type(original.__name__, (original,), {"forward": forward})
    return network
