"""From some files to a result and a page about it, by one call. Everything heavy is imported when it is called."""

from __future__ import annotations

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scamac_scale.api.progress import reports
from scamac_scale.config import Count, IngestConfig, ScamacConfig
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import ConfigError, InputError, OutputError
from scamac_scale.progress import Told, stages
from scamac_scale.ranks.place import find_place
from scamac_scale.remote.place import is_url

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scamac_scale.api.files import Data

STAGES = {
    "ingest": ("reading the cells into a training store", 3.0, 6e-5),
    "train": ("fitting the model", 20.0, 2.5e-4),
    "predict": ("labelling all cells", 3.0, 4e-5),
    "markers": ("ranking the marker genes of each cluster", 3.0, 6.5e-5),
    "report": ("drawing the report", 12.0, 5e-6),
}
"""Of each stage: what it does, and seconds on one core, fixed and for each cell; only ratios count."""
MARKERS = 100
"""Genes of each cluster that are kept."""


@dataclass(frozen=True)
class Places:
    """Where a clustering of files keeps what it makes.

    Attributes
    ----------
    result
        Clusters, latents and memberships.
    work
        Folder of what can be used again: the training store, and the run with the model.
    """

    result: Path
    work: Path

    @property
    def store(self) -> Path:
        """The training store."""
        return self.work / "store.zarr"

    @property
    def run(self) -> Path:
        """The run, with the model."""
        return self.work / "run"

    @property
    def report(self) -> Path:
        """Folder of the page."""
        return self.result.with_suffix(".report")


@reports
def cluster(
    data: Data,
    out: str | Path,
    *,
    n_clusters: Count | None = None,
    batch_key: str | Sequence[str] | None = None,
    label: str | None = None,
    seed: int | None = None,
    work: str | Path | None = None,
    config: ScamacConfig | None = None,
    ingest: IngestConfig | None = None,
    resume: bool = False,
) -> dict[str, Any]:
    """Cluster the cells of some files: ingest, fit, predict, rank markers, report.

    Parameters
    ----------
    data
        As of `ingest`.
    out
        Result to write on a disk, ending in ``.h5ad`` or ``.zarr``.
    n_clusters, batch_key, seed, config
        As of `ScAMAC`.
    label
        Column of obs with labels, with which the report compares the clusters.
    work
        Folder for the training store and the run; None takes ``NAME.work`` beside the result. It stays: later commands use the model.
    ingest
        How the raw data is read.
    resume
        Go on with what was stopped; store, model and result are left as they are where they are finished, markers and report made again.

    Returns
    -------
    dict
        Plain data: where ``result``, ``model``, ``markers`` and ``report`` lie, ``n_cells``, ``n_clusters``, ``sizes`` of the clusters,
        how sure the labels are, and the ``findings`` of the checks: see `report`.

    Raises
    ------
    ConfigError, InputError
        If settings or data cannot be used.
    OutputError
        If something is there already, and `resume` is not asked for, or cannot be written.
    StoppedError
        After a signal: what was done is kept in `work`.
    """
    from scamac_scale.api.files import ingest as ingest_files
    from scamac_scale.api.files import inspect
    from scamac_scale.api.marker_genes import markers
    from scamac_scale.api.model import ScAMAC
    from scamac_scale.api.reporting import report
    from scamac_scale.train.checks import check_settings

    model = ScAMAC(n_clusters, batch_key=batch_key, seed=seed, config=config)
    values = ingest or IngestConfig()
    if values.batch_key is None and model.config.batch_key not in (None, "none"):
        values = replace(values, batch_key=model.config.batch_key)
    check_settings(replace(model.config, batch_key=model.config.batch_key or values.batch_key))
    places = find_places(out, work, resume=resume)
    parts = _parts(math.nan)  # until the cells have been counted
    with stages(parts) as begin, _in_folder(places.work):
        begin(0)
        ingest_files(data, places.store, values, resume=resume)
        store = inspect(places.store)
        if label is not None and label not in store["obs_columns"]:
            raise InputError(f"obs has no column {label!r} (label); it has {', '.join(store['obs_columns'])}.")
        parts[:] = _parts(store["n_cells"])
        begin(1)
        model.fit(places.store, run=places.run, resume=resume)
        begin(2)
        model.predict(places.store, places.result, resume=resume)
        begin(3)
        csv = markers(places.result, data, ingest=values, n_genes=MARKERS)["csv"] if _can_rank(places.result) else None
        begin(4)
        page = report(places.run, places.result, label=label, batch_key=batch_key, out=places.report, overwrite=resume)
    about = inspect(places.result)
    return {
        "result": str(places.result),
        "n_cells": about["n_cells"],
        "n_clusters": about["n_clusters"],
        "is_count_estimated": model.report["is_count_estimated"],
        "sizes": {row["cluster"]: row["cells"] for row in about["clusters"]},
        "mean_membership": about["mean_membership"],
        "unsure_share": about["unsure_share"],
        "model": str(places.run / "model"),
        "markers": csv,
        "report": page["report"],
        "findings": page["findings"],
    }


def _can_rank(result: Path) -> bool:
    """Whether two clusters have the cells that a test needs; the report says what is wrong where they have not."""
    from scamac_scale.api.files import inspect
    from scamac_scale.marker_genes.groups import MIN_CELLS

    return len([row for row in inspect(result)["clusters"] if row["cells"] >= MIN_CELLS]) > 1


def find_places(out: str | Path, work: str | Path | None, *, resume: bool) -> Places:
    """Say where everything goes, and refuse what cannot be written, before any work.

    Parameters
    ----------
    out, work, resume
        As of `cluster`.

    Raises
    ------
    ConfigError
        If a place is in a bucket, or there are several processes.
    OutputError
        If something is there already, or cannot be written.
    """
    from scamac_scale.infer.output.place import find_out

    for path in (out, work):
        if path is not None and is_url(path):
            raise ConfigError(
                f"{path} is in object storage; `cluster` works on a disk. Use ingest, train and predict, which take URLs."
            )
    if find_place().world.size > 1:
        raise ConfigError("cluster is one process; use ingest, train and predict with several.")
    home = find_out(out)
    home.check(resume=resume)
    places = Places(home.path, home.path.with_suffix(".work") if work is None else at_home(work))
    if not resume and places.report.exists():
        raise OutputError(
            f"{places.report} is already there, the report of an earlier result; remove it or choose another name."
        )
    if not resume and any(path.exists() for path in (places.store, places.run)):
        raise OutputError(
            f"{places.work} holds what an earlier `cluster` has made; go on with it by --resume, name another folder with --work, or remove it."
        )
    return places


@contextmanager
def _in_folder(work: Path) -> Iterator[None]:
    """Make the folder, and leave none behind in which nothing was kept."""
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{work} cannot be made: {error.strerror}; name another folder with --work.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # it holds something
            work.rmdir()


def _parts(n_cells: float) -> list[Told]:
    return [Told(words, fixed_s + cell_s * n_cells) for words, fixed_s, cell_s in STAGES.values()]
