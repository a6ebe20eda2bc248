"""Starting real processes, forked off a server that has imported everything, and ranks that talk through gloo by way of a file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing import start_processes

from scamac_scale.ranks.world import World

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TIMEOUT_S = 120


def start_ranks(work: Callable[..., object], size: int, *arguments: object) -> None:
    """Run ``work(rank, *arguments)``, a function at the top of a module, in each of `size` processes, to the end of all."""
    multiprocessing.set_forkserver_preload(["tests.support.preloaded"])
    start_processes(work, arguments, nprocs=size, join=True, start_method="forkserver")


def run_ranks(work: Callable[..., Any], size: int, folder: Path, *arguments: object) -> list[Any]:
    """What ``work(world, *arguments)``, a function at the top of a module, returns on each of `size` processes."""
    folder.mkdir()
    start_ranks(_start, size, work, size, folder, arguments)
    return [pickle.loads((folder / f"{rank}.pickle").read_bytes()) for rank in range(size)]


def _start(rank: int, work: Callable[..., Any], size: int, folder: Path, arguments: tuple[object, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_S),
    )
    try:
        found = work(World(rank, size), *arguments)
        (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    finally:
        torch.distributed.destroy_process_group()
