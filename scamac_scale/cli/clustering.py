"""The command that does all: files in, clusters and a page out."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from scamac_scale.cli.options import (
    OPTIONAL,
    declare_count,
    declare_selection,
    declare_settings,
    one_or_all,
    require,
    with_selection,
)
from scamac_scale.config import IngestConfig, ScamacConfig

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def declare_cluster(parser: ArgumentParser) -> None:
    """Add the options of ``cluster``."""
    parser.add_argument(
        "inputs",
        type=str,
        nargs="+",
        metavar="INPUT",
        help="Files with the cells, as ingest takes them: one or many, or a manifest.",
    )
    parser.add_argument("--out", type=str, help="Result to write, ending in .h5ad or .zarr.", **OPTIONAL)
    declare_count(parser)
    declare_selection(parser)
    parser.add_argument(
        "--label", type=str, help="Column of obs with labels, with which the report compares the clusters.", **OPTIONAL
    )
    parser.add_argument(
        "--work",
        type=str,
        help="Folder for the training store and the run, which stay: NAME.work beside the result, where none is named.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on where the same command was stopped; where none was, start.",
        **OPTIONAL,
    )
    parser.add_class_arguments(IngestConfig, "ingest")
    declare_settings(parser)


def run_cluster(args: Namespace) -> dict[str, Any]:
    """Cluster the cells of some files."""
    from scamac_scale.api import cluster

    require(args, "out")
    values = with_selection(args)
    settings = {field.name: getattr(args, field.name) for field in fields(ScamacConfig) if field.name in args}
    config = ScamacConfig(**{**settings, "batch_key": None})
    return cluster(
        one_or_all(args.inputs),
        args.out,
        config=config,
        ingest=values,
        label=getattr(args, "label", None),
        work=getattr(args, "work", None),
        resume=getattr(args, "resume", False),
    )
