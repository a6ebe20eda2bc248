"""Write a report on a run. Everything heavy is imported when it is called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.api.progress import reports
from scamac_scale.config import joined_key

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scamac_scale.config import Layout


@reports
def report(
    run: str | Path,
    result: str | Path | None = None,
    *,
    label: str | None = None,
    batch_key: str | Sequence[str] | None = None,
    layout: Layout = "umap",
    max_cells: int = 20_000,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a page about a run and its result, with what the checks found: one HTML file that needs no network, and PNGs beside it.

    Parameters
    ----------
    run
        Folder or URL of a run that has finished.
    result
        Output of `ScAMAC.predict`, or its URL; None tells what the run alone knows.
    label
        Column of obs of the result with labels.
    batch_key
        Columns of its obs with technical batches, commas between them, or a list; None takes those of the fit.
    layout
        ``"umap"``, or ``"tsne"``.
    max_cells
        Cells that are drawn, at most; clusters have shares by the square roots of their sizes.
    out
        Folder on a disk to write; None takes the name of the run with ``.report``.
    overwrite
        Replace an earlier report.

    Returns
    -------
    dict
        Plain data: ``report`` (the page), ``pictures``, ``page_bytes``, ``n_cells``, ``n_clusters``, and ``findings``, a list of
        ``severity`` (bad, look, note), ``check``, ``found``, ``advice`` and ``command`` (to type; perhaps empty), the most serious first.

    Raises
    ------
    ConfigError
        If an option cannot be used.
    InputError
        If the run has not finished, something is damaged, or a column is not there.
    OutputError
        If `out` is there already or cannot be written; nothing is left behind.
    """
    from scamac_scale.report_page.write import ReportOptions, write_report

    options = ReportOptions(layout=layout, max_cells=max_cells)
    return write_report(
        run, result, options, label=label, batch_key=joined_key(batch_key), out=out, overwrite=overwrite
    )
