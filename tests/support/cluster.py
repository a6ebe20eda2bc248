"""A dask scheduler and its workers from the command line, on loopback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scamac_scale.durable.faults import FAULT

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
START_S = 60.0


@dataclass
class Cluster:
    """A scheduler with workers of one thread, each a process of its own that nobody starts again."""

    folder: Path
    address: str = ""
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def start(self, name: str, *arguments: str, fault: str = "") -> subprocess.Popen[bytes]:
        log = self._stack.enter_context((self.folder / f"{len(self.workers)}-{name}.log").open("wb"))
        env = {**os.environ, "PYTHONPATH": str(ROOT), FAULT: fault}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", f"distributed.cli.dask_{name}", *arguments],
            *(-1, None, subprocess.DEVNULL, log, log),
            env=env,
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.send_signal, signal.SIGKILL)
        return process

    def add_worker(self, fault: str = "") -> None:
        """Start one more worker, which a fault may kill."""
        options = (
            "--nthreads",
            "1",
            "--no-nanny",
            "--dashboard-address",
            "127.0.0.1:0",
            "--local-directory",
            str(self.folder),
        )
        self.workers.append(self.start("worker", self.address, *options, fault=fault))

    def close(self) -> None:
        self._stack.close()


@contextmanager
def running(folder: Path, *faults: str) -> Iterator[Cluster]:
    """Start a scheduler, and a worker for each entry of `faults`, which may be empty."""
    cluster = Cluster(folder)
    try:
        about = folder / "scheduler.json"
        options = (
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--dashboard-address",
            "127.0.0.1:0",
            "--scheduler-file",
            str(about),
        )
        cluster.start("scheduler", *options)
        until_s = time.monotonic() + START_S
        while not cluster.address and time.monotonic() < until_s:
            time.sleep(0.05)
            if about.exists():
                cluster.address = json.loads(about.read_text() or "{}").get("address", "")
        assert cluster.address, "the scheduler did not start"
        for fault in faults:
            cluster.add_worker(fault)
        yield cluster
    finally:
        cluster.close()
