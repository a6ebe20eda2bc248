"""Cut clusters of a result further. Everything heavy is imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.api.progress import reports
from scamac_scale.config import IngestConfig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scamac_scale.api.files import Data
    from scamac_scale.api.model import ScAMAC

TOLD = ("cluster", "part", "n_cells", "separation", "null_mean", "p_value", "is_split", "why")
"""Columns of the table of tests that are printed; the file has all."""


@reports
def refine(
    data: Data,
    out: str | Path,
    *,
    model: str | Path | ScAMAC,
    result: str | Path | None = None,
    key: str = "scamac_cluster",
    clusters: str | Sequence[str] | None = None,
    min_cells: int = 500,
    n_genes: int = 500,
    matrix: str = "X",
    gene_column: str | None = None,
    accept: str | Sequence[str] = (),
    resume: bool = False,
) -> Path:
    """Cut clusters further, each with its own variable genes, where one population of cells cannot explain the cut.

    Parameters
    ----------
    data
        Raw data of the cells, as of `ScAMAC.fit`; no training store, which keeps only the genes of the fit.
    out
        Result to write, ending in ``.zarr`` or ``.h5ad``.
    model
        A fitted `ScAMAC`, or the folder of one.
    result
        Output of `ScAMAC.predict` for these cells, in their order; None predicts them first.
    key
        Column of obs of the result with the clusters; labels of any kind will do.
    clusters
        Names of those to be cut, commas between them, or a list; None or ``"all"`` takes all.
    min_cells
        Clusters, and parts of them, with fewer cells are left whole.
    n_genes
        Variable genes of each cluster.
    matrix, gene_column, accept
        As of `ScAMAC.predict`.
    resume
        Go on with what was stopped; a finished result is left as it is.

    Returns
    -------
    Path
        The result: what `result` holds, with ``obs["scamac_subcluster"]`` ("3.1", "3.2" by size; "5" where a cluster does not split) and
        ``uns["scamac_refine"]``, whose ``table`` tells every test; the same table lies beside it as ``.refine.csv``.

    Raises
    ------
    ConfigError
        If a number cannot be used.
    InputError
        If the cells are not those of the result, a cluster is not there, or none has `min_cells` cells.
    OutputError
        If `out` exists or cannot be written.
    ResumeError
        If what was begun is of other cells, another model or other settings.
    """
    from scamac_scale.api.model import ScAMAC
    from scamac_scale.cells.tech_batches import split_key
    from scamac_scale.infer.options import accepted_names
    from scamac_scale.subclusters.options import ALL, RefineOptions
    from scamac_scale.subclusters.run import refine as write

    fitted = model if isinstance(model, ScAMAC) else ScAMAC.load(model)
    named = split_key(clusters) if isinstance(clusters, str) else clusters
    options = RefineOptions(
        key=key,
        clusters=None if named is None or tuple(named) == (ALL,) else tuple(map(str, named)),
        min_cells=min_cells,
        n_genes=n_genes,
        ingest=IngestConfig(matrix=matrix, gene_column=gene_column),
        accept=accepted_names(accept),
    )

    def predict(path: Path) -> object:
        return fitted.predict(data, path, matrix=matrix, gene_column=gene_column, accept=accept, resume=True)

    return write(fitted.fitted, data, out, options, result=result, predict=predict, resume=resume)


def summary(path: str | Path) -> dict[str, Any]:
    """Tell what came of a refinement: how many clusters were tested and cut, and a row for each test.

    Parameters
    ----------
    path
        A result of `refine`.

    Returns
    -------
    dict
        Plain data.
    """
    from scamac_scale.subclusters.output import read_table, table_path

    rows = read_table(path)
    roots = [row for row in rows if not row["part"]]
    return {
        "path": str(path),
        "table": str(table_path(path)),
        "tested": len(roots),
        "split": sum(row["is_split"] for row in roots),
        "n_tests": len(rows),
        "tests": [{name: row[name] for name in TOLD} for row in rows],
    }
