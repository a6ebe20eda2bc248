"""Real processes of the command line by the hundred: each is forked off one that has imported everything, and may be killed.

A fresh process spends seconds on imports before it does anything that could go wrong; here it takes a fifth of a second. What runs in
it, and what kills it, is the real thing. The nursery itself starts no thread and reads no cell.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

TIMEOUT_S = 120
IMPORTED = (
    *(
        f"scamac_scale.{name}"
        for name in (
            "api",
            "fitted",
            "infer.predict",
            "ingestion.pipeline",
            "inspection",
            "train.run.folder",
            "train.fit",
        )
    ),
    *(f"scamac_scale.cli.{name}" for name in ("main", "commands", "parsing", "show")),
    *(f"sklearn.{name}" for name in ("cluster", "neighbors", "utils")),
    *(
        "attrs",
        "docstring_parser",
        "igraph",
        "numba.typed",
        "safetensors.torch",
        "scipy.cluster.hierarchy",
        "scipy.sparse.linalg",
        "tensorboard.summary.writer.record_writer",
        "tensorboard.compat.proto.event_pb2",
        "torch.distributed",
        "torch.fx.experimental.symbolic_shapes",
        "zarr",
        "anndata",
    ),
)
"""What a job need not import."""


class Ended(NamedTuple):
    """How the ranks of a job ended: exit codes, negative for signals, and what all of them wrote to standard error."""

    codes: list[int]
    errors: str


class Nursery:
    """A context manager; see the module.

    Parameters
    ----------
    folder
        For standard error of the jobs.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_jobs = 0

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the nursery has died"
        return json.loads(line)

    @property
    def pid(self) -> int:
        """Process that all jobs are below."""
        return self._process.pid

    def run(
        self,
        *argv: str,
        ranks: int = 1,
        fault: str = "",
        kill_after_s: float | None = None,
        constants: dict[str, int] | None = None,
        limit_bytes: int | None = None,
        rank_1: tuple[str, ...] = (),
        environ: dict[str, str] | None = None,
        rank_1_environ: dict[str, str] | None = None,
    ) -> Ended:
        """Run one command in some ranks to its end.

        Parameters
        ----------
        *argv
            Of ``scamac-scale``.
        ranks
            Processes, which find one another on a free port.
        fault
            ``SCAMAC_FAULT``.
        kill_after_s
            When all ranks get SIGKILL, if they live so long.
        constants
            ``module.NAME`` of the package to a small value in place of the one for real sizes.
        limit_bytes
            Largest file that may be written.
        rank_1
            More arguments for that rank alone.
        environ, rank_1_environ
            More variables of the environment, of all and of that rank alone.

        Returns
        -------
        Ended
            One exit code a rank.
        """
        self._n_jobs += 1
        errors = self._folder / f"job-{self._n_jobs}.txt"
        job = {
            "argv": list(argv),
            "ranks": ranks,
            "fault": fault,
            "kill_after_s": kill_after_s,
            "constants": constants or {},
            "limit_bytes": limit_bytes,
            "rank_1": list(rank_1),
            "environ": [environ or {}, (environ or {}) | (rank_1_environ or {})],
            "errors": str(errors),
        }
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return Ended(self._read(), errors.read_text())


def import_all() -> None:
    """Import and look up what jobs need, before the first is forked off; starts no thread."""
    for module in IMPORTED:
        importlib.import_module(module)
    from numba.core.registry import cpu_target

    for context in (cpu_target.typing_context, cpu_target.target_context):
        context.refresh()  # half a second, at the first kernel


def _serve() -> None:
    import_all()
    sys.stdout.write("null\n")
    sys.stdout.flush()
    for line in sys.stdin:
        job = json.loads(line)
        port = _free_port()
        pids = [_fork(job, rank, port) for rank in range(job["ranks"])]
        sys.stdout.write(json.dumps(_wait(pids, job["kill_after_s"])) + "\n")
        sys.stdout.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(pids: list[int], kill_after_s: float | None) -> list[int]:
    codes: dict[int, int] = {}
    start_s, is_killed = time.monotonic(), False
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
        spent_s = time.monotonic() - start_s
        if not is_killed and spent_s > (TIMEOUT_S if kill_after_s is None else kill_after_s):
            is_killed = True
            for pid in pids:
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return [codes[pid] for pid in pids]


def _fork(job: dict[str, Any], rank: int, port: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = _be_rank(job, rank, port)
    finally:
        sys.stderr.flush()
        os._exit(code)


def _be_rank(job: dict[str, Any], rank: int, port: int) -> int:
    from scamac_scale.cli.main import main

    null = os.open(os.devnull, os.O_RDWR)
    errors = os.open(job["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for target, source in ((0, null), (1, null), (2, errors)):
        os.dup2(source, target)
    os.fsync = lambda handle: None  # a kill loses nothing that the system was given; a disk need not be waited for
    os.environ.update(job["environ"][rank == 1])
    if job["fault"]:
        os.environ["SCAMAC_FAULT"] = job["fault"]
    if job["ranks"] > 1:
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": job["ranks"],
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in place.items()})
    if job["limit_bytes"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit_bytes"], job["limit_bytes"]))
    for name, value in job["constants"].items():
        module, _, attribute = name.rpartition(".")
        setattr(importlib.import_module(f"scamac_scale.{module}"), attribute, value)
    return main([*job["argv"], *(job["rank_1"] if rank == 1 else ())])


if __name__ == "__main__":
    _serve()
