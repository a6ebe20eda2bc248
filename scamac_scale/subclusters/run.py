"""Sub-clusters of a result, from the input to a new result: passes, clusters one after the other, and what to go on with."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scamac_scale.cells.tech_batches import find_tech_batches
from scamac_scale.config import IngestConfig
from scamac_scale.durable.atomic import atomic_file, atomic_folder, partial_folder, scratch_folder, writing
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.faults import reach
from scamac_scale.durable.foreign import at_home
from scamac_scale.durable.plain import read_sealed, sealed
from scamac_scale.errors import ConfigError, InputError, ResumeError, StoppedError
from scamac_scale.host.memory import explained
from scamac_scale.infer.output.h5ad import Conversion
from scamac_scale.infer.output.journal import check_same, model_digest
from scamac_scale.infer.output.table import UNS_KEY as RESULT_UNS
from scamac_scale.infer.output.table import check_target
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.files import open_file, place_of
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.model import open_for_model
from scamac_scale.ingestion.open import read_obs
from scamac_scale.ingestion.source import compare_with_fit
from scamac_scale.progress import track
from scamac_scale.store.obs import storable_frame
from scamac_scale.store.record import is_store
from scamac_scale.subclusters.cell_files import CellFiles, Wanted
from scamac_scale.subclusters.genes import genes_of_clusters
from scamac_scale.subclusters.output import SUBCLUSTER_KEY, UNS_KEY, table_frame, write_result, write_table
from scamac_scale.subclusters.tree import Cluster, Found, cut_cluster

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

KEPT_ON = (StoppedError, ResumeError, KeyboardInterrupt)
JOURNAL, PREDICTED, WORK = "refine.json", "predicted.zarr", "work"
VERSION = 1
"""Of what this does: work that was begun by another one is not gone on with."""
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """What is asked for.

    Attributes
    ----------
    key
        Column of obs of the result with the clusters.
    clusters
        Their names; None takes all.
    min_cells
        Clusters, and parts of them, with fewer cells are left whole.
    n_genes
        Variable genes of each cluster.
    ingest
        How the input is read.
    accept
        In what the input may differ from the fit, as of `PredictOptions`.

    Raises
    ------
    ConfigError
        If a number cannot be used.
    """

    key: str = "scamac_cluster"
    clusters: tuple[str, ...] | None = None
    min_cells: int = 500
    n_genes: int = 500
    ingest: IngestConfig = IngestConfig()
    accept: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.min_cells < 2:
            raise ConfigError(f"min_cells={self.min_cells}; a cluster of fewer than 2 cells has no parts, give 2 or more.")
        if not 10 <= self.n_genes <= 10_000:
            raise ConfigError(f"n_genes={self.n_genes}; expected 10 to 10,000.")
        if self.clusters is not None and not self.clusters:
            raise ConfigError("clusters names none; name some, with commas between them, or say all.")

    def to_plain(self) -> dict[str, Any]:
        """Give what tells one refinement from another."""
        clusters = ALL if self.clusters is None else sorted(self.clusters)
        return {"key": self.key, "clusters": clusters, "min_cells": self.min_cells, "n_genes": self.n_genes}


class _Labels(NamedTuple):
    """Clusters of all cells: names in their order, (N,) codes, and the codes of those that are cut."""

    names: list[str]
    codes: IntArray
    chosen: list[int]


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
    _refuse_stores(data)
    with ExitStack() as stack:
        raw = stack.enter_context(open_for_model(data, options.ingest, model.genes, options.accept))
        if len(raw.parts) < 2:
            compare_with_fit(raw, model.genes, options.accept)
        labels = None if result is None else _read_labels(result, raw, model, options)
        belongs = _identity(model, raw, options, labels)
        if resume and _is_finished(path, belongs):
            return path
        check_target(path)
        is_zarr = path.suffix == ".zarr"
        home = atomic_folder if is_zarr else scratch_folder
        new = stack.enter_context(home(path, resumes=resume, keeps_on=KEPT_ON))
        partial = partial_folder(path)
        work = _begin(partial, belongs, path, resume=resume)
        if result is None:
            predict(partial / PREDICTED)
            labels = _read_labels(partial / PREDICTED, raw, model, options)
        assert labels is not None
        rows, parts = _cut_all(model, raw, labels, options, work)
        raw.check_unchanged()
        target = new if is_zarr else partial / "new.zarr"
        shutil.rmtree(target, ignore_errors=True)
        source = partial / PREDICTED if result is None else result
        obs = storable_frame(read_obs(source).assign(**{SUBCLUSTER_KEY: _column(labels, parts)}))
        uns = {"table": table_frame(rows), "options": json.dumps(options.to_plain()), "identity": json.dumps(belongs)}
        write_result(source, obs, uns, target)
        write_table(path, rows)
        reach("refine.rename")
        if not is_zarr:
            _to_h5ad(target, partial, path)
    return path


def _refuse_stores(data: Any) -> None:  # Any: as of `open_inputs`
    for one in list_inputs(data):
        if isinstance(one.data, str | Path) and is_store(place_of(one.data)):
            raise InputError(
                f"{one.data} is a training store, which keeps only the genes of its fit; give the data that it was made from, which has the "
                "genes by which parts of a cluster differ."
            )


def _read_labels(result: str | Path, raw: RawMatrix, model: FittedModel, options: RefineOptions) -> _Labels:
    obs = read_obs(result)
    if options.key not in obs:
        raise InputError(
            f"{result}: obs has no column {options.key!r}; it has {', '.join(map(str, obs.columns)) or 'none'}."
        )
    if len(obs) != raw.n_cells or not np.array_equal(obs.index.to_numpy(), raw.obs.index.to_numpy()):
        raise InputError(
            f"{result} holds {len(obs):,} cells and {raw.name} {raw.n_cells:,}, or not the same ones in the same order; give the input that "
            "was predicted."
        )
    _refuse_other_model(result, model)
    column = pd.Categorical(obs[options.key].astype("category"))
    names = [str(name) for name in column.categories]
    codes = np.asarray(column.codes, dtype=np.int64)
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    if options.clusters is not None:
        unknown = [name for name in options.clusters if name not in names]
        if unknown:
            raise InputError(
                f"{result}: {options.key} has no cluster {', '.join(map(repr, unknown))}; it has {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}."
            )
    asked = [code for code, name in enumerate(names) if options.clusters is None or name in options.clusters]
    chosen = [code for code in asked if sizes[code] >= options.min_cells]
    if not chosen:
        largest = max((int(sizes[code]) for code in asked), default=0)
        raise InputError(
            f"{result}: no cluster of {options.key} that was asked for has {options.min_cells:,} cells, the largest has {largest:,}; lower "
            "min_cells."
        )
    return _Labels(names, codes, chosen)


def _refuse_other_model(result: str | Path, model: FittedModel) -> None:
    """Refuse a result of another fit, where it says of which it is."""
    try:
        with open_file(place_of(result)) as group:
            text = group[f"uns/{RESULT_UNS}/identity"][()]
        found = json.loads(text.decode() if isinstance(text, bytes) else str(text))["model"]
    except (LookupError, ValueError, TypeError, AttributeError):
        return
    if found != model_digest(model):
        raise InputError(f"{result} is a result of another model; give the run that it was predicted with.")


def _identity(model: FittedModel, raw: RawMatrix, options: RefineOptions, labels: _Labels | None) -> dict[str, Any]:
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


def _cut_all(
    model: FittedModel, raw: RawMatrix, labels: _Labels, options: RefineOptions, work: Path
) -> tuple[list[dict[str, Any]], dict[int, IntArray]]:
    """Cut all clusters that were chosen: rows of the table, and the parts of the cells of each cluster."""
    n_chosen = len(labels.chosen)
    codes = np.full(raw.n_cells, n_chosen, dtype=np.int32)
    for number, code in enumerate(labels.chosen):
        codes[labels.codes == code] = number
    found = [_read_found(work, number) for number in range(n_chosen)]
    if any(one is None for one in found):
        with writing(work), LocalEngine(options.ingest.block_cells) as engine:
            totals, genes = _genes(model, raw, codes, n_chosen, options, work, engine)
            reach("refine.sums")
            files = CellFiles(work)
            space = model.genes
            scale = None
            if space.kind == "linear":
                scale = (space.target_sum or 1.0) / np.maximum(totals, np.finfo(np.float64).tiny)
            files.write(raw, Wanted(codes, genes, scale), engine)
            batches = _tech_batches(model, raw)
            names = np.array(raw.gene_names, dtype=object)
            with track("cutting clusters", n_chosen, "clusters") as progress:
                for number, code in enumerate(labels.chosen):
                    if found[number] is None:
                        own = codes == number
                        cluster = Cluster(
                            number,
                            labels.names[code],
                            tuple(names[genes[number]]),
                            totals[own],
                            batches[own],
                            space.kind == "counts",
                        )
                        found[number] = cut_cluster(cluster, files, options.min_cells, model.config.seed)
                        _keep(work, number, found[number])
                        reach("refine.cluster")
                    progress.advance(1)
    rows = [row for one in found if one is not None for row in one.tests]
    return rows, {code: one.parts for code, one in zip(labels.chosen, found, strict=True) if one is not None}


def _genes(
    model: FittedModel, raw: RawMatrix, codes: IntArray, n_chosen: int, options: RefineOptions, work: Path, engine: LocalEngine
) -> tuple[NDArray[np.float64], list[IntArray]]:
    """Totals of the cells and genes of the clusters: those that were kept, or by the first pass."""
    path = work / "genes.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            return kept["totals"], [kept[f"genes{number}"] for number in range(len(kept.files) - 1)]
    totals, genes = genes_of_clusters(raw, codes, n_chosen, model.genes, options.n_genes, engine)
    with atomic_file(path) as partial, partial.open("wb") as file:
        np.savez(file, totals=totals, **{f"genes{number}": columns for number, columns in enumerate(genes)})
    return totals, genes


def _tech_batches(model: FittedModel, raw: RawMatrix) -> IntArray:
    """(N,) technical batch of each cell: by the columns of the fit, where the input has them."""
    columns = tuple(model.tech_levels)
    if not columns:
        return np.zeros(raw.n_cells, dtype=np.int64)
    missing = [column for column in columns if column not in raw.obs]
    if missing:
        raise InputError(
            f"{raw.name}: obs has no column {', '.join(missing)}, by which the model knows technical batches; add it, for their differences "
            "would be taken for parts of clusters."
        )
    return find_tech_batches(raw.obs, columns, where=f"{raw.name}: obs").joint().astype(np.int64)


def _keep(work: Path, number: int, found: Found) -> None:
    """Keep what came of a cluster, complete or not at all."""
    with atomic_file(work / f"{number}.found.npz") as partial, partial.open("wb") as file:
        np.savez(file, parts=found.parts, tests=np.array(json.dumps(found.tests)))


def _read_found(work: Path, number: int) -> Found | None:
    path = work / f"{number}.found.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as kept:
        return Found(kept["parts"], json.loads(str(kept["tests"])))


def _column(labels: _Labels, parts: dict[int, IntArray]) -> pd.Categorical:
    """Names of sub-clusters: "3.1", "3.2" by size, "5" where a cluster does not split; cells without a cluster have none."""
    names: list[str] = []
    codes = np.full(len(labels.codes), -1, dtype=np.int64)
    for code, name in enumerate(labels.names):
        own = labels.codes == code
        found = parts.get(code)
        n_parts = 1 if found is None or not len(found) else int(found.max()) + 1
        codes[own] = len(names) + (0 if found is None or n_parts == 1 else found)
        names += [name] if n_parts == 1 else [f"{name}.{part + 1}" for part in range(n_parts)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))


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
