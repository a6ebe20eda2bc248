"""What a run and a result tell, gathered once for checks, figures and words: counts over all cells, and no row of any cell.

Columns of obs are read one by one, and memberships by blocks, so that memory grows by a few bytes a cell.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.tech_batches import MOST_JOINT, find_tech_batches, largest_joint, split_key
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import read_yaml
from scamac_scale.errors import InputError
from scamac_scale.evaluation import Levels
from scamac_scale.fitted import load_model
from scamac_scale.infer.levels import DENDROGRAM_KEY
from scamac_scale.infer.output.journal import refuse_other_model
from scamac_scale.infer.output.table import CLUSTER_KEY, LATENT_KEY, MEMBERSHIP_KEY
from scamac_scale.ingestion.files import open_file, place_of
from scamac_scale.ingestion.frames import read_columns
from scamac_scale.ingestion.open import open_obsm
from scamac_scale.metrics.clustering import clustering_scores
from scamac_scale.metrics.labels import is_labelled
from scamac_scale.progress import track
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.place import is_url, parse
from scamac_scale.report_page.markers import Markers, read_markers
from scamac_scale.train.run.inspected import RUN_NAMES, fetched_run
from scamac_scale.train.run.report import CONFIG_FILE, METRICS_FILE, MODEL_FOLDER, check_run_tree, checked_report
from scamac_scale.train.run.writers import read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pandas as pd

    from scamac_scale.cells.arrays import FloatArray, IntArray
    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.fitted import FittedModel
    from scamac_scale.ops.tree import Floats

BINS = 100
"""Of the histogram of confidences of each cluster."""
MOST_LEVELS = MOST_JOINT
"""Different labels, or batches: a table of these by clusters is kept. A column with more is a measurement; of columns that are crossed, so many are kept."""
GENES_KEY = "rank_genes_groups"


@dataclass(frozen=True, eq=False)
class RunFacts:
    """What a run tells.

    Attributes
    ----------
    path
        As it was named.
    config
        Settings, plain data.
    report
        What ``run.json`` says.
    metrics
        Column of ``metrics.csv`` to steps and values.
    model
        Fitted.
    """

    path: str
    config: dict[str, Any]
    report: dict[str, Any]
    metrics: dict[str, tuple[FloatArray, FloatArray]]
    model: FittedModel

    @property
    def genes(self) -> GeneSpace:
        """Of the model."""
        return self.model.genes

    @property
    def store(self) -> str | None:
        """Where the training store lay at the time of the fit; None where there was none, or an earlier version fitted."""
        found = self.report.get("store")
        return found if isinstance(found, str) and found else None

    @property
    def inputs(self) -> list[str]:
        """The files that the cells are from, as far as the run knows them."""
        found = self.report.get("inputs")
        return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []

    @property
    def batch_key(self) -> str | None:
        """Columns of the fit, if any."""
        return ",".join(self.model.tech_levels) or None


@dataclass(frozen=True, eq=False)
class Memberships:
    """How sure the cells are of their cluster, K clusters.

    Attributes
    ----------
    confidence
        (N,) float32, the largest membership of each cell.
    mean
        (K,) of the cells of each cluster; NaN for an empty one.
    histogram
        (K, `BINS`) cells of each cluster by confidence, from 0 to 1.
    """

    confidence: FloatArray
    mean: FloatArray
    histogram: IntArray

    def shares_below(self, bounds: tuple[float, ...]) -> FloatArray:
        """(K, len(bounds)) share of the cells of each cluster below each membership, to the width of a bin; NaN for an empty cluster."""
        below = np.cumsum(self.histogram, axis=1)[:, [round(bound * BINS) - 1 for bound in bounds]]
        counts = self.histogram.sum(axis=1, keepdims=True)
        return np.where(counts > 0, below / np.maximum(counts, 1), np.nan)


@dataclass(frozen=True, eq=False)
class ResultFacts:
    """What a result tells of N cells in K clusters.

    Attributes
    ----------
    path
        As it was named.
    clusters
        Of all cells.
    memberships
        None where the result has none of these clusters.
    label, labels
        Column of the labels, and they; None where none is named.
    batch_key, batches
        Columns of the technical batches, and these; None where there are none. The `MOST_LEVELS` with the most cells are kept, and cells of
        others have none.
    n_more_batches
        Those that are not kept.
    tree
        (K - 1, 4) linkage over the clusters; None where it is not known.
    markers
        None where none were looked for.
    """

    path: str
    clusters: Levels
    memberships: Memberships | None
    label: str | None = None
    labels: Levels | None = None
    batch_key: str | None = None
    batches: Levels | None = None
    n_more_batches: int = 0
    tree: Floats | None = None
    markers: Markers | None = None

    @property
    def n_cells(self) -> int:
        """Cells N."""
        return len(self.clusters.codes)

    @cached_property
    def sizes(self) -> IntArray:
        """(K,) cells of each cluster."""
        return np.bincount(self.clusters.codes, minlength=len(self.clusters.names))

    def crossed(self, levels: Levels) -> IntArray:
        """(K, L) cells by cluster and level; those without a level are left out."""
        found = np.zeros((len(self.clusters.names), len(levels.names)), dtype=np.int64)
        has = levels.codes >= 0
        np.add.at(found, (self.clusters.codes[has], levels.codes[has]), 1)
        return found

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Agreement with the labels, ``ari`` and ``nmi``; empty where there are none, or a cell or two has one."""
        if self.labels is None or (self.labels.codes >= 0).sum() < 2:
            return {}
        has = self.labels.codes >= 0
        return dict(clustering_scores(self.labels.codes[has].astype(str), self.clusters.codes[has].astype(str)))


