"""How this process was started: alone, or by ``torchrun`` as one of several. Without PyTorch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lpss_cli.errors import InputError

# Variables of PyTorch's ``env://``. Without any of them, this process is alone.
_NUMBERS = ("RANK", "WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """The place of a process among the processes of its run.

    Attributes:
        rank: rank of the process, from 0.
        size: number of processes.
        local_rank, local_size: the same among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def place() -> Place:
    """Return the place of this process, from the environment that ``torchrun`` sets."""
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
    """Refuse to run in several processes what only one process does.

    Args:
        what: the command, for the error.

    Raises:
        InputError: there are several processes.
    """
    size = place().size
    if size > 1:
        raise InputError(
            f"{what} runs in one process, and this is one of {size}",
            "start it without torchrun; only train and sparsify run in several processes",
        )


def words(program: str) -> list[str]:
    """Return the first words of a command line that starts this run again.

    Args:
        program: name of the command, for a process that is alone.
    """
    here = place()
    if here.size == 1:
        return [program]
    nodes = here.size // max(1, here.local_size)
    machines = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *machines, "--nproc-per-node", str(here.local_size), "-m", "lpss_cli"]
