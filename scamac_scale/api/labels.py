"""Labels of a reference, carried over to other cells. Everything heavy is imported when it is called."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

from scamac_scale.api.joining import joined_as
from scamac_scale.config import IngestConfig, joined_key
from scamac_scale.ranks.place import find_place

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import anndata as ad

    from scamac_scale.api.files import Data
    from scamac_scale.fitted import FittedModel


class AnnotateOptions(TypedDict, total=False):
    """Options of `ScAMAC.annotate`.

    Attributes
    ----------
    unknown
        Share of the cells of the reference, when held out, that are called unknown, 0 to .5; 0 labels all cells. By default .05.
    unlabelled
        Labels of the reference that mean none, commas between them or a list; ``unknown`` and texts of missing values do so anyway.
    held_out
        Columns of obs of the reference: cells are held out together with all others of the same values, when probabilities are
        calibrated. None takes the technical batches of the fit, where the reference has their columns; else cells are held out at random.
    matrix, gene_column, batch_key, accept
        As of `ScAMAC.predict`, of both.
    resume, dask, workers
        As of `ScAMAC.predict`.
    """

    unknown: float
    unlabelled: str | Sequence[str]
    held_out: str | Sequence[str] | None
    matrix: str
    gene_column: str | None
    batch_key: str | Sequence[str] | None
    accept: str | Sequence[str]
    resume: bool
    dask: Any
    workers: int | None


class Reference(NamedTuple):
    """Labelled cells, and the column of obs with the labels."""

    data: Data
    label: str


def annotate(
    fitted: FittedModel, reference: Reference, data: Data, out: str | Path | None, asked: AnnotateOptions
) -> ad.AnnData | Path | str:
    """Predict cells, and give them the labels of a reference; see `ScAMAC.annotate`."""
    from scamac_scale.fitted import on_gpu
    from scamac_scale.infer.labels.column import read_labels
    from scamac_scale.infer.labels.options import LabelOptions
    from scamac_scale.infer.labels.rule import labelling_of
    from scamac_scale.infer.options import PredictOptions, accepted_names
    from scamac_scale.infer.output.place import find_out
    from scamac_scale.infer.predict import check_ranks, predict
    from scamac_scale.infer.spread import spread_over
    from scamac_scale.ranks.collectives import from_first
    from scamac_scale.sources import open_source

    place = find_place()
    home = None if out is None else find_out(out)
    resume, key = asked.get("resume", False), joined_key(asked.get("batch_key"))
    options = PredictOptions(batch_key=key, accept=accepted_names(asked.get("accept", ())))
    about = LabelOptions(
        label=reference.label,
        unknown=asked.get("unknown", LabelOptions.unknown),
        unlabelled=accepted_names(asked.get("unlabelled", ())),
        held_out=joined_key(asked.get("held_out")),
    )
    check_ranks(home, place.world)
    with joined_as(fitted.config, place) as world, ExitStack() as stack:
        if home is not None:
            from_first(lambda: home.check(resume=resume), world)
        ingest = IngestConfig(matrix=asked.get("matrix", "X"), gene_column=asked.get("gene_column"))
        known = stack.enter_context(open_source(reference.data, fitted.genes, ingest=ingest, accepted=options.accept))
        columns = tuple(part.strip() for part in key.split(",")) if key else tuple(fitted.tech_levels)
        column = read_labels(known.obs, about, columns, fitted.config.seed, "obs of the reference")
        source = stack.enter_context(open_source(data, fitted.genes, ingest=ingest, accepted=options.accept))
        spread = stack.enter_context(spread_over(data, ingest, asked.get("dask"), asked.get("workers")))
        if spread is None:
            stack.enter_context(on_gpu(fitted))
        options = replace(options, labels=labelling_of(known, column, about, world))
        return predict(fitted, source, home, options, world=world, resume=resume, spread=spread)
