"""Options that several commands share, and what becomes of their values.

Nothing heavy is imported here: help must come at once.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from scamac_scale.config import Count, IngestConfig, ScamacConfig
from scamac_scale.errors import ConfigError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# Any: argparse takes values of every type
OPTIONAL: dict[str, Any] = {"default": argparse.SUPPRESS}
"""Options that are absent from the result, and from ``--print_config``, unless they are given."""


def declare_settings(parser: ArgumentParser) -> None:
    """Add all settings of a fit but those that have a short name."""
    parser.add_class_arguments(ScamacConfig, skip={"n_clusters", "batch_key"})
    # the parser prints listed dataclasses only as plain dicts
    parser.set_defaults({"train.phases": [asdict(phase) for phase in ScamacConfig().train.phases]})


def declare_count(parser: ArgumentParser) -> None:
    """Add the number of clusters of a fit."""
    parser.add_argument(
        "--n-clusters",
        "--n_clusters",
        type=Count,
        default="auto",
        metavar="K|auto",
        help="Number of clusters; auto estimates it, which is right within one only about two times in five.",
    )


def declare_cuts(parser: ArgumentParser) -> None:
    """Add the options that say how the tree of a model is cut."""
    parser.add_argument(
        "--n-clusters",
        "--n_clusters",
        type=int | None,
        default=None,
        metavar="K",
        help="Clusters into which the tree of the model is cut anew, without training; by default those of the fit.",
    )
    parser.add_argument(
        "--cut",
        type=float | None,
        default=None,
        metavar="HEIGHT",
        help="Height at which the tree is cut instead, 0 to 1: one less the share of clusterings that put two groups together.",
    )
    parser.add_argument(
        "--levels",
        type=str,
        default="",
        metavar="K[,K]",
        help="Coarser and finer clusters beside the others, each nested in the next: 5,20 adds the columns scamac_cluster_5 and "
        "scamac_cluster_20 to obs.",
    )


def declare_matching(parser: ArgumentParser) -> None:
    """Add the options that say how raw cells are matched with the fit."""
    parser.add_argument("--matrix", type=str, default="X", help="Where raw data has its values: X, raw, or a layer.")
    parser.add_argument(
        "--gene-column",
        "--gene_column",
        type=str | None,
        default=None,
        help="Column of var that names the genes as the fit does; by default its index, or the column that has most of them where that "
        "has too few.",
    )
    parser.add_argument(
        "--accept",
        type=str,
        default="",
        metavar="NAME[,NAME]",
        help="In what the cells may differ from those of the fit, which is refused otherwise: values (of another kind, base or total of "
        "logarithms), totals (over fewer genes), versions (of Ensembl identifiers).",
    )


def declare_ranks(parser: ArgumentParser) -> None:
    """Add the options of a command that several processes share."""
    parser.add_argument(
        "--devices", type=int, help="Processes on this machine, each with a GPU where there are some.", **OPTIONAL
    )
    parser.add_argument(
        "--num-nodes", type=int, help="Machines; the same command is started on each. See docs/ranks.md.", **OPTIONAL
    )
    parser.add_argument(
        "--max-restarts",
        type=int,
        help="How often --devices starts all processes again, from the last checkpoint, when one is lost.",
        **OPTIONAL,
    )


def declare_selection(parser: ArgumentParser) -> None:
    """Add the short names of settings by which raw data is read: see `with_selection`."""
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str,
        metavar="COLUMN[,COLUMN]",
        help="Columns of obs that tell which technical batch (donor, chip, technology) a cell is from; the same as "
        "--ingest.batch_key.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--where",
        type=str,
        metavar="QUERY",
        help="Take some cells: donor != 'D7' and age > 30; the same as --ingest.where.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--cells",
        type=str,
        metavar="FILE",
        help="Take the cells that a text file names, one a line, or input and name with a tab between; the same as --ingest.cells.",
        **OPTIONAL,
    )


def with_selection(args: Namespace) -> IngestConfig:
    """Take the short names into the settings of the input.

    Raises
    ------
    ConfigError
        If both are given and differ.
    """
    config: IngestConfig = args.ingest
    for name in ("batch_key", "where", "cells"):
        value, said = getattr(args, name, None), getattr(config, name)
        if value is None:
            continue
        if said not in (None, value):
            raise ConfigError(f"--{name.replace('_', '-')} {value} and ingest.{name}={said} differ; give one of them.")
        config = replace(config, **{name: value})
    return config


def one_or_all(inputs: str | list[str]) -> str | list[str]:
    """Give a single input as itself."""
    return inputs[0] if isinstance(inputs, list) and len(inputs) == 1 else inputs


def declare_workers(parser: ArgumentParser) -> None:
    """Add the options of a command whose work a dask cluster may do."""
    parser.add_argument(
        "--dask",
        type=str | None,
        default=None,
        metavar="ADDRESS",
        help="Address of a dask scheduler, such as tcp://host:8786, whose workers do the work. See docs/dask.md.",
    )
    parser.add_argument(
        "--workers", type=int | None, default=None, metavar="N", help="Start so many dask workers on this machine."
    )


def require(args: Namespace, *names: str) -> None:
    """Check that options are given, on the command line or in the config file.

    Raises
    ------
    ConfigError
        Naming those that are missing.
    """
    missing = [f"--{name}" for name in names if getattr(args, name, None) is None]
    if missing:
        raise ConfigError(f"{' and '.join(missing)} must be given, here or in the --config file.")
