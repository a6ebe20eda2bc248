"""The command that writes a page about a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.cli.options import OPTIONAL, require
from scamac_scale.config import Layout

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def declare_report(parser: ArgumentParser) -> None:
    """Add the options of ``report``."""
    parser.add_argument("--run", type=str, help="Run folder that train has written, or its URL.", **OPTIONAL)
    parser.add_argument(
        "--result",
        type=str | None,
        default=None,
        help="Result of predict, or its URL; without one the report tells what the run alone knows.",
    )
    parser.add_argument("--label", type=str | None, default=None, help="Column of its obs with labels.")
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str | None,
        default=None,
        metavar="COL[,COL]",
        help="Columns of its obs with the technical batches; by default those of the fit.",
    )
    parser.add_argument("--layout", type=Layout, default="umap", help="How cells are laid out in two dimensions.")
    parser.add_argument(
        "--max-cells",
        "--max_cells",
        type=int,
        default=20_000,
        help="Cells that are drawn, at most; all cells are counted.",
    )
    parser.add_argument(
        "--out", type=str, help="Folder on a disk to write (default: the name of the run with .report).", **OPTIONAL
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier report.", **OPTIONAL)


def run_report(args: Namespace) -> dict[str, Any]:
    """Write a report."""
    from scamac_scale.api import report

    require(args, "run")
    found = report(
        args.run,
        args.result,
        label=args.label,
        batch_key=args.batch_key,
        layout=args.layout,
        max_cells=args.max_cells,
        out=getattr(args, "out", None),
        overwrite=getattr(args, "overwrite", False),
    )
    return {**found, "next": [f"open {found['report']} in a browser"]}
