"""What a run leaves beside the model: config.yaml, metrics.csv, TensorBoard files, run.json."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.errors import OutputError

if TYPE_CHECKING:
    from lightning.fabric.loggers.logger import Logger

    from scamac_scale.config import ScamacConfig

PACKAGES = ("scamac-scale", "torch", "lightning", "anndata", "zarr", "numpy", "scipy", "scikit-learn", "igraph")
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """Commit of the checkout that the package runs from, or None outside of one."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, cores and accelerators of this machine."""
    import torch

    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerators": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class RunFolder:
    """The folder of one run.

    Parameters
    ----------
    path
        New or empty folder.

    Attributes
    ----------
    path
        The folder.
    loggers
        For Fabric: metrics.csv and TensorBoard files in the folder.

    Raises
    ------
    OutputError
        If the folder holds something or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._start_s = time.time()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise OutputError(f"the run folder {self.path} is not empty; name a new one, or remove it first.")
            probe = self.path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"the run folder {self.path} cannot be written: {error.strerror}.") from error
        self.loggers = self._make_loggers()

    @property
    def model_path(self) -> Path:
        """Where the model is exported."""
        return self.path / "model"

    def _make_loggers(self) -> list[Logger]:
        from lightning.fabric.loggers.csv_logs import CSVLogger
        from lightning.fabric.loggers.tensorboard import TensorBoardLogger

        table = CSVLogger(root_dir=self.path.parent, name=self.path.name, version="", flush_logs_every_n_steps=50)
        _ = table.experiment  # opens metrics.csv now: it warns of a folder that is not empty
        return [table, TensorBoardLogger(root_dir=self.path, name="tensorboard", version="")]

    def close(self) -> None:
        """Flush the metrics."""
        for logger in self.loggers:
            logger.finalize("success")

    def write_config(self, config: ScamacConfig) -> None:
        """Write the resolved settings."""
        import yaml

        (self.path / CONFIG_FILE).write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))

    def write_report(self, report: dict[str, Any], config: ScamacConfig) -> None:
        """Write run.json: versions, commit, hardware, seed, times, peak memory and what the fit reports."""
        content = {
            "finished": True,
            "seed": config.seed,
            "seconds": round(time.time() - self._start_s, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
            **report,
        }
        partial = self.path / (RUN_FILE + ".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(self.path / RUN_FILE)


def plain(value: Any) -> Any:  # Any: walks any nesting of a config
    """Put lists for tuples, so that YAML and JSON hold plain data."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
