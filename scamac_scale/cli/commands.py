"""The commands: their options, and the one function of `scamac_scale.api` that each calls.

What they share stands in ``parsing.py``, what they print in ``show.py``. The functions import when they run, so that help
comes at once.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from scamac_scale.cli import told
from scamac_scale.cli.annotate import declare_annotate, run_annotate
from scamac_scale.cli.clustering import declare_cluster, run_cluster
from scamac_scale.cli.marker_genes import declare_markers, run_markers
from scamac_scale.cli.options import (
    OPTIONAL,
    declare_count,
    declare_cuts,
    declare_matching,
    declare_ranks,
    declare_selection,
    declare_settings,
    declare_workers,
    one_or_all,
    require,
    with_selection,
)
from scamac_scale.cli.refining import declare_refine, run_refine
from scamac_scale.cli.reporting import declare_report, run_report
from scamac_scale.config import Attention, IngestConfig, ScamacConfig
from scamac_scale.errors import ConfigError
from scamac_scale.remote.names import below
from scamac_scale.remote.work import working_in

if TYPE_CHECKING:
    from collections.abc import Callable

    from jsonargparse import ArgumentParser, Namespace

Result = dict[str, Any]
"""What a command returns: plain data, as ``--json`` prints it."""

COUNT_NOTE = "the number of clusters is an estimate, right within one only about two times in five; see --n-clusters"


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command.

    Attributes
    ----------
    summary
        What it does, one sentence.
    usage
        Its required part.
    declare
        Adds its options to a parser.
    run
        Does it.
    config
        Dataclass whose fields are options, if any.
    prefix
        Under which these fields stand, with its dot.
    tell
        Makes the lines that are printed at the end; None prints all that there is as tables.
    has_json_file
        Whether ``--json`` may name a file.
    """

    summary: str
    usage: str
    declare: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], Result]
    config: type | None = None
    prefix: str = ""
    tell: Callable[[Result], list[str]] | None = None
    has_json_file: bool = False


def _declare_demo(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=str, default="demo-out", help="Folder of the results; made if it is missing.")
    parser.add_argument("--cells", type=int | None, help="Add a simulated atlas of so many cells, streamed from disk.")


def _demo(args: Namespace) -> Result:
    from scamac_scale.demonstration import demo

    return demo(args.out, n_cells=args.cells)


def _declare_simulate(parser: ArgumentParser) -> None:
    parser.add_argument("--cells", type=int, help="Cells of the atlas.", **OPTIONAL)
    parser.add_argument("--out", type=str, help="AnnData zarr folder to write.", **OPTIONAL)
    parser.add_argument("--genes", type=int, help="Genes of the atlas (default: 2000); not with --from.", **OPTIONAL)
    parser.add_argument("--types", type=int, help="Cell types (default: 8); not with --from.", **OPTIONAL)
    parser.add_argument("--seed", type=int, default=0, help="Every random choice derives from it.")
    parser.add_argument(
        "--from",
        type=str,
        metavar="FILE",
        help="Resample real labelled cells of counts instead: Poisson counts around mixtures of three cells of one label. For time and "
        "memory; no evidence for how well clusters fit new cells.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--label", type=str, help="With --from: column of obs with the types (default: cell_type).", **OPTIONAL
    )
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str,
        help="With --from: column of obs within whose levels cells are mixed; it is kept.",
        **OPTIONAL,
    )
    parser.add_argument(
        "--files", type=int, help="With --from: files among which the cells are dealt (default: 1).", **OPTIONAL
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing atlas.", **OPTIONAL)


def _simulate(args: Namespace) -> Result:
    from scamac_scale.api import inspect, resample, simulate

    require(args, "cells", "out")
    overwrite, source = getattr(args, "overwrite", False), getattr(args, "from", None)
    names = {"genes": "n_genes", "types": "n_types", "label": "label", "batch_key": "batch_key", "files": "n_files"}
    known = {"genes", "types"} if source is None else {"label", "batch_key", "files"}
    options = {key: getattr(args, name) for name, key in names.items() if getattr(args, name, None) is not None}
    foreign = [f"--{name.replace('_', '-')}" for name, key in names.items() if key in options and name not in known]
    if foreign:
        why = "of no use without --from" if source is None else "of no use with --from, whose file has genes and types"
        raise ConfigError(
            f"simulate: {' and '.join(foreign)} {'is' if len(foreign) == 1 else 'are'} {why}; leave out the one or the other."
        )
    if source is None:
        path = simulate(args.out, args.cells, **options, seed=args.seed, overwrite=overwrite)
        return inspect(path)
    path = resample(source, args.out, n_cells=args.cells, **options, seed=args.seed, overwrite=overwrite)
    if options.get("n_files", 1) == 1:
        return inspect(path)
    return {"path": str(path), "n_cells": args.cells, "files": sorted(str(part) for part in path.glob("*.zarr"))}


def _declare_ingest(parser: ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        type=str,
        nargs="+",
        metavar="INPUT",
        help="Path or URL of an h5ad, AnnData zarr, 10x h5, loom or Matrix Market folder; a pattern in quotes; or a manifest: a .csv, .tsv or "
        ".yaml with a column path, and others that become columns of obs. Cells follow one another in this order.",
    )
    parser.add_argument("--out", type=str, help="Training store to write, a zarr folder or its URL.", **OPTIONAL)
    parser.add_argument(
        "--scratch",
        type=str,
        metavar="DIR",
        help="Folder in which a store for object storage is made before it is put there; SCAMAC_WORK_DIR, or that of "
        "temporary files, where none is named.",
        **OPTIONAL,
    )
    parser.add_argument("--overwrite", action="store_true", help="Replace an existing store.", **OPTIONAL)
    parser.add_argument("--resume", action="store_true", help="Go on where a stopped ingest left off.", **OPTIONAL)
    declare_selection(parser)
    declare_workers(parser)
    parser.add_class_arguments(IngestConfig, "ingest")


def _ingest(args: Namespace) -> Result:
    from scamac_scale.api import ingest, inspect

    require(args, "out")
    config = with_selection(args)
    options = {name: getattr(args, name, False) for name in ("overwrite", "resume")}
    with working_in(getattr(args, "scratch", None)):
        path = ingest(one_or_all(args.inputs), args.out, config, dask=args.dask, workers=args.workers, **options)
    return inspect(path)


def _declare_train(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--store",
        type=str,
        nargs="+",
        help="Training store, or raw data to be normalised on the fly: as many files as ingest takes.",
        **OPTIONAL,
    )
    parser.add_argument("--run", type=str, help="New folder for settings, metrics and the model.", **OPTIONAL)
    declare_ranks(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on from the last checkpoint of the run, with its settings; where there is none, start.",
        **OPTIONAL,
    )
    declare_count(parser)
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str | None,
        default=None,
        metavar="COL[,COL]",
        help="Columns of obs that tell which technical batch (donor, chip, technology) a cell is from; by default those that the store "
        "was ingested with, none ignores them.",
    )
    declare_settings(parser)


