"""The folder of one run: config.yaml, metrics.csv, TensorBoard files, run.json, beside the model."""

from __future__ import annotations

import json
import logging
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.atomic import writing
from scamac_scale.errors import NumericalError, OutputError, ScamacError
from scamac_scale.train.provenance import commit, hardware, peak_memory_bytes, versions

if TYPE_CHECKING:
    from types import TracebackType

    from lightning.fabric.loggers.logger import Logger

    from scamac_scale.config import ScamacConfig

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"


class RunFolder:
    """The folder of one run; a context manager.

    What was refused leaves nothing: if the block ends with an error of input, settings or output, the folder is removed. After
    a numerical failure or an interrupt it stays for a look, run.json says that the run is not finished, and the next run may
    take its place.

    Parameters
    ----------
    path
        New or empty folder, or that of a run that did not finish, which is replaced.
    config
        Of the run; written at once.

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

    def __init__(self, path: str | Path, config: ScamacConfig) -> None:
        import yaml

        self.path = Path(path)
        self._config = config
        self._start_s = time.time()
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            if is_unfinished(self.path):
                logger.warning("%s holds a run that did not finish; it starts anew", self.path)
                self.discard()
                self.path.mkdir()
            if any(self.path.iterdir()):
                raise OutputError(f"the run folder {self.path} is not empty; name a new one, or remove it first.")
            try:
                self.loggers = self._make_loggers()
                (self.path / CONFIG_FILE).write_text(yaml.safe_dump(plain(asdict(config)), sort_keys=False))
            except OSError:
                self.discard()
                raise

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

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ScamacError) and not isinstance(error, NumericalError):
            self.discard()
            return
        with writing(self.path):
            for logger in self.loggers:
                logger.finalize("success" if error is None else "failed")
            if error is not None:
                self._write({"finished": False, "error": str(error) or type(error).__name__})

    def discard(self) -> None:
        """Remove the folder with all that this run wrote."""
        shutil.rmtree(self.path, ignore_errors=True)

    def finish(self, report: dict[str, Any]) -> None:
        """Write run.json of a finished run: versions, commit, hardware, seed, times, peak memory and the report.

        Parameters
        ----------
        report
            What the fit says of itself; plain data.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        with writing(self.path):
            self._write({"finished": True, **report})

    def _write(self, content: dict[str, Any]) -> None:
        about = {
            "seed": self._config.seed,
            "seconds": round(time.time() - self._start_s, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            "versions": versions(),
            "commit": commit(),
            "hardware": hardware(),
        }
        partial = self.path / f".{RUN_FILE}.partial"
        partial.write_text(json.dumps({**about, **content}, indent=2) + "\n")
        partial.replace(self.path / RUN_FILE)


def is_unfinished(path: Path) -> bool:
    """Tell whether a folder holds a run that was stopped, by its run.json."""
    try:
        return json.loads((path / RUN_FILE).read_text())["finished"] is False
    except (OSError, ValueError, KeyError, TypeError):
        return False


def plain(value: Any) -> Any:  # Any: walks any nesting of a config
    """Put lists for tuples, so that YAML and JSON hold plain data."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
