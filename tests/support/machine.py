"""A machine on which platforms start processes: what they find there, and how they end."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from tests.support.manifests import ROOT
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TIMEOUT_S = 120
CONFIG = replace(QUICK, train=replace(QUICK.train, batch_cells=128, rounds=1, checkpoint_every_steps=2))
"""Batches of two blocks, so that two processes have the bits of one."""
OF_PLATFORMS = (
    "SLURM_",
    "AWS_BATCH_",
    "JOB_COMPLETION_",
    "MASTER_",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "NODE_RANK",
    "GROUP_RANK",
    "SCAMAC_JOB_",
)


def model_sha256(run: Path) -> str:
    return sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


class Site:
    """A machine on which platforms start things: a store, settings, a place for runs, programs on the PATH.

    Attributes
    ----------
    folder
        Where the store lies, under the name that the manifests have, and runs go.
    options
        To be added to a command, so that it is over soon.
    """

    def __init__(self, folder: Path, atlas: Path) -> None:
        self.folder = folder
        self.store = ingest(atlas, folder / "atlas.store.zarr", IngestConfig(n_genes=100))
        config = folder / "quick.yaml"
        config.write_text(yaml.safe_dump(plain(asdict(CONFIG))))
        self.options = ["--config", str(config), "--quiet"]
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.add_program("scamac-scale", f'exec {shlex.quote(sys.executable)} -m scamac_scale "$@"')
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OF_PLATFORMS)},
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
        }

    @cached_property
    def alone(self) -> str:
        """Hash of the weights after the same run of one process; made when it is asked for."""
        command = [sys.executable, "-m", "scamac_scale", "train", "--store", self.store, "--run", self.folder / "alone"]
        # a process of its own: other tests may have left this one with other threads
        subprocess.run([*command, *self.options], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, cwd=ROOT)
        return model_sha256(self.folder / "alone")

    def add_program(self, name: str, *lines: str) -> None:
        path = self.programs / name
        path.write_text("\n".join(["#!/usr/bin/env bash", *lines, ""]))
        path.chmod(0o755)


def free_port(least: int = 0, most: int = 0) -> int:
    for port in range(least, most + 1):
        try:
            with socket.socket() as probe:
                probe.bind(("", port))
                found: int = probe.getsockname()[1]
                return found
        except OSError:
            continue
    raise AssertionError("no port is free")


@contextmanager
def started(
    commands: Sequence[Sequence[str]], environs: Sequence[Mapping[str, str]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start commands side by side; none is left at the end."""
    processes = [
        subprocess.Popen(command, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for command, environ in zip(commands, environs, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes: Sequence[subprocess.Popen[str]]) -> tuple[list[int], str]:
    """Exit codes, and all that was written."""
    last_s = time.monotonic() + TIMEOUT_S
    texts = [process.communicate(timeout=max(1.0, last_s - time.monotonic()))[0] for process in processes]
    return [process.returncode for process in processes], "\n".join(texts)


def forget_peak() -> None:
    """Let the peak memory of this process begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory that this process held since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