def _train(args: Namespace) -> Result:
    config = ScamacConfig(**{field.name: getattr(args, field.name) for field in fields(ScamacConfig)})
    require(args, "store", "run")
    from scamac_scale.api import ScAMAC

    report = (
        ScAMAC(config=config).fit(one_or_all(args.store), run=args.run, resume=getattr(args, "resume", False)).report
    )
    note = {"note": COUNT_NOTE} if report.get("is_count_estimated") else {}
    return {"run": args.run, "store": args.store, "model": below(args.run, "model"), **report, **note}


def _declare_predict(parser: ArgumentParser) -> None:
    parser.add_argument("--run", type=str, help="Run folder with the model.", **OPTIONAL)
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="Training store, or raw data: as many files as ingest takes. Results are in their order.",
        **OPTIONAL,
    )
    parser.add_argument("--out", type=str, help="Result to write, ending in .zarr or .h5ad.", **OPTIONAL)
    parser.add_argument("--denoised", action="store_true", help="Add the reconstructed expression.", **OPTIONAL)
    parser.add_argument(
        "--denoised-batch",
        "--denoised_batch",
        type=str,
        default="own",
        help="Technical batch in which cells are reconstructed: own, mean (of all), or the name of one.",
    )
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str | None,
        default=None,
        metavar="COL[,COL]",
        help="Columns of the input's obs that stand for the batch key of the fit; by default the same names. Cells of batches that the fit "
        "has not seen are placed among the others.",
    )
    declare_matching(parser)
    parser.add_argument(
        "--attention",
        type=Attention,
        default="trained",
        help="Cells that every cell attends to: trained (as in training) or atlas (all cells of the input, in a time that "
        "grows with the square of their number).",
    )
    declare_cuts(parser)
    declare_ranks(parser)
    declare_workers(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on where a prediction into --out was stopped; where none was, start.",
        **OPTIONAL,
    )


def _predict(args: Namespace) -> Result:
    from scamac_scale.api import ScAMAC, inspect

    require(args, "run", "input", "out")
    model = ScAMAC.load(below(args.run, "model"))
    options = {
        name: getattr(args, name)
        for name in ("matrix", "gene_column", "attention", "batch_key", "denoised_batch", "accept")
    }
    options |= {name: getattr(args, name) for name in ("n_clusters", "cut", "levels")}
    options |= {"dask": args.dask, "workers": args.workers}
    options["denoised"] = getattr(args, "denoised", False)
    path = model.predict(one_or_all(args.input), args.out, resume=getattr(args, "resume", False), **options)
    return {**inspect(path), "run": args.run}


