"""Networks made by a function of the user: ``file.py:factory`` or ``pkg.mod:factory``."""

from __future__ import annotations

from torch import nn

from lpss_cli.errors import InputError
from lpss_cli.utils.user_code import call_function


def build(spec: str, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    """Call the factory and check that it returns a network.

    The factory receives those of ``input_shape``, ``outputs`` and ``num_classes`` that its
    signature names, as keyword arguments.

    Raises:
        InputError: the file, module or function does not exist; the factory raised; it did not
            return an ``nn.Module``.
    """
    known = {"input_shape": input_shape, "outputs": outputs, "num_classes": outputs}
    network = call_function(spec, known)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"{spec} returned a {type(network).__name__}, not a torch.nn.Module",
            "let the function return the network",
        )
    return network
