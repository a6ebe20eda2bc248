"""Which process this is, from what torchrun, Slurm and others say in the environment."""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.errors import ConfigError, ScamacError
from scamac_scale.ranks.world import World

if TYPE_CHECKING:
    from collections.abc import Mapping

LOOPBACK = "127.0.0.1"
SLURM_PORTS = 15000
"""Least port for the ranks of a Slurm job; the end of its number is added, so that all ranks know it."""


class Place(NamedTuple):
    """One process among those of a job.

    Attributes
    ----------
    world
        Its rank, and how many there are.
    local_rank
        Its number on this machine, and so that of its GPU.
    address, port
        Where rank 0 is to be met: on loopback, where all ranks are on this machine.
    """

    world: World
    local_rank: int
    address: str
    port: int

    @property
    def is_one_machine(self) -> bool:
        """Whether all ranks are on this machine: they then listen on loopback only."""
        return is_loopback(self.address)


def find_place(environ: Mapping[str, str] | None = None) -> Place:
    """Tell which process this is.

    Parameters
    ----------
    environ
        Variables of the environment; None takes those of this process.

    Returns
    -------
    Place
        From ``RANK`` and ``WORLD_SIZE`` (torchrun, our own launcher, Kubeflow), else from those of ``srun``; else one process alone.

    Raises
    ------
    ConfigError
        If variables are missing or are no numbers.
    """
    found = os.environ if environ is None else environ
    try:
        if "RANK" in found and "WORLD_SIZE" in found:
            world = World(int(found["RANK"]), int(found["WORLD_SIZE"]))
            local = int(found.get("LOCAL_RANK", "0"))
            if world.size == 1:
                return Place(world, local, LOOPBACK, 0)
            address = found["MASTER_ADDR"]
            is_one_machine = found.get("LOCAL_WORLD_SIZE") == found["WORLD_SIZE"]
            return Place(world, local, LOOPBACK if is_one_machine else address, int(found["MASTER_PORT"]))
        if _count_slurm_tasks(found) > 1:
            return _slurm_place(found)
    except KeyError as error:
        raise ConfigError(
            f"the environment names a rank but no {error.args[0]}; start with torchrun or srun."
        ) from error
    except ValueError as error:
        raise ConfigError(f"a variable of the launcher is no number ({error}); start with torchrun or srun.") from error
    return Place(World(), 0, LOOPBACK, 0)


def is_first() -> bool:
    """Tell whether this process speaks for the job; so does one that cannot tell its place."""
    try:
        return find_place().world.rank == 0
    except ScamacError:
        return True


def _count_slurm_tasks(found: Mapping[str, str]) -> int:
    """Count the processes that ``srun`` started; 1 in a batch script and an interactive shell, which know those of the whole job."""
    if "SLURM_STEP_NODELIST" not in found:
        return 1
    return int(found.get("SLURM_STEP_NUM_TASKS") or found.get("SLURM_NTASKS", "1"))


def _slurm_place(found: Mapping[str, str]) -> Place:
    world = World(int(found["SLURM_PROCID"]), _count_slurm_tasks(found))
    first = LOOPBACK if found.get("SLURM_STEP_NUM_NODES") == "1" else first_host(found["SLURM_STEP_NODELIST"])
    address = found.get("MASTER_ADDR") or first
    port = int(found.get("MASTER_PORT") or SLURM_PORTS + int(found["SLURM_JOB_ID"]) % 10_000)
    return Place(world, int(found["SLURM_LOCALID"]), address, port)


def is_loopback(address: str) -> bool:
    """Tell whether an address is that of the machine itself for whoever has it; names but ``localhost`` are not looked up."""
    try:
        return address == "localhost" or ip_address(address.strip("[]")).is_loopback
    except ValueError:
        return False


def first_host(nodes: str) -> str:
    """Name the first host of a list as Slurm writes it, such as ``gpu[03-05,09],login1``."""
    first = re.match(r"(\[[^\]]*\]|[^,\[])*", nodes)
    assert first is not None  # the pattern matches everything
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])
