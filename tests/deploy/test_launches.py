"""The commands of deploy/, started with the variables of their platforms: two machines with one process each, on this one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from scamac_scale.ranks.place import SLURM_PORTS
from scamac_scale.ranks.secret import new_secret
from tests.support import srun
from tests.support.machine import TIMEOUT_S, Site, ended, free_port, model_sha256, started
from tests.support.manifests import (
    SBATCH,
    Launch,
    batch_launch,
    batch_secrets,
    entrypoint,
    kubernetes_launch,
    sbatch_options,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.ddp
TWO = ["--devices", "1", "--num-nodes", "2"]
"""What these machines have, in place of what the manifest asks for; of two values the last one counts."""
LONGER = ["--train.pretrain.epochs", "200"]
"""Some seconds more, in which a signal can come."""


def on_both(site: Site, launch: Launch, run: Path) -> list[list[str]]:
    """The command of a container, with its entrypoint, on each of two machines; its run folder is renamed to `run`."""
    arguments = launch.arguments_in(site.folder)
    arguments[arguments.index("--run") + 1] = str(run)
    command = [*entrypoint(), *arguments, *TWO, *site.options]
    command[0] = str(site.programs / command[0])
    return [command, command]


def kubernetes_pods(site: Site, port: int) -> list[dict[str, str]]:
    """Variables of two pods: those of the manifest, of which the name of the first pod is an address here."""
    shared = {**site.environ, **kubernetes_launch().environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    secret = site.folder / "secret"
    secret.write_text(new_secret())
    secret.chmod(0o600)
    shared["SCAMAC_JOB_SECRET_FILE"] = str(secret)
    return [{**shared, "OMP_NUM_THREADS": "1", "JOB_COMPLETION_INDEX": str(index)} for index in (0, 1)]


def batch_nodes(site: Site, port: int) -> list[dict[str, str]]:
    """Variables of two nodes; the main one is not told its address."""
    shared = {**site.environ, **batch_launch().environ, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared |= {"AWS_BATCH_JOB_NUM_NODES": "2", "AWS_BATCH_JOB_MAIN_NODE_INDEX": "0", "AWS_BATCH_JOB_ID": "1#0"}
    shared |= {name: new_secret() for name in batch_secrets()}
    child = {"AWS_BATCH_JOB_NODE_INDEX": "1", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "127.0.0.1"}
    return [{**shared, "AWS_BATCH_JOB_NODE_INDEX": "0"}, {**shared, **child}]


def wait_for_checkpoint(run: Path) -> None:
    """Until gradient steps are taken and saved."""
    last_s = time.monotonic() + TIMEOUT_S
    while not list(run.glob("checkpoints/*-step-[1-9]*")):
        assert time.monotonic() < last_s
        time.sleep(0.02)


@pytest.mark.slow
def test_two_pods_of_kubernetes_train_the_model_of_one_process(site: Site, tmp_path: Path) -> None:
    with started(on_both(site, kubernetes_launch(), tmp_path / "run"), kubernetes_pods(site, free_port())) as pods:
        codes, text = ended(pods)
    assert codes == [0, 0], text
    assert model_sha256(tmp_path / "run") == site.alone


@pytest.mark.slow
def test_all_pods_end_with_75_when_one_loses_its_process_and_go_on_when_started_again(
    site: Site, tmp_path: Path
) -> None:
    commands, port = on_both(site, kubernetes_launch(), tmp_path / "run"), free_port()
    fault = {"SCAMAC_FAULT": "train.step@1:9:kill"}
    with started(commands, [{**pod, **fault} for pod in kubernetes_pods(site, port)]) as pods:
        codes, text = ended(pods)
    assert "fault: train.step@1:9:kill" in text
    assert codes == [75, 75], text
    assert "rank 1 was killed by SIGKILL" in text
    with started(commands, kubernetes_pods(site, port)) as pods:
        codes, text = ended(pods)
    assert codes == [0, 0], text
    assert model_sha256(tmp_path / "run") == site.alone


@pytest.mark.slow
def test_a_pod_that_is_drained_takes_the_others_along_and_all_go_on_when_started_again(
    site: Site, tmp_path: Path
) -> None:
    commands = [[*command, *LONGER] for command in on_both(site, kubernetes_launch(), tmp_path / "run")]
    port = free_port()
    with started(commands, kubernetes_pods(site, port)) as pods:
        wait_for_checkpoint(tmp_path / "run")
        pods[1].terminate()
        codes, text = ended(pods)
    assert codes == [75, 75], text
    assert "stopped by SIGTERM; a checkpoint is saved" in text
    with started(commands, kubernetes_pods(site, port)) as pods:
        codes, text = ended(pods)
    assert codes == [0, 0], text


@pytest.mark.slow
def test_two_nodes_of_aws_batch_train_the_model_of_one_process(site: Site, tmp_path: Path) -> None:
    with started(on_both(site, batch_launch(), tmp_path / "run"), batch_nodes(site, free_port())) as nodes:
        codes, text = ended(nodes)
    assert codes == [0, 0], text
    assert model_sha256(tmp_path / "run") == site.alone


@pytest.mark.slow
def test_two_agents_of_torchrun_train_the_model_of_one_process(site: Site, tmp_path: Path) -> None:
    port = str(free_port())
    agents = [
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank", node),
            *("--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port, "-m", "--", "scamac_scale"),
            *("train", "--store", str(site.store), "--run", str(tmp_path / "run"), *site.options),
        ]
        for node in ("0", "1")
    ]
    with started(agents, [site.environ, site.environ]) as processes:
        codes, text = ended(processes)
    assert codes == [0, 0], text
    assert model_sha256(tmp_path / "run") == site.alone


# ---------------------------------------------------------------------- Slurm


class Job:
    """The batch script in a job of two machines with one task each."""

    def __init__(self, site: Site, folder: Path, **more: str) -> None:
        self._site, self._folder, self.run = site, folder, folder / "run"
        self._record = folder / "srun.json"
        self.requeued = folder / "requeued"
        site.add_program("srun", f'exec {sys.executable} {srun.__file__} "$@"')
        site.add_program("scontrol", f'echo "$@" >> {self.requeued}')
        port = free_port(SLURM_PORTS, SLURM_PORTS + 9_999)
        given = {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1"}
        job = {"SLURM_JOB_ID": str(421_0000 + port - SLURM_PORTS), "SLURM_JOB_NODELIST": "127.0.0.[1-2]"}
        script = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        self.id = job["SLURM_JOB_ID"]
        self.environ = {**site.environ, **given, **job, **script, "SRUN_RECORD": str(self._record), **more}

    @property
    def command(self) -> list[str]:
        return ["bash", str(SBATCH), str(self._site.store), str(self.run), *self._site.options]

    def wait_for_record(self) -> dict[str, list[str]]:
        """What srun was given, and the tasks that it started, as soon as that is known."""
        last_s = time.monotonic() + TIMEOUT_S
        while not self._record.exists():
            assert time.monotonic() < last_s
            time.sleep(0.02)
        found: dict[str, list[str]] = json.loads(self._record.read_text())
        return found


@pytest.mark.slow
def test_the_sbatch_script_trains_the_model_of_one_process(site: Site, tmp_path: Path) -> None:
    job = Job(site, tmp_path)
    with started([job.command], [job.environ]) as scripts:
        codes, text = ended(scripts)
    assert codes == [0], text
    assert model_sha256(job.run) == site.alone
    assert not job.requeued.exists()
    assert "--cpus-per-task=1" in job.wait_for_record()["options"]
    assert "--cpus-per-task" in sbatch_options()


@pytest.mark.slow
def test_before_the_time_limit_all_tasks_save_and_the_job_goes_on_later(site: Site, tmp_path: Path) -> None:
    job = Job(site, tmp_path)
    command = [*job.command, *LONGER]
    with started([command], [job.environ]) as scripts:
        pids = [int(pid) for pid in job.wait_for_record()["pids"]]
        wait_for_checkpoint(job.run)
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        codes, text = ended(scripts)
    assert codes == [75], text
    assert "stopped by SIGUSR1; a checkpoint is saved" in text
    assert job.requeued.read_text() == f"requeue {job.id}\n"
    again = Job(site, tmp_path, SLURM_RESTART_COUNT="1")
    with started([command], [again.environ]) as scripts:
        codes, text = ended(scripts)
    assert codes == [0], text
    assert (job.run / "model").is_dir()


@pytest.mark.parametrize(
    ("code", "restarts", "is_requeued"), [(75, 3, True), (137, 0, True), (75, 50, False), (2, 0, False), (0, 0, False)]
)
def test_the_exit_code_decides_about_the_queue(
    site: Site, tmp_path: Path, code: int, restarts: int, is_requeued: bool
) -> None:
    job = Job(site, tmp_path, SLURM_RESTART_COUNT=str(restarts))
    site.add_program("srun", f"exit {code}")
    done = subprocess.run(job.command, env=job.environ, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert job.requeued.exists() == is_requeued


def test_a_cancelled_job_does_not_come_back(site: Site, tmp_path: Path) -> None:
    job = Job(site, tmp_path)
    site.add_program("srun", 'kill -TERM "$PPID"', "exit 75")
    done = subprocess.run(job.command, env=job.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    assert not job.requeued.exists()


def test_the_script_says_what_is_missing(site: Site, tmp_path: Path) -> None:
    job = Job(site, tmp_path)
    done = subprocess.run(job.command[:3], env=job.environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "the second argument is the run folder" in done.stderr


def test_the_script_takes_the_program_of_its_environment(site: Site, tmp_path: Path) -> None:
    job = Job(site, tmp_path, SCAMAC_ENV=str(tmp_path / "venv"))
    site.add_program("srun", "command -v scamac-scale")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    program = tmp_path / "venv" / "bin" / "scamac-scale"
    program.touch(mode=0o755)
    done = subprocess.run(job.command, env=job.environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(program)