def _declare_evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("out", type=str, metavar="OUT", help="Result of predict.")
    parser.add_argument("--label", type=str, help="Column of obs with the labels.", **OPTIONAL)
    parser.add_argument("--key", type=str, default="scamac_cluster", help="Column of obs with the clusters.")
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str,
        help="Columns of obs with the technical batches, commas between them: tells how well these mix.",
        **OPTIONAL,
    )
    parser.add_argument("--basis", type=str, default="X_scAMAC", help="Key of obsm in which batches are to mix.")
    parser.add_argument(
        "--unlabelled",
        type=str,
        metavar="NAME[,NAME]",
        help="Labels that mean none, such as unknown; texts of missing values (nan, NA, None) count so anyway.",
        **OPTIONAL,
    )


def _evaluate(args: Namespace) -> Result:
    from scamac_scale.api import evaluate

    label, batch_key = getattr(args, "label", None), getattr(args, "batch_key", None)
    if label is None and batch_key is None:
        raise ConfigError("--label must be given, for ARI and NMI, or --batch-key, for how batches mix, or both.")
    named = {} if label is None else {"label": label}
    unlabelled = getattr(args, "unlabelled", None)
    return named | evaluate(args.out, label, key=args.key, batch_key=batch_key, basis=args.basis, unlabelled=unlabelled)


def _declare_inspect(parser: ArgumentParser) -> None:
    parser.add_argument("path", type=str, metavar="PATH", help="A store, run, model, result or atlas.")
    parser.add_argument("--verify", action="store_true", help="Read every chunk back.", **OPTIONAL)


def _inspect(args: Namespace) -> Result:
    from scamac_scale.api import inspect

    return inspect(args.path, verify=getattr(args, "verify", False))


COMMANDS = {
    "demo": Command(
        summary="Run the whole pipeline on real labelled cells that scanpy carries; no network is needed.",
        usage="",
        declare=_declare_demo,
        run=_demo,
    ),
    "cluster": Command(
        summary="Cluster the cells of some files: ingest, train, predict, markers and report in one.",
        usage="INPUT... --out OUT.h5ad|OUT.zarr [--batch-key COLUMN] [--n-clusters K|auto]",
        declare=declare_cluster,
        run=run_cluster,
        config=ScamacConfig,
        tell=told.of_cluster,
    ),
    "simulate": Command(
        summary="Write a labelled synthetic atlas of raw counts.",
        usage="--cells N --out PATH",
        declare=_declare_simulate,
        run=_simulate,
    ),
    "ingest": Command(
        summary="Turn a raw file into a training store.",
        usage="INPUT --out STORE [--batch-key COLUMN]",
        declare=_declare_ingest,
        run=_ingest,
        config=IngestConfig,
        prefix="ingest.",
        tell=told.of_ingest,
    ),
    "train": Command(
        summary="Fit the model to all cells of a store.",
        usage="--store STORE --run RUN [--n-clusters K|auto]",
        declare=_declare_train,
        run=_train,
        config=ScamacConfig,
        tell=told.of_train,
    ),
    "predict": Command(
        summary="Write clusters, latents and memberships of cells, those of the fit or new ones.",
        usage="--run RUN --input STORE_OR_ANNDATA --out OUT.zarr|OUT.h5ad",
        declare=_declare_predict,
        run=_predict,
        tell=told.of_predict,
    ),
    "refine": Command(
        summary="Cut clusters further, each with its own genes, where one population cannot explain the cut.",
        usage="--run RUN --input ATLAS --out OUT.zarr|OUT.h5ad [--result RESULT] [--clusters 3,7|all]",
        declare=declare_refine,
        run=run_refine,
    ),
    "annotate": Command(
        summary="Predict cells, and give them the labels of a reference, with a probability; or unknown.",
        usage="--run RUN --reference REF --label COLUMN --input NEW --out OUT.zarr|OUT.h5ad",
        declare=declare_annotate,
        run=run_annotate,
    ),
    "evaluate": Command(
        summary="Score the clusters of a result against labels, and how well technical batches mix.",
        usage="OUT [--label KEY] [--batch-key KEYS]",
        declare=_declare_evaluate,
        run=_evaluate,
        has_json_file=True,
    ),
    "markers": Command(
        summary="Rank the genes of each cluster of a result, all genes in one pass over the raw cells.",
        usage="OUT --input ATLAS [--groupby COLUMN]",
        declare=declare_markers,
        run=run_markers,
        config=IngestConfig,
        prefix="ingest.",
        has_json_file=True,
    ),
    "report": Command(
        summary="Write one HTML page about a run and its result: what was done, what came out, what looks wrong.",
        usage="--run RUN [--result RESULT] [--label KEY] [--out FOLDER]",
        declare=declare_report,
        run=run_report,
    ),
    "inspect": Command(
        summary="Say what a store, run, model or result holds.",
        usage="PATH",
        declare=_declare_inspect,
        run=_inspect,
    ),
}
"""Every command of the program, in the order of its help."""
