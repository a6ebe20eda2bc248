"""The files of a run that say what it was: run.json, which seals the others once it has finished, and what --resume believes of it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.locks import lock
from scamac_scale.durable.plain import DAMAGED, check_tree, digest_of_file, read_sealed, sealed, set_aside
from scamac_scale.errors import InputError
from scamac_scale.host.memory import peak_memory_bytes
from scamac_scale.train.run.checkpoints import Checkpoints
from scamac_scale.train.run.provenance import commit, hardware, versions

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.config import ScamacConfig

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
METRICS_FILE = "metrics.csv"
EVENTS_FOLDER = "tensorboard"
CHECKPOINT_FOLDER = "checkpoints"
CODES_FILE = "codes"
"""In the folder of the checkpoints, until the run has finished."""
LOCK_FILE = ".lock"
NFS_FILE = ".nfs"
"""Begins the names that a client of NFS gives to files which are removed while they are open."""
MODEL_FOLDER = "model"
NONFINITE = "nonfinite-step-"
"""Begins the names of lists of cells."""
OWN_NAMES = (
    frozenset((RUN_FILE, CONFIG_FILE, METRICS_FILE, EVENTS_FOLDER, CHECKPOINT_FOLDER, LOCK_FILE, MODEL_FOLDER))
    | {f".{name}.partial" for name in (RUN_FILE, CONFIG_FILE, METRICS_FILE, MODEL_FOLDER)}
    | {f"{name}{DAMAGED}" for name in (RUN_FILE, METRICS_FILE)}
)
"""What a run writes into its folder, beside the lists of cells with losses that are not finite."""
SEALED_FILES = (CONFIG_FILE, METRICS_FILE, f"{MODEL_FOLDER}/model.json")
"""Files whose SHA-256 a finished run has in its run.json; the last has that of the tensors."""


def write_report(path: Path, config: ScamacConfig, content: dict[str, Any]) -> None:
    """Write the run.json of a folder, sealed; that of a finished run has the SHA-256 of `SEALED_FILES`."""
    about = {
        "seed": config.seed,
        "peak_memory_bytes": peak_memory_bytes(),
        "versions": versions(),
        "commit": commit(),
        "hardware": hardware(),
    }
    files = SEALED_FILES if content["finished"] else ()
    digests = {name: digest_of_file(path / name) for name in files if os.path.lexists(path / name)}
    with atomic_file(path / RUN_FILE, is_result=bool(content["finished"])) as partial:
        partial.write_text(sealed({**about, **content, "files": digests}, indent=2))


def is_own(name: str) -> bool:
    """Tell by its name whether a run writes a file or folder."""
    return name in OWN_NAMES or name.startswith((NONFINITE, f"{LOCK_FILE}.", NFS_FILE))


def check_run_tree(path: Path) -> None:
    """Refuse a run folder in which a link, pipe, socket or device has the place of a file or folder of a run.

    Raises
    ------
    InputError
        Naming it. Nothing is opened before, and no link is followed.
    """
    try:
        check_tree(path, is_own)
    except ValueError as error:
        raise InputError(f"{error}; remove it, or put what it stands for there.") from error


def finished_words(name: str) -> str:
    """Say that a run cannot be written again."""
    return f"the run {name} is finished; use its model (predict --run {name}), or name a new folder with --run."


def is_finished(path: Path) -> bool:
    """Tell whether a folder holds a run that came to its end, by its run.json."""
    return read_report(path).get("finished") is True


def read_report(path: Path) -> dict[str, Any]:
    """Read the run.json of a folder; nothing where there is none, or none that is as it was written."""
    try:
        return checked_report(path)
    except InputError:
        return {}


def checked_report(path: Path) -> dict[str, Any]:
    """Read the run.json of a folder; nothing where there is none.

    Raises
    ------
    InputError
        If it is not what was written.
    """
    file = path / RUN_FILE
    try:
        return read_sealed(file, is_finite=False)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} is damaged: {error}; `train --resume` writes it again where the model or a checkpoint is sound."
        ) from error


def set_report_aside(path: Path) -> None:
    """Say that run.json is damaged, and keep it."""
    try:
        checked_report(path)
    except InputError as error:
        aside = set_aside(path / RUN_FILE)
        logger.warning("%s It is kept as %s.", error, aside.name)


def restore_report(path: Path, config: ScamacConfig, content: dict[str, Any]) -> None:
    """Write the run.json of a run again whose model is there, and say so: the old one was lost or damaged.

    Parameters
    ----------
    path
        The run.
    config
        Of the run.
    content
        What the fit said of itself, and `cells_digest`.
    """
    with writing(path), lock(path / LOCK_FILE, path):
        set_report_aside(path)
        write_report(path, config, {"finished": True, **content})
        (path / CHECKPOINT_FOLDER / CODES_FILE).unlink(missing_ok=True)
    logger.warning("%s was missing or damaged; it is written again, by what the model says", path / RUN_FILE)


def verify_files(path: Path, report: dict[str, Any]) -> str:
    """Read back what run.json says of other files, and all checkpoints; what was looked at, in words.

    Raises
    ------
    InputError, StoreError
        Naming the first file that is not what was written.
    """
    files = report.get("files", {})
    for name in SEALED_FILES if isinstance(files, dict) else ():
        if name not in files:
            continue
        try:
            if digest_of_file(path / name) != files[name]:
                raise ValueError("it is not what was written (wrong SHA-256 in run.json)")
        except (OSError, ValueError) as error:
            raise InputError(f"{path / name} is damaged: {error}; put a sound copy there.") from error
    n_checkpoints = Checkpoints(path / CHECKPOINT_FOLDER).verify()
    named = [name for name in SEALED_FILES if name in files]
    return ", ".join([*named, f"{n_checkpoints} checkpoints"])
