"""How this process was started: alone, or as one of several by ``torchrun``. Imports no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lpss_cli.errors import InputError

# What PyTorch's ``env://`` needs; all of them, or this process is alone.
_NUMBERS = ("RANK", "WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """The place of a process among those of its run.

    Attributes:
        rank: its number, from 0.
        size: how many there are.
        local_rank, local_size: the same among those of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """Read the place of this process from the environment, as ``torchrun`` sets it."""
    environment = os.environ
    numbers = [environment.get(name, "") for name in _NUMBERS]
    if not all(n.isdecimal() for n in numbers) or not all(environment.get(n) for n in _ADDRESS):
        return Place()
    rank, size = map(int, numbers)
    if size < 2 or rank >= size:
        return Place()
    local_rank = int(environment.get("LOCAL_RANK", rank))
    return Place(rank, size, local_rank, int(environment.get("LOCAL_WORLD_SIZE", size)))


def refuse(what: str) -> None:
    """Refuse to do in several processes what is done in one.

    Raises:
        InputError: there are several.
    """
    size = place().size
    if size > 1:
        raise InputError(
            f"{what} is done by one process, and this is one of {size}",
            "start it without torchrun; train and sparsify share their work",
        )


def words(program: str) -> list[str]:
    """Return the first words of a command line that starts this run again.

    Args:
        program: the command's own name, for a process alone.
    """
    found = place()
    if found.size == 1:
        return [program]
    nodes = found.size // max(1, found.local_size)
    machines = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *machines, "--nproc-per-node", str(found.local_size), "-m", "lpss_cli"]
