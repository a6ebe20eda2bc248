"""Ranks killed, hung and signalled under the real launchers: the job ends in time, says who, and goes on by itself where it may."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.fingerprint import fingerprint
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.ddp]

OURS = ["-m", "scamac_scale", "train", "--devices", "2"]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
PROGRAM = ["-m", "--", "scamac_scale", "train"]


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("launchers")
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(QUICK))))
    return ingest(tiny_atlas, folder / "store.zarr", IngestConfig(n_genes=100))


def start(command: list[str], store: Path, run: Path, *more: str, **environ: str) -> subprocess.Popen[str]:
    settings = ["--config", str(store.parent / "config.yaml"), "--store", str(store), "--run", str(run), "--quiet"]
    return subprocess.Popen(
        [sys.executable, *command, *settings, *more],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        stderr=subprocess.PIPE,
        text=True,
    )


def ranks_of(run: Path) -> list[int]:
    """Processes of a run that still live."""
    done = subprocess.run(["pgrep", "-f", f"--run {run} "], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_killed_rank_is_started_again_and_leaves_no_trace(store: Path, tmp_path: Path, launcher: str) -> None:
    run, log = tmp_path / "run", tmp_path / "faults"
    faults = {
        "SCAMAC_FAULT": "train.step@1:7:kill,train.step@0:9:kill",
        "SCAMAC_FAULT_LOG": str(log),
    }
    often = ("--train.checkpoint_every_steps", "3")
    if launcher == "ours":
        process = start([*OURS, "--max-restarts", "2"], store, run, *often, **faults)
    else:
        process = start([*TORCHRUN, "--max-restarts", "2", *PROGRAM], store, run, *often, "--resume", **faults)
    errors = process.communicate(timeout=300)[1]
    assert process.returncode == 0, errors
    assert sorted(log.read_text().splitlines()) == sorted(faults["SCAMAC_FAULT"].split(","))
    whole = start(OURS, store, tmp_path / "whole")
    errors = whole.communicate(timeout=120)[1]
    assert whole.returncode == 0, errors
    assert fingerprint(run, store) == fingerprint(tmp_path / "whole", store)


@pytest.mark.parametrize("launcher", ["ours", "torchrun"])
def test_a_signal_to_the_launcher_stops_all_with_a_checkpoint(store: Path, tmp_path: Path, launcher: str) -> None:
    run = tmp_path / "run"
    command = OURS if launcher == "ours" else [*TORCHRUN, *PROGRAM]
    process = start(command, store, run, "--train.rounds", "3000")
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == (75 if launcher == "ours" else 1), errors  # torchrun always says 1
    assert "stopped by SIGTERM; a checkpoint is saved" in errors
    assert len(list(run.glob("checkpoints/*.pt"))) == 2
    assert ranks_of(run) == []


@pytest.mark.parametrize("hung", [0, 1])
def test_a_hung_rank_ends_the_job_and_is_named(store: Path, tmp_path: Path, hung: int) -> None:
    fault = f"train.step@{hung}:5:stop"  # rank 0 keeps the board by which ranks find out who is alive
    process = start(OURS, store, tmp_path / "run", "--train.timeout_s", "5", SCAMAC_FAULT=fault)
    errors = process.communicate(timeout=120)[1]
    assert f"fault: {fault}" in errors
    assert process.returncode == 75
    assert f"rank {1 - hung}: rank {hung}" in errors
    assert f"rank {hung}" in errors.splitlines()[-1]
    assert ranks_of(tmp_path / "run") == []


@pytest.mark.parametrize(("node", "number"), [(0, signal.SIGKILL), (1, signal.SIGTERM)], ids=["killed", "told"])
def test_ranks_that_wait_for_another_machine_can_be_stopped(
    store: Path, tmp_path: Path, node: int, number: signal.Signals
) -> None:
    place = {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29_500 + os.getpid() % 1000)}
    run = tmp_path / "run"
    process = start([*OURS[:3], "--devices", "1", "--num-nodes", "2"], store, run, **place)
    deadline = time.monotonic() + 60
    while (
        len(ranks_of(run)) < 2 and time.monotonic() < deadline
    ):  # the launcher listens to signals before it starts the rank
        time.sleep(0.1)
    time.sleep(5)
    process.send_signal(number)
    errors = process.communicate(timeout=20)[1]  # once the rank, too, has closed it
    assert process.returncode == (75 if number == signal.SIGTERM else -number)
    assert number == signal.SIGTERM or "the launcher that started this rank has ended" in errors
    assert ranks_of(run) == []
