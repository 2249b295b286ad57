"""Functions in several processes that are connected as ``torchrun`` connects them."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from torch.distributed import TCPStore

#: Seconds that a team may take on a busy machine.
LONGEST = 180.0
# A server that has done the slow imports; its processes are forked from it.
_CONTEXT = multiprocessing.get_context("forkserver" if hasattr(os, "fork") else "spawn")
if hasattr(os, "fork"):
    # torch._dynamo is what the first optimizer imports.
    names = [
        "lpss_cli.jobs.sparse_training",
        "lpss_cli.cli.progress",
        "faults",
        "helpers",
        "torch._dynamo",
    ]
    _CONTEXT.set_forkserver_preload(names)


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    address["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the launcher keeps the store
    return {**{name: str(value) for name, value in names.items()}, **address}


def together(function: Callable[..., Any], *args: Any, size: int = 2) -> list[Any]:
    """Call a module's function in every process; return what it gave, or its exception, by rank."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = []
    for rank in range(size):
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(
            target=_member,
            args=(function, args, environment(rank, size, store.port), os.getcwd(), theirs),
        )
        process.start()
        theirs.close()
        members.append((process, ours))
    try:
        return [_result(ours) for _, ours in members]
    finally:
        for process, _ in members:
            process.kill()
            process.join()


def _result(pipe: Connection) -> Any:
    assert pipe.poll(LONGEST), "the processes take too long"
    try:
        # Plainly pickled: tensors would travel through memory of a process that has ended.
        value = pickle.loads(pipe.recv_bytes())
    except EOFError:
        return EOFError("it ended without a word")
    if isinstance(value, str) and value.startswith("Traceback"):
        raise AssertionError(value)
    return value


def _member(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    variables: dict[str, str],
    folder: str,
    pipe: Connection,
) -> None:
    import torch

    from lpss_cli.errors import LpssError

    torch.set_num_threads(1)
    os.environ.update(variables)
    os.chdir(folder)
    try:
        pipe.send_bytes(pickle.dumps(function(*args)))
    except LpssError as error:
        pipe.send_bytes(pickle.dumps(error))
    except BaseException:
        pipe.send_bytes(pickle.dumps(traceback.format_exc()))
    pipe.close()
