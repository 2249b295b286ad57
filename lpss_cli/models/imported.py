"""Networks made by a function of the user's: ``file.py:factory`` and ``pkg.mod:factory``."""

from __future__ import annotations

from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.utils.user_code import call_function


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Call the factory and check that it returns a network.

    The factory is called with those of ``input_shape``, ``outputs``, ``num_classes`` that its
    signature names, by keyword, and with nothing else.

    Raises:
        InputError: no such file, module or function; the factory raised; not an ``nn.Module``.
    """
    known = {"input_shape": input_shape, "outputs": outputs, "num_classes": outputs}
    network = call_function(spec, known)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{spec} returned a {type(network).__name__}, not a torch.nn.Module",
            "let the function return the network",
        )
    return network
