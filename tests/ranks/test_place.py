"""Which process this is, by the variables of each launcher."""

from __future__ import annotations

import pytest

from scamac_scale.errors import ConfigError
from scamac_scale.ranks.place import SLURM_PORTS, Place, find_place, first_host
from scamac_scale.ranks.world import World

TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}
BATCH_SCRIPT = {
    "SLURM_JOB_ID": "4215678",
    "SLURM_JOB_NODELIST": "gpu[03-04]",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
SRUN = {
    **BATCH_SCRIPT,
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_STEP_NUM_TASKS": "4",
}
ALONE = Place(World(), 0, "127.0.0.1", 0)


def test_nothing_in_the_environment_is_one_process_alone() -> None:
    assert find_place({}) == ALONE


def test_torchrun_says_all() -> None:
    assert find_place(TORCHRUN) == Place(World(3, 4), 1, "node0", 29500)


def test_one_process_of_torchrun_needs_no_address() -> None:
    assert find_place({"RANK": "0", "WORLD_SIZE": "1"}) == ALONE


def test_a_task_of_srun_meets_the_others_on_the_first_machine() -> None:
    assert find_place(SRUN) == Place(World(3, 4), 1, "gpu03", SLURM_PORTS + 5678)


def test_an_address_that_is_given_to_srun_goes_first() -> None:
    assert find_place({**SRUN, "MASTER_ADDR": "ib-gpu03", "MASTER_PORT": "4000"})[2:] == ("ib-gpu03", 4000)


@pytest.mark.parametrize(
    "environ",
    [{**SRUN, "SLURM_STEP_NUM_NODES": "1"}, {**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}],
    ids=["srun", "torchrun"],
)
def test_ranks_of_one_machine_meet_on_loopback(environ: dict[str, str]) -> None:
    assert find_place(environ).address == "127.0.0.1"
    assert find_place(environ).is_one_machine


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        *((name, True) for name in ("127.0.0.1", "127.1.2.3", "localhost", "::1", "[::1]")),
        *((name, False) for name in ("0.0.0.0", "node0", "10.0.0.7", "localhost.example.org", "", "::")),
    ],
)
def test_only_loopback_is_one_machine(address: str, expected: bool) -> None:
    assert find_place({**TORCHRUN, "MASTER_ADDR": address}).is_one_machine is expected


def test_processes_that_a_launcher_started_inside_a_job_are_those_of_the_launcher() -> None:
    assert find_place({**SRUN, **TORCHRUN}).world == World(3, 4)
    assert find_place({**SRUN, **TORCHRUN, "RANK": "1", "WORLD_SIZE": "2"}).world == World(1, 2)


def test_a_batch_script_is_no_task() -> None:
    assert find_place(BATCH_SCRIPT) == ALONE


def test_an_interactive_shell_is_no_task() -> None:
    assert find_place({**BATCH_SCRIPT, "SLURM_STEP_NODELIST": "gpu03", "SLURM_STEP_NUM_TASKS": "1"}) == ALONE


@pytest.mark.parametrize(
    ("environ", "missing"),
    [(TORCHRUN, "MASTER_ADDR"), (TORCHRUN, "MASTER_PORT"), (SRUN, "SLURM_LOCALID"), (SRUN, "SLURM_JOB_ID")],
)
def test_a_missing_variable_is_named(environ: dict[str, str], missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        find_place({name: value for name, value in environ.items() if name != missing})


@pytest.mark.parametrize(("environ", "name"), [(TORCHRUN, "RANK"), (TORCHRUN, "MASTER_PORT"), (SRUN, "SLURM_PROCID")])
def test_a_variable_that_is_no_number_is_refused(environ: dict[str, str], name: str) -> None:
    with pytest.raises(ConfigError, match="'three'"):
        find_place({**environ, name: "three"})


def test_a_rank_outside_the_world_is_refused() -> None:
    with pytest.raises(ConfigError, match="rank 4 does not exist"):
        find_place({**TORCHRUN, "RANK": "4"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("login1,gpu[1-3]", "login1"),
        ("gpu[03-05,09],login1", "gpu03"),
        ("gpu[7,9]", "gpu7"),
        ("gpu[12]", "gpu12"),
        ("rack[2-3]-ib,x", "rack2-ib"),
        ("r[1-2]n[05-08],r3n1", "r1n05"),
        ("n01.cluster.example.org,n02.cluster.example.org", "n01.cluster.example.org"),
    ],
)
def test_the_first_host_of_a_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
