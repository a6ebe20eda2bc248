"""Sub-clusters of a result, from the input to a new result: passes, clusters one after the other, and what to go on with."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scamac_scale.durable.atomic import atomic_file, atomic_folder, partial_folder, scratch_folder, writing
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import read_sealed, sealed
from scamac_scale.errors import InputError, ResumeError, StoppedError
from scamac_scale.host.memory import explained
from scamac_scale.infer.output.h5ad import Conversion
from scamac_scale.infer.output.journal import check_same, model_digest
from scamac_scale.infer.output.table import check_target
from scamac_scale.ingestion.files import open_file, place_of
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.model import open_for_model
from scamac_scale.ingestion.open import read_obs
from scamac_scale.ingestion.source import compare_with_fit
from scamac_scale.progress import Told, stages
from scamac_scale.store.obs import storable_frame
from scamac_scale.store.record import is_store
from scamac_scale.subclusters.labels import Labels, column_of, read_labels
from scamac_scale.subclusters.output import (
    SUBCLUSTER_KEY,
    UNS_KEY,
    check_table,
    read_table,
    table_frame,
    table_path,
    write_result,
    write_table,
)
from scamac_scale.subclusters.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.fitted import FittedModel
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.subclusters.options import RefineOptions

logger = logging.getLogger(__name__)

KEPT_ON = (StoppedError, ResumeError, KeyboardInterrupt)
JOURNAL, PREDICTED, WORK = "refine.json", "predicted.zarr", "work"
VERSION = 1
"""Of what this does: work that was begun by another one is not gone on with."""


PARTS = (
    Told("measuring the genes of each cluster", 2.0, "summing genes"),
    Told("copying the cells of each cluster", 2.0, "writing cells of clusters"),
    Told("cutting the clusters", 4.0, "cutting clusters"),
)
"""Stages as they are told; only the ratios count."""


@explained("refine")
def refine(
    model: FittedModel,
    data: Any,  # Any: as of `open_inputs`
    out: str | Path,
    options: RefineOptions,
    *,
    result: str | Path | None,
    predict: Callable[[Path], object],
    resume: bool = False,
) -> Path:
    """Cut clusters further; see `scamac_scale.api.refining.refine`.

    Parameters
    ----------
    model
        Of the fit: how values are normalised, technical batches, seed.
    data
        Raw data, the cells of the result in their order.
    out
        Zarr or h5ad to write.
    options
        What is asked for.
    result
        With the clusters; None has them predicted.
    predict
        Writes a result to a path, or goes on with it.
    resume
        Go on with what was stopped.
    """
    path = at_home(out)
    if not (resume and path.exists()):
        check_target(path)
    check_table(path)
    _refuse_stores(data)
    with ExitStack() as stack:
        raw = stack.enter_context(open_for_model(data, options.ingest, model.genes, options.accept))
        if len(raw.parts) < 2:
            compare_with_fit(raw, model.genes, options.accept)
        labels = None if result is None else read_labels(result, raw, model, options)
        belongs = _identity(model, raw, options, labels)
        if resume and _is_finished(path, belongs):
            if not table_path(path).exists():  # stopped between the two
                write_table(path, read_table(path))
            return path
        check_target(path)
        is_zarr = path.suffix == ".zarr"
        home = atomic_folder if is_zarr else scratch_folder
        new = stack.enter_context(home(path, resumes=resume, keeps_on=KEPT_ON))
        partial = partial_folder(path)
        work = _begin(partial, belongs, path, resume=resume)
        if result is None:
            predict(partial / PREDICTED)
            labels = read_labels(partial / PREDICTED, raw, model, options)
        assert labels is not None
        with writing(path), stages(PARTS):
            found = Work(model, raw, labels, options, work).run()
        rows = [row for one in found.values() for row in one.tests]
        parts = {code: one.parts for code, one in found.items()}
        raw.check_unchanged()
        target = new if is_zarr else partial / "new.zarr"
        shutil.rmtree(target, ignore_errors=True)
        source = partial / PREDICTED if result is None else result
        obs = storable_frame(read_obs(source).assign(**{SUBCLUSTER_KEY: column_of(labels, parts)}))
        uns = {"table": table_frame(rows), "options": json.dumps(options.to_plain()), "identity": json.dumps(belongs)}
        write_result(source, obs, uns, target)
        reach("refine.rename")
        if not is_zarr:
            _to_h5ad(target, partial, path)
    write_table(path, rows)
    return path


def _refuse_stores(data: Any) -> None:  # Any: as of `open_inputs`
    for one in list_inputs(data):
        if isinstance(one.data, str | Path) and is_store(place_of(one.data)):
            raise InputError(
                f"{one.data} is a training store, which keeps only the genes of its fit; give the data that it was made from, which has the "
                "genes by which parts of a cluster differ."
            )


def _identity(model: FittedModel, raw: RawMatrix, options: RefineOptions, labels: Labels | None) -> dict[str, Any]:
    stamps = [[stamp.n_bytes, stamp.changed] for stamp in raw.stamps]
    return {
        "version": VERSION,
        "model": model_digest(model),
        "cells": raw.n_cells,
        "input": sha256_of(list(raw.gene_names), pd.util.hash_pandas_object(raw.obs.index, index=False).to_numpy()),
        "content": sha256_of(stamps),
        "labels": "" if labels is None else sha256_of(labels.names, labels.codes),
        **options.to_plain(),
    }


def _is_finished(path: Path, belongs: dict[str, Any]) -> bool:
    """Whether the result is there; an error if it is of something else."""
    if not path.exists():
        return False
    try:
        with open_file(path) as group:
            text = group[f"uns/{UNS_KEY}/identity"][()]
        found = json.loads(text.decode() if isinstance(text, bytes) else str(text))
    except (LookupError, ValueError, TypeError, AttributeError):
        return False
    check_same(found, belongs, path)
    logger.info("%s is finished; there is nothing to resume", path)
    return True


def _begin(partial: Path, belongs: dict[str, Any], path: Path, *, resume: bool) -> Path:
    """Take up what was begun, or begin: the folder of the work."""
    work = partial / WORK
    with writing(path):
        try:
            found = read_sealed(partial / JOURNAL) if resume else None
        except (OSError, ValueError):
            found = None
        if found is not None:
            check_same(found, belongs, path)
        else:
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(exist_ok=True)
        with atomic_file(partial / JOURNAL) as file:
            file.write_text(sealed(belongs))
    return work


def _to_h5ad(source: Path, partial: Path, path: Path) -> None:
    conversion = Conversion(source, partial / "new.h5ad", path)
    try:
        conversion.start()
        while conversion.is_running():
            pass
        conversion.finish()
    except BaseException:
        conversion.end()
        raise
