"""Whether genes of one name are one gene in several inputs: names that are positions, and identifiers that differ."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

from scamac_scale.errors import InputError
from scamac_scale.ingestion.names import are_positions, described, serving_columns, without_version

if TYPE_CHECKING:
    import pandas as pd

    from scamac_scale.ingestion.raw import RawMatrix

logger = logging.getLogger(__name__)

COLUMNS = (
    "gene_ids",
    "gene_id",
    "feature_id",
    "feature_ids",
    "ensembl_id",
    "ensembl_ids",
    "ensembl_gene_id",
    "ensembl",
    "Accession",
)
"""Columns of var that hold identifiers, by Cell Ranger and scanpy, CELLxGENE, others, and loom."""
MOST_OTHER = 0.05
"""Share of the common genes from which on other identifiers are no matter of two releases of an annotation."""
TOLD = 3


class _Seen(NamedTuple):
    """Identifier of each name in the inputs so far, with what they look like and the input that came first."""

    known: dict[str, str]
    looks: str
    name: str


class Identifiers:
    """Identifiers of the genes of inputs that are joined by name, as they are opened one after the other."""

    def __init__(self) -> None:
        self._seen: dict[str, _Seen] | None = None
        self._last: tuple[tuple[str, ...], dict[str, tuple[str, ...]]] | None = None
        self._others: dict[str, int] = {}

    def look(self, raw: RawMatrix, name: str) -> None:
        """Compare an input with those before it.

        Parameters
        ----------
        raw
            Open.
        name
            What the input is called.

        Raises
        ------
        InputError
            If its genes are named by positions, or many of its names stand for other identifiers than in an input before it; only columns
            that all inputs so far have are compared.
        """
        if are_positions(raw.gene_names):
            raise InputError(
                f"{name}: its genes are named by positions ({raw.gene_names[0]}, {raw.gene_names[1]}, ...), which may stand for other genes in "
                f"each input; {serving_columns(raw)}."
            )
        if self._seen == {}:
            return
        as_written = _columns_of(raw)
        if self._last == (raw.gene_names, as_written):
            return
        self._last = (raw.gene_names, as_written)
        found = {column: tuple(map(_plain, texts)) for column, texts in as_written.items()}
        if self._seen is None:
            self._seen = {
                column: _Seen(_named(raw.gene_names, ids), _looks(ids), name) for column, ids in found.items()
            }
            return
        self._seen = {column: seen for column, seen in self._seen.items() if column in found}
        for column, seen in self._seen.items():
            if _looks(found[column]) == seen.looks:  # numbers of one source are no identifiers of another
                self._compare(column, seen, _named(raw.gene_names, found[column]), name)

    def _compare(self, column: str, seen: _Seen, own: dict[str, str], name: str) -> None:
        common = [gene for gene in own if gene in seen.known]
        others = [gene for gene in common if own[gene] != seen.known[gene]]
        if len(others) > max(1, MOST_OTHER * len(common)):
            examples = ", ".join(f"{gene} is {seen.known[gene]} and {own[gene]}" for gene in others[:TOLD])
            raise InputError(
                f"{name}: {len(others):,} of {len(common):,} genes that it shares by name with {seen.name} or others have another {column!r} "
                f"there ({examples}): names do not tell genes in these inputs. Match them by the column: --ingest.gene_column {column}"
            )
        if others:
            self._others[column] = self._others.get(column, 0) + len(others)
        seen.known.update({gene: found for gene, found in own.items() if gene not in seen.known})

    def tell(self) -> None:
        """Warn of the genes that have other identifiers in some inputs, where these were few."""
        for column, count in self._others.items():
            logger.warning(
                "%d genes have the name of one with another %r in an input before; they are taken for one (ingest.gene_column=%s tells "
                "them apart)",
                count,
                column,
                column,
            )


def _columns_of(raw: RawMatrix) -> dict[str, tuple[str, ...]]:
    """Take the identifiers of all genes as they are written, by the columns that hold any; empty where there is none."""
    tables = raw.read_vars()
    if len(tables) != 1 or len(tables[0][1]) != raw.n_genes:
        return {}
    var = tables[0][1]
    return {column: _texts(var[column]) for column in COLUMNS if list(var.columns).count(column) == 1}


def _texts(values: pd.Series) -> tuple[str, ...]:
    texts = values.astype(object)
    return tuple(map(str, texts.where(values.notna(), "").tolist()))


def _plain(text: str) -> str:
    """Write an identifier without version, in capitals."""
    return without_version(text.strip().upper())


def _named(genes: tuple[str, ...], ids: tuple[str, ...]) -> dict[str, str]:
    return {gene: found for gene, found in zip(genes, ids, strict=True) if found}


def _looks(ids: tuple[str, ...]) -> str:
    return described([found for found in ids if found]).partition(" (")[0].removesuffix(" with versions")
