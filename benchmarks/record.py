"""What every benchmark writes down: time, memory, where it ran, and a JSON file that survives a killed run."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

PACKAGES = ("numpy", "scipy", "scikit-learn", "scanpy", "anndata", "igraph", "pynndescent", "torch", "zarr")
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Cost:
    """What a piece of work took.

    Attributes
    ----------
    seconds, cpu_seconds
        Wall clock, and processor time of all threads of this process.
    peak_bytes
        Highest resident memory of the whole process meanwhile, interpreter and imported libraries included.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        """One after the other: times add up, the higher peak stays."""
        return Cost(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.peak_bytes, other.peak_bytes),
        )


@contextmanager
def measure() -> Iterator[Cost]:
    """Fill in a `Cost` when the block ends."""
    cost = Cost()
    _reset_peak()
    began, cpu_began = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        cost.cpu_seconds = time.process_time() - cpu_began
        cost.peak_bytes = _peak_bytes()


def _reset_peak() -> None:
    # Linux lets a process lower its own high-water mark; elsewhere the mark is that of the whole life of the process.
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def environment() -> dict[str, Any]:
    """Commit, versions and hardware of this run; no name or path of the machine."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "commit": _git("rev-parse", "HEAD"),
        "has_local_changes": bool(_git("status", "--porcelain", "--", "scamac_scale", "benchmarks/*.py", "configs")),
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions,
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "threads": os.environ.get("OMP_NUM_THREADS", "library default"),
        },
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Results:
    """A JSON file of runs, written after each one.

    Parameters
    ----------
    path
        The file; made when the first run is added.
    key
        Fields that name a run; a new run replaces the one with the same values.

    Notes
    -----
    Each change reads the file anew and replaces it whole, so a killed run leaves a complete file, and two benchmarks
    that write to it at different times keep each other's runs.
    """

    def __init__(self, path: Path, key: Sequence[str]) -> None:
        self.path = path
        self.key = tuple(key)

    def read(self) -> dict[str, Any]:
        """All that the file holds; empty lists where there is none."""
        empty: dict[str, Any] = {"environments": [], "runs": []}
        if not self.path.exists():
            return empty
        loaded: dict[str, Any] = json.loads(self.path.read_text())
        return {**empty, **loaded}

    def done(self) -> set[tuple[Any, ...]]:
        """Keys of the runs that ended well."""
        return {self.key_of(run) for run in self.read()["runs"] if "error" not in run}

    def add(self, run: dict[str, Any], where: dict[str, Any]) -> None:
        """Add one run, made in the environment `where`."""
        held = self.read()
        if where not in held["environments"]:
            held["environments"].append(where)
        run = {**run, "environment": held["environments"].index(where)}
        held["runs"] = [old for old in held["runs"] if self.key_of(old) != self.key_of(run)] + [run]
        self._write(held)

    def update(self, **sections: object) -> None:
        """Replace whole sections."""
        self._write({**self.read(), **sections})

    def key_of(self, run: dict[str, Any]) -> tuple[Any, ...]:
        """What names a run."""
        return tuple(run[name] for name in self.key)

    def _write(self, held: dict[str, Any]) -> None:
        # One run a line: a file of hundreds of runs stays readable, and so does its diff.
        runs = sorted(held["runs"], key=lambda run: tuple(str(part) for part in self.key_of(run)))
        lines = ",\n".join("  " + json.dumps(run) for run in runs)
        body = json.dumps({**held, "runs": []}, indent=1)
        body = body.replace('"runs": []', f'"runs": [\n{lines}\n ]', 1) if runs else body
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(self.path.name + ".new")
        beside.write_text(body + "\n")
        os.replace(beside, self.path)
