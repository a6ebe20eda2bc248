"""The command that cuts clusters further."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.cli.options import OPTIONAL, declare_matching, one_or_all, require
from scamac_scale.remote.names import below

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def declare_refine(parser: ArgumentParser) -> None:
    """Add the options of ``refine``."""
    parser.add_argument("--run", type=str, help="Run folder with the model.", **OPTIONAL)
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="Raw data of the cells: as many files as ingest takes. No training store: it lacks the genes by which parts of a cluster differ.",
        **OPTIONAL,
    )
    parser.add_argument("--out", type=str, help="Result to write, ending in .zarr or .h5ad.", **OPTIONAL)
    parser.add_argument(
        "--result",
        type=str | None,
        default=None,
        help="Result of predict for these cells; without one they are predicted first.",
    )
    parser.add_argument("--key", type=str, default="scamac_cluster", help="Column of its obs with the clusters.")
    parser.add_argument(
        "--clusters",
        type=str,
        default="all",
        metavar="NAME[,NAME]|all",
        help="Clusters that are cut, if they are to be cut at all.",
    )
    parser.add_argument(
        "--min-cells",
        "--min_cells",
        type=int,
        default=500,
        help="Clusters, and parts of them, with fewer cells are left whole.",
    )
    parser.add_argument("--n-genes", "--n_genes", type=int, default=500, help="Variable genes of each cluster.")
    declare_matching(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on where one into --out was stopped; where none was, start.",
        **OPTIONAL,
    )


def run_refine(args: Namespace) -> dict[str, Any]:
    """Cut clusters further."""
    from scamac_scale.api import refine
    from scamac_scale.api.refining import summary

    require(args, "run", "input", "out")
    path = refine(
        one_or_all(args.input),
        args.out,
        model=below(args.run, "model"),
        result=args.result,
        key=args.key,
        clusters=args.clusters,
        min_cells=args.min_cells,
        n_genes=args.n_genes,
        matrix=args.matrix,
        gene_column=args.gene_column,
        accept=args.accept,
        resume=getattr(args, "resume", False),
    )
    return summary(path)
