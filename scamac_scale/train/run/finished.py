"""A run that has finished, asked to go on: its model is what a fit would give."""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import TYPE_CHECKING

from scamac_scale.errors import InputError
from scamac_scale.fitted import load_model
from scamac_scale.remote.bucket import Bucket
from scamac_scale.train.run.bucket import is_finished as is_finished_there
from scamac_scale.train.run.folder import check_same_cells, check_same_settings
from scamac_scale.train.run.place import RunPlace
from scamac_scale.train.run.report import MODEL_FOLDER, check_run_tree, is_finished, restore_report

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scamac_scale.config import ScamacConfig
    from scamac_scale.fitted import FittedModel

logger = logging.getLogger(__name__)


def load_finished(
    run: Path | RunPlace, config: ScamacConfig, digest: Callable[[], str], *, is_first: bool = True
) -> FittedModel | None:
    """Load the model of a finished run, if it is what a fit would give.

    Parameters
    ----------
    run
        Its folder, or its place in a bucket: there a run has finished where its run.json says so, and is only read.
    config
        What is asked for.
    digest
        Gives that of the cells that are asked for, by `sources.cells_digest`.
    is_first
        Whether this process may write: a run.json that was lost or damaged is written again.

    Returns
    -------
    FittedModel or None
        None where the run has not finished: the model is written last, so that a run with a sound one has, whatever its run.json says.

    Raises
    ------
    InputError
        If run.json says that the run has finished, and the model is not what was written; or the folder holds links or pipes.
    ConfigError
        If it is of other settings or cells.
    """
    if isinstance(run, RunPlace):
        if run.bucket is None:
            return load_finished(run.path, config, digest, is_first=is_first)
        if not is_finished_there(Bucket(run.bucket.place)):
            return None
        fitted = load_model(str(run.bucket.place / MODEL_FOLDER))
        _check_same(fitted, config, digest, str(run))
        return fitted
    if not (run / MODEL_FOLDER).is_dir():
        return None
    check_run_tree(run)
    is_told = is_finished(run)
    try:
        fitted = load_model(run / MODEL_FOLDER)
    except InputError as error:
        if is_told:
            raise
        logger.warning("%s The fit goes on from the last checkpoint.", error)
        return None
    _check_same(fitted, config, digest, str(run))
    if not is_told and is_first:
        restore_report(run, fitted.config, {"cells_digest": fitted.cells_digest, **fitted.provenance})
    return fitted


def _check_same(fitted: FittedModel, config: ScamacConfig, digest: Callable[[], str], where: str) -> None:
    """Refuse a model of other settings or cells, else say that there is nothing to do."""
    check_same_settings(asdict(fitted.config), asdict(config), where)
    check_same_cells(fitted.cells_digest, digest(), where)
    logger.info("%s is finished; there is nothing to resume", where)
