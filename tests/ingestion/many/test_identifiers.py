"""Genes of one name that are others: positions as names, and identifiers that differ."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.names import are_positions, name_doubts

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad

CONFIG = IngestConfig(n_genes=60)
POSITIONS = [str(number) for number in range(200)]


def table(
    adata: ad.AnnData, names: Sequence[str], *, text: bool = True, **columns: Sequence[object]
) -> ad.AnnData:  # 20 of its cells
    found = adata[:20].copy()
    others = {"feature_type": ["Gene Expression"] * 200, "feature_name": list(adata.var_names)} if text else {}
    found.var = pd.DataFrame(others | columns, index=list(names))
    return found


def identifiers(first: int = 1) -> list[str]:
    return [f"ENSG{first + number:011d}" for number in range(200)]


@pytest.mark.parametrize("start", [0, 1])
def test_positions_of_several_inputs_are_refused_with_the_columns_that_serve(
    tiny_adata: ad.AnnData, start: int
) -> None:
    names = [str(start + number) for number in range(200)]
    first, second = table(tiny_adata, names), table(tiny_adata, names)
    with pytest.raises(InputError, match=r"named by positions .*: --ingest.gene_column feature_name\.$"):
        open_inputs([first, second], CONFIG)
    with pytest.raises(InputError, match=r"named by positions .*; name them in var"):
        open_inputs([table(tiny_adata, names, text=False), table(tiny_adata, names, text=False)], CONFIG)
    with open_inputs([first, second], IngestConfig(n_genes=60, gene_column="feature_name")) as raw:
        assert list(raw.gene_names) == tiny_adata.var_names.tolist()


def test_positions_of_one_input_are_a_warning_with_the_columns_that_serve(tiny_adata: ad.AnnData) -> None:
    with open_inputs(table(tiny_adata, POSITIONS, feature_id=identifiers()), CONFIG) as raw:
        (doubt,) = name_doubts(raw)
    assert doubt.endswith("--ingest.gene_column feature_name (or feature_id)")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (POSITIONS, True),
        (POSITIONS[::3], True),
        (POSITIONS[::-1], True),
        (["1", "2", "9", "10", "7157", "672", "100287102"], False),
        (["007", "008"], False),
        (["\u0660", "\u0661"], False),
        (["9" * 5000, "1"], False),
        (["0"], False),
        (["g0", "g1"], False),
    ],
)
def test_positions_are_told_from_numbers_of_genes(names: list[str], expected: bool) -> None:
    assert are_positions(names) is expected


@pytest.mark.parametrize("column", ["gene_ids", "feature_id", "ensembl_id"])
def test_names_that_stand_for_other_identifiers_are_refused(tiny_adata: ad.AnnData, column: str) -> None:
    names = tiny_adata.var_names
    first = table(tiny_adata, names, **{column: identifiers()})
    second = table(tiny_adata, names, **{column: identifiers(500)})
    words = (
        f"200 of 200 genes .* have another '{column}' there .gene000 is ENSG0+1 and ENSG0+500, .*gene_column {column}"
    )
    with pytest.raises(InputError, match=words):
        open_inputs([first, second], CONFIG)
    shifted = table(tiny_adata, names, **{column: identifiers(101)})
    with open_inputs([first, shifted], IngestConfig(n_genes=60, gene_column=column)) as raw:
        assert raw.n_genes == 100
    open_inputs([first, table(tiny_adata, names)], CONFIG).close()


def test_few_other_identifiers_are_counted(tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    names = tiny_adata.var_names
    ids = identifiers()
    versions: list[object] = [f"{one}.{number % 5}" for number, one in enumerate(ids)]
    versions[3:6], versions[10] = ["ENSG99999999999", "ENSG99999999998.1", "ENSG99999999997"], np.nan
    first = table(tiny_adata, names, gene_ids=pd.Categorical(ids))
    with caplog.at_level(logging.WARNING):
        open_inputs([first, table(tiny_adata, names[::-1], gene_ids=ids[::-1])], CONFIG).close()
        open_inputs([first, table(tiny_adata, names, gene_ids=[f"{7 + n * n}" for n in range(200)])], CONFIG).close()
    assert "gene_ids" not in caplog.text  # the same, and such as cannot be compared
    with caplog.at_level(logging.WARNING):
        open_inputs([first, table(tiny_adata, names, gene_ids=versions)], CONFIG).close()
    assert "3 genes have the name of one with another 'gene_ids'" in caplog.text