@dataclass(frozen=True, eq=False)
class Facts:
    """A run, and a result of it where there is one; ``own`` holds what checks have drawn from both."""

    run: RunFacts
    result: ResultFacts | None = None
    own: dict[str, Any] = field(default_factory=dict)


# ------------------------------------------------------------------ the run


def gather(
    run: str | Path, result: str | Path | None = None, *, label: str | None = None, batch_key: str | None = None
) -> Facts:
    """Read what a run and a result tell.

    Parameters
    ----------
    run
        Folder or URL of a run that has finished.
    result
        Output of ``predict``; None where there is none.
    label
        Column of its obs with labels.
    batch_key
        Columns of its obs with technical batches; None takes those of the fit, as far as the result has them.

    Raises
    ------
    InputError
        If something is missing or damaged, or a column is named without a result.
    """
    if result is None and (label or batch_key):
        raise InputError("a label or a batch key is a column of a result; name the result of predict with --result.")
    found = read_run(run)
    if result is None:
        return Facts(found)
    return Facts(found, read_result(result, found, label, batch_key))


def read_run(run: str | Path) -> RunFacts:
    """Read a run that has finished; InputError where it has not, or is none."""
    if not is_url(run):
        return _read_folder(at_home(run), str(run))
    bucket = Bucket(parse(run))
    entries = bucket.listing()
    if not RUN_NAMES & {entry.key for entry in entries}:
        raise InputError(f"there is no run at {run}; name the folder that train has written.")
    with fetched_run(bucket, entries, is_verified=False) as (copy, _):
        return _read_folder(copy, str(run))


def _read_folder(path: Path, name: str) -> RunFacts:
    if not path.is_dir() or not (path / CONFIG_FILE).exists():
        raise InputError(f"{path} is no run folder; name the one that train has written, with its config.yaml.")
    check_run_tree(path)
    if not (path / MODEL_FOLDER).is_dir():
        raise InputError(f"{path} has not finished, so there is no model to report on; go on with train --resume.")
    try:
        config = read_yaml(path / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise InputError(f"{path / CONFIG_FILE} is damaged: {error}; put it back as it was.") from error
    model = load_model(path / MODEL_FOLDER)
    return RunFacts(name, config, checked_report(path) or dict(model.provenance), _metrics(path / METRICS_FILE), model)


def _metrics(path: Path) -> dict[str, tuple[FloatArray, FloatArray]]:
    """Read steps and values of each column of a metrics.csv; nothing where there is none."""
    columns: dict[str, tuple[list[float], list[float]]] = {}
    try:
        for row in read_rows(path):
            for name, value in row.items():
                steps, values = columns.setdefault(name, ([], []))
                steps.append(float(row["step"]))
                values.append(float(value))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}; remove it, the model does not depend on it.") from error
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in columns.items() if name != "step"}


# ------------------------------------------------------------------ the result


def read_result(result: str | Path, run: RunFacts, label: str | None, batch_key: str | None) -> ResultFacts:
    """Read what a result tells of all cells."""
    place = place_of(str(result))
    named = split_key(batch_key)
    with open_file(place) as group:
        if "obs" not in group or "obsm" not in group:
            raise InputError(f"{result} is no result of predict: it has no obs or no obsm.")
        obs, where, uns = group["obs"], f"{result}: obs", group.get("uns")
        if CLUSTER_KEY not in obs:
            raise InputError(f"{where} has no column {CLUSTER_KEY!r}; name what predict has written.")
        refuse_other_model(result, group, run.model)
        if not named and run.batch_key is not None and all(column in obs for column in run.model.tech_levels):
            named = tuple(run.model.tech_levels)
        clusters = _levels(read_columns(obs, where, [CLUSTER_KEY], uns)[CLUSTER_KEY], has_all=True)
        if (clusters.codes < 0).any():
            raise InputError(f"{where}/{CLUSTER_KEY}: {int((clusters.codes < 0).sum()):,} cells have no cluster.")
        labels = None if label is None else _levels(_read_few(obs, where, [label], uns)[label])
        batches, n_more = _batches(_read_few(obs, where, list(named), uns), named, where) if named else (None, 0)
        tree = _tree(uns, run, len(clusters.names))
        markers = (
            read_markers(uns[GENES_KEY], f"{result}: uns/{GENES_KEY}") if uns is not None and GENES_KEY in uns else None
        )
    with open_obsm(place, LATENT_KEY) as latent:
        n_cells = latent.shape[0]
    if n_cells != len(clusters.codes):
        raise InputError(
            f"{result} has {n_cells:,} latents for {len(clusters.codes):,} cells; it is damaged, predict again."
        )
    return ResultFacts(
        path=str(result),
        clusters=clusters,
        memberships=_memberships(result, clusters),
        label=label,
        labels=labels,
        batch_key=",".join(named) or None,
        batches=batches,
        n_more_batches=n_more,
        tree=tree,
        markers=markers,
    )


