"""Several inputs for a model that is fitted: each is compared with the fit alone, and they meet in the genes of the model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.cells.genes import locate_genes
from scamac_scale.ingestion.formats.gene_names import column_with
from scamac_scale.ingestion.many.genes import JointGenes
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.names import matched_names
from scamac_scale.ingestion.source import compare_with_fit

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from scamac_scale.cells.genes import GeneSpace
    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.many.genes import Names
    from scamac_scale.ingestion.raw import RawMatrix


def open_for_model(
    data: Any,  # Any: as of `list_inputs`
    config: IngestConfig,
    space: GeneSpace,
    accepted: Collection[str],
) -> RawMatrix:
    """Open one or several inputs whose cells a model is to see.

    Parameters
    ----------
    data, config
        As of `open_inputs`.
    space
        Genes of the model.
    accepted
        Names of `config.Accept`: in what each input may differ from the fit.

    Returns
    -------
    RawMatrix
        Of several inputs the genes that count for a total in the fit, if any input has them: where one lacks a gene it is zero, as it is
        where that input is alone.

    Raises
    ------
    InputError
        As of `open_inputs`, and if one of several inputs lacks more than half of the chosen genes, or differs from the fit in what is not
        accepted; a single one is compared by `NormalisedSource`.
    """

    def onto_model(of_inputs: Sequence[tuple[str, Names]], config: IngestConfig) -> JointGenes:
        matched = {genes: tuple(matched_names(space, genes, accepted)) for _, genes in of_inputs}
        known = set().union(*matched.values())
        names = tuple(name for name in space.filtered if name in known)
        targets = {genes: locate_genes(own, names) for genes, own in matched.items()}
        return JointGenes(names, tuple(targets[genes] for _, genes in of_inputs))

    def check(raw: RawMatrix) -> None:
        compare_with_fit(raw, space, accepted)

    return open_inputs(data, config, onto_model, check, lambda raw: column_with(space.chosen, raw))
