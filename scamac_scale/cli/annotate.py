"""The command that carries labels over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.cli.options import OPTIONAL, declare_matching, declare_ranks, declare_workers, require
from scamac_scale.remote.names import below

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace


def declare_annotate(parser: ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--run", type=str, help="Run folder with the model.", **OPTIONAL)
    parser.add_argument(
        "--reference",
        type=str,
        nargs="+",
        help="Labelled cells: the store or the files of the fit, or others with the genes of the model.",
        **OPTIONAL,
    )
    parser.add_argument("--label", type=str, help="Column of the reference's obs with the labels.", **OPTIONAL)
    parser.add_argument(
        "--input",
        type=str,
        nargs="+",
        help="Cells that get labels: a training store, or raw data, as many files as ingest takes. Results are in their order.",
        **OPTIONAL,
    )
    parser.add_argument("--out", type=str, help="Result to write, ending in .zarr or .h5ad.", **OPTIONAL)
    parser.add_argument(
        "--unknown",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="Share of the reference's cells, when held out, that are called unknown, 0 to 0.5; 0 labels all cells.",
    )
    parser.add_argument(
        "--unlabelled",
        type=str,
        default="",
        metavar="NAME[,NAME]",
        help="Labels of the reference that mean none; unknown and texts of missing values (nan, NA, None) do so anyway.",
    )
    parser.add_argument(
        "--held-out",
        "--held_out",
        type=str | None,
        default=None,
        metavar="COL[,COL]",
        help="Columns of the reference's obs, such as the donor: cells are held out together with all others of the same values, when "
        "probabilities are calibrated; by default the batch key of the fit.",
    )
    parser.add_argument(
        "--batch-key",
        "--batch_key",
        type=str | None,
        default=None,
        metavar="COL[,COL]",
        help="Columns of obs, of the reference and the input, that stand for the batch key of the fit; by default the same names.",
    )
    declare_matching(parser)
    declare_ranks(parser)
    declare_workers(parser)
    parser.add_argument(
        "--resume",
        action="store_true",
        help="Go on where a run of this command into --out was stopped; where none was, start.",
        **OPTIONAL,
    )


def run_annotate(args: Namespace) -> dict[str, Any]:
    """Label the cells; tells what the result holds."""
    from scamac_scale.api import ScAMAC, inspect

    require(args, "run", "reference", "label", "input", "out")
    model = ScAMAC.load(below(args.run, "model"))
    names = ("unknown", "unlabelled", "held_out", "matrix", "gene_column", "batch_key", "accept", "dask", "workers")
    options = {name: getattr(args, name) for name in names}
    reference, data = (
        each[0] if isinstance(each, list) and len(each) == 1 else each for each in (args.reference, args.input)
    )
    path = model.annotate(reference, args.label, data, args.out, resume=getattr(args, "resume", False), **options)
    return inspect(path)
