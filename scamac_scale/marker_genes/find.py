"""Marker genes of the groups of a result, or of an AnnData in memory."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.host.memory import explained
from scamac_scale.ingestion.engine.choose import engine_of
from scamac_scale.ingestion.files import open_file
from scamac_scale.ingestion.many.quality import without_poor
from scamac_scale.ingestion.open import read_obs
from scamac_scale.ingestion.raw import IN_MEMORY
from scamac_scale.marker_genes.auc import areas, draw_cells
from scamac_scale.marker_genes.groups import Groups, check_cells, find_groups, gene_space_of, gene_space_of_run
from scamac_scale.marker_genes.inputs import open_cells, scaling_of, values_of_a_cell
from scamac_scale.marker_genes.options import MOST_ROWS, MOST_VALUES, MarkerOptions
from scamac_scale.marker_genes.ranking import best, rank_groups
from scamac_scale.marker_genes.sums import Measure, columns_of, gather
from scamac_scale.marker_genes.table import COLUMNS, GroupTable, MarkerTable, group_table
from scamac_scale.marker_genes.writing import check_csv, check_result, into_result, write_csv

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from numpy.typing import NDArray

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.workers.connect import Client

logger = logging.getLogger(__name__)

PLAIN = MarkerOptions()
TOP = 5
"""Genes of each group that are told at once."""


class Workers(NamedTuple):
    """Who reads the input: a dask cluster, or workers to be started; neither takes threads of this process."""

    dask: Client | str | None = None
    workers: int | None = None


HERE = Workers()


@explained("markers")
def find_markers(
    out: str | Path,
    data: Any,  # Any: as of `list_inputs`
    options: MarkerOptions = PLAIN,
    config: IngestConfig | None = None,
    *,
    run: str | Path | None = None,
    csv: str | Path | None = None,
    by: Workers = HERE,
) -> dict[str, Any]:
    """Find the markers of a result on a disk, and write them into it; see `scamac_scale.api.markers`."""
    path = check_result(out)
    target = check_csv(path.with_suffix(".markers.csv") if csv is None else csv, ",".join(COLUMNS))
    config = config or IngestConfig()
    with into_result(path) as write:
        obs = read_obs(path)
        with open_file(path) as group:
            uns = group.get("uns", {})
            space = gene_space_of(uns, str(path)) if run is None else gene_space_of_run(run, uns, str(path))
        groups = find_groups(obs, options.groupby, options.reference, f"{path}: obs")
        names = obs.index
        del obs
        if space is None:
            raise InputError(
                f"{path} does not tell how values are normalised, as results of earlier versions; name its run (--run)."
            )
        with ExitStack() as stack:
            raw = stack.enter_context(open_cells(data, config, space, options.accept))
            engine = stack.enter_context(engine_of(config.block_cells, *by))
            raw = without_poor(raw, config, engine)
            check_cells(names, raw.obs.index, str(path), raw.name)
            del names
            raw.forget_obs()
            table = _table(raw, groups, space, options, engine)
            raw.check_unchanged()
        write(options.key, table.elements())
        write_csv(target, table)
    return {"out": str(path), "csv": str(target), **told(table, groups)}


@explained("markers")
def markers_in_memory(adata: AnnData, options: MarkerOptions = PLAIN, config: IngestConfig | None = None) -> None:
    """Find the markers of an AnnData in memory, in place; see `scamac_scale.tl.markers`."""
    config = config or IngestConfig()
    space = gene_space_of(adata.uns, IN_MEMORY)
    if space is None:
        raise InputError(
            f"{IN_MEMORY}: uns does not tell how values are normalised; call tl.scamac on it, or take uns['scamac_details'] of a result over."
        )
    groups = find_groups(adata.obs, options.groupby, options.reference, "obs")
    with ExitStack() as stack:
        raw = stack.enter_context(open_cells(adata, config, space, options.accept))
        engine = stack.enter_context(engine_of(config.block_cells))
        table = _table(raw, groups, space, options, engine)
    adata.uns[options.key] = dict(table.elements())


def _table(raw: RawMatrix, groups: Groups, space: GeneSpace, options: MarkerOptions, engine: Engine) -> MarkerTable:
    """Read all cells once, and rank the genes of each group."""
    scaling = scaling_of(raw, space, options.accept)
    n_most = max(1, int(MOST_VALUES / max(values_of_a_cell(raw), 1.0)))
    sample = draw_cells(groups.codes, min(options.auc_cells, n_most), options.seed)
    measure = Measure(groups.codes, len(groups.names), scaling, space.target_sum, sample)
    found = gather(raw, measure, engine)
    base = None if space.values is None or space.kind != "log" else space.values.base
    n_rows = _rows(options, groups, raw.n_genes)
    tables: list[GroupTable] = []
    tested: list[int] = []
    for ranked in rank_groups(found, options.method, groups.reference, base):
        tables.append(group_table(ranked, groups.names[ranked.group], best(ranked.scores, n_rows)))
        tested.append(ranked.group)
    tops = [table.genes[: options.auc_genes] for table in tables]
    wanted = np.unique(np.concatenate([np.zeros(0, np.int64), *tops]))
    codes = groups.codes[sample]
    auc = areas(columns_of(found.sampled, raw.n_genes, wanted), codes, len(groups.names), groups.reference)
    params = {
        "groupby": groups.column,
        "reference": options.reference,
        "method": options.method,
        "use_raw": False,
        "corr_method": "benjamini-hochberg",
        "n_cells": raw.n_cells,
        "n_genes": raw.n_genes,
        "auc_cells": len(sample),
        "auc_seed": options.seed,
    }
    if space.target_sum is not None:
        params["target_sum"] = space.target_sum
    return MarkerTable(
        np.array(raw.gene_names, dtype=object),
        tables,
        [auc[group, np.searchsorted(wanted, top)] for group, top in zip(tested, tops, strict=True)],
        params,
        np.bincount(codes, minlength=len(groups.names))[tested],
        is_rest=groups.reference is None,
    )


def _rows(options: MarkerOptions, groups: Groups, n_genes: int) -> int:
    """Genes of each group in the table."""
    if options.n_genes is not None:
        return min(options.n_genes, n_genes)
    n_rows = min(n_genes, max(1, MOST_ROWS // len(groups.names)))
    if n_rows < n_genes:
        logger.warning(
            "the table has the best %s of %s genes of each of %s groups; ask for more with n_genes (--n-genes)",
            f"{n_rows:,}",
            f"{n_genes:,}",
            len(groups.names),
        )
    return n_rows


def told(table: MarkerTable, groups: Groups) -> dict[str, Any]:
    """Tell what was found, in plain values."""
    counts = dict(zip(groups.names, np.bincount(groups.codes).tolist(), strict=False))
    names = table.gene_names
    return {
        **table.params,
        "n_groups": len(table.groups),
        "left_out": groups.left_out,
        "groups": [
            {
                "group": group.name,
                "cells": counts[group.name],
                "auc_cells": int(table.n_sampled[at]),
                "top_genes": " ".join(names[group.genes[:TOP]]),
                "best_auc": _plain(table.auc[at]),
            }
            for at, group in enumerate(table.groups)
        ],
    }


def _plain(auc: NDArray[np.float64]) -> float | None:
    """Take the largest AUC of a group; None where the sample has no cell of it."""
    return None if not auc.size or np.isnan(auc).all() else round(float(np.nanmax(auc)), 4)