def _read_few(obs: Any, where: str, columns: list[str], uns: Any) -> pd.DataFrame:  # Any: as of `_tree`
    """Read columns of labels or batches; InputError where one holds so many values that it must be something else."""
    found = read_columns(obs, where, columns, uns)
    for column in columns:
        n_values = found[column].nunique()
        if n_values > MOST_LEVELS:
            raise InputError(
                f"{where}: {column!r} has {n_values:,} different values, and labels or batches may have {MOST_LEVELS:,}; "
                "name a column of groups of cells, not of measurements or names."
            )
    return found


def _levels(column: pd.Series[Any], *, has_all: bool = False) -> Levels:
    """Levels of a column; of a categorical in its order, and with `has_all` also those without cells."""
    import pandas as pd

    if isinstance(column.dtype, pd.CategoricalDtype):
        names = [str(name) for name in column.cat.categories]
        known = np.asarray(is_labelled(np.array(names, dtype=object)), dtype=bool) if names else np.zeros(0, bool)
        codes = column.cat.codes.to_numpy().astype(np.int64)
    else:
        has = is_labelled(column.to_numpy(dtype=object))
        found, inverse = np.unique(column.to_numpy(dtype=object)[has].astype(str), return_inverse=True)
        names, known = found.tolist(), np.ones(len(found), bool)
        codes = np.full(len(column), -1, dtype=np.int64)
        codes[has] = inverse
    if has_all:
        return Levels(names, codes)
    used = known & (np.bincount(codes[codes >= 0], minlength=len(names)) > 0)
    number = np.full(len(names) + 1, -1, dtype=np.int64)  # the last is of cells without a level
    number[:-1][used] = np.arange(used.sum())
    return Levels([name for name, is_used in zip(names, used, strict=True) if is_used], number[codes])


def _batches(obs: pd.DataFrame, columns: tuple[str, ...], where: str) -> tuple[Levels | None, int]:
    """Joint levels of the technical batches, None where there is one only; and how many are not kept."""
    found = largest_joint(find_tech_batches(obs, columns, where=where), MOST_LEVELS)
    return Levels(found.names, found.codes) if len(found.names) > 1 else None, found.n_more


def _tree(uns: Any, run: RunFacts, n_clusters: int) -> Floats | None:  # Any: an h5py or zarr group
    """(K - 1, 4) linkage over the clusters of a result: as it says, else of the model."""
    place = f"{DENDROGRAM_KEY}/linkage"
    if uns is not None and DENDROGRAM_KEY in uns and "linkage" in uns[DENDROGRAM_KEY]:
        found = np.asarray(uns[place][...], dtype=np.float64)
        if found.shape == (n_clusters - 1, 4):
            return found
    tree = run.model.tree
    return tree.top(n_clusters) if tree is not None and 2 <= n_clusters <= len(tree) else None


def _memberships(result: str | Path, clusters: Levels) -> Memberships | None:
    """Read the memberships once; None where they are of other clusters, as in a result with other levels."""
    n_clusters, n_cells = len(clusters.names), len(clusters.codes)
    confidence = np.empty(n_cells, dtype=np.float32)
    with _opened_obsm(result) as values:
        if values is None or values.shape != (n_cells, n_clusters):
            return None
        with track("read memberships", n_cells, "cells") as progress:
            for start, block in values.blocks():
                confidence[start : start + len(block)] = block.max(axis=1)
                progress.advance(len(block))
    bins = np.minimum((np.clip(confidence, 0, 1) * BINS).astype(np.int64), BINS - 1)
    histogram = np.bincount(clusters.codes * BINS + bins, minlength=n_clusters * BINS).reshape(n_clusters, BINS)
    counts = np.bincount(clusters.codes, minlength=n_clusters)
    sums = np.bincount(clusters.codes, weights=confidence, minlength=n_clusters)
    mean = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return Memberships(confidence, mean, histogram)


@contextmanager
def _opened_obsm(result: str | Path) -> Iterator[Any]:  # Any: an ObsmArray, or None
    with open_file(place_of(str(result))) as group:
        is_there = MEMBERSHIP_KEY in group["obsm"]
    if not is_there:
        yield None
        return
    with open_obsm(place_of(str(result)), MEMBERSHIP_KEY) as values:
        yield values
