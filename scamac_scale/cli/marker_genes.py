"""The command ``markers``: its options, and its call of `scamac_scale.api.markers`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scamac_scale.cli.options import OPTIONAL, declare_workers, require
from scamac_scale.config import IngestConfig, MarkerTest
from scamac_scale.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

SHORT = ("matrix", "gene_column", "where", "cells")
"""Settings of ingest that have a short option, too."""


def declare_markers(parser: ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("out", type=str, metavar="OUT", help="Result of predict, a .zarr or .h5ad on a disk.")
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        metavar="ATLAS",
        help="The same cells in the same order, raw: as many files as ingest takes. All of their genes are ranked.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--groupby", type=str, default="scamac_cluster", metavar="COLUMN", help="Column of obs of OUT with the groups."
    )
    parser.add_argument(
        "--method",
        type=MarkerTest,
        default="t-test",
        help="t-test (Welch), or t-test_overestim_var, in which the rest counts for no more cells than the group has.",
    )
    parser.add_argument(
        "--reference", type=str, default="rest", help="rest, or a group that all others are compared with."
    )
    parser.add_argument(
        "--n-genes",
        "--n_genes",
        type=int | None,
        default=None,
        metavar="N",
        help="Genes of each group in the table; by default all, up to two million rows of all groups.",
    )
    parser.add_argument(
        "--csv",
        type=str,
        help="The table as text (default: OUT with the ending .markers.csv); one that is there is replaced.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--run",
        type=str,
        help="Run that OUT was predicted by, where an earlier version did so: OUT does not tell how values are normalised.",
        **OPTIONAL,
    )
    _declare_input(parser)


def _declare_input(parser: ArgumentParser) -> None:
    """Add those that say how the input is read."""
    parser.add_argument(
        "--matrix", type=str, help="Where raw data has its values; the same as --ingest.matrix.", **OPTIONAL
    )
    parser.add_argument(
        "--gene-column",
        "--gene_column",
        type=str,
        help="Column of var that names the genes; the same as --ingest.gene_column. By default as predict does.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--where", type=str, metavar="QUERY", help="Cells that were taken; the same as --ingest.where.", **OPTIONAL
    )
    parser.add_argument(
        "--cells", type=str, metavar="FILE", help="Cells that were taken; the same as --ingest.cells.", **OPTIONAL
    )
    parser.add_argument(
        "--accept",
        type=str,
        default="",
        metavar="NAME[,NAME]",
        help="In what the cells may differ from those of the fit, as of predict: values, totals, versions.",
    )
    declare_workers(parser)
    parser.add_class_arguments(IngestConfig, "ingest")


def run_markers(args: Namespace) -> dict[str, Any]:
    """Rank genes, and tell the best of each group."""
    from scamac_scale.api import markers

    require(args, "input")
    config = args.ingest
    for name in SHORT:
        value, said = getattr(args, name, None), getattr(config, name)
        if value is None:
            continue
        if said not in (getattr(IngestConfig, name), value):
            raise ConfigError(f"--{name.replace('_', '-')} {value} and ingest.{name}={said} differ; give one of them.")
        config = replace(config, **{name: value})
    inputs = args.input[0] if isinstance(args.input, list) and len(args.input) == 1 else args.input
    options = {name: getattr(args, name) for name in ("groupby", "method", "reference", "n_genes", "accept")}
    options |= {name: getattr(args, name, None) for name in ("csv", "run")}
    return markers(args.out, inputs, **options, ingest=config, dask=args.dask, workers=args.workers)
