"""Whether new cells are such as those of a fit: what is refused, what is said, and what may be accepted."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError, StoreError
from scamac_scale.ingestion.compare import compare_records
from scamac_scale.ingestion.names import described, matched_names, name_doubts
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.statistics import measure
from scamac_scale.sources import open_source

Values = np.ndarray[Any, Any]


def cells(n_cells: int = 200, n_genes: int = 200) -> ad.AnnData:
    rng = np.random.default_rng(0)
    rates = rng.gamma(1, 1, (2, n_genes))
    x = rng.poisson(rates[np.arange(n_cells) % 2] * rng.lognormal(1, 0.4, (n_cells, 1)))
    var = pd.DataFrame(index=[f"Gene{i}" for i in range(n_genes)])
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)])
    return ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=var)


def logged(adata: ad.AnnData, total: float = 1e4, base: float = math.e) -> ad.AnnData:
    x = adata.X.toarray()
    adata.X = sparse.csr_matrix((np.log1p(x / x.sum(1, keepdims=True) * total) / math.log(base)).astype(np.float32))
    return adata


def fitted(adata: ad.AnnData, **settings: Any) -> GeneSpace:
    return measure(open_raw(adata), IngestConfig(n_genes=50, **settings)).gene_space


COUNTS, LOGS = fitted(cells()), fitted(logged(cells()))


@pytest.mark.parametrize(
    ("space", "adata"),
    [
        (COUNTS, cells()),
        (COUNTS, cells()[:100]),
        (COUNTS, cells()[::2]),
        (COUNTS, cells()[:3]),
        (LOGS, logged(cells())[1::2]),
        (LOGS, logged(cells())[:, 5:]),
        (LOGS, logged(cells())[:2]),
        (replace(LOGS, values=None), logged(cells())),
        (replace(COUNTS, values=None), cells()[1::2]),
    ],
)
def test_cells_like_those_of_the_fit_pass_without_a_word(
    space: GeneSpace, adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), open_source(adata.copy(), replace(space, chosen=space.chosen[10:])):
        assert caplog.text == ""


@pytest.mark.parametrize(
    ("adata", "said"),
    [
        (logged(cells(), 1e6), "logarithms of 1,000,000 a cell, and the model was fitted to logarithms of 10,000"),
        (logged(cells(), base=2), "logarithms in base 2, and the model was fitted to base e"),
        (logged(cells(), 1e6)[:, ::2], "logarithms of 1"),
        (
            cells(),
            "holds counts values (all are whole), and the model was fitted to log (base e, 10,000 a cell) values",
        ),
    ],
)
def test_other_logarithms_are_refused_unless_accepted(
    adata: ad.AnnData, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = [name for name in LOGS.chosen if name in adata.var_names]
    space = replace(LOGS, chosen=tuple(kept))
    with pytest.raises(InputError, match="or accept it with --accept values") as caught:
        open_source(adata.copy(), space)
    assert said in str(caught.value)
    with caplog.at_level(logging.WARNING), open_source(adata.copy(), space, accepted=("values",)):
        assert said in caplog.text


def test_values_as_they_were_at_the_fit_pass_whatever_was_said() -> None:
    as_linear = fitted(logged(cells()), kind="linear")
    assert as_linear.values is not None
    assert (as_linear.kind, as_linear.values.seen) == ("linear", "log")
    open_source(logged(cells()), as_linear)
    with pytest.raises(InputError, match="the model was fitted to log"):
        open_source(cells(), as_linear)


def test_only_the_chosen_genes_are_refused_with_their_share_of_the_total() -> None:
    with pytest.raises(
        InputError, match=r"of the 2\d\d genes .* 1\d\d are missing; they made up \d\d\.\d% .* --accept totals"
    ) as caught:
        open_source(cells()[:, list(COUNTS.chosen)].copy(), COUNTS)
    others = cells()[:, [name for name in COUNTS.filtered if name not in COUNTS.chosen]].X.toarray()
    whole = cells()[:, list(COUNTS.filtered)].X.toarray().sum(axis=1)
    told = float(str(caught.value).split("they made up ")[1].split("%")[0])
    assert told == pytest.approx(100 * (others.sum(axis=1) / whole).mean(), abs=0.2)  # kept to three digits a gene
    with pytest.raises(InputError, match=r"they are \d\d\.\d% of these genes"):
        open_source(cells()[:, list(COUNTS.chosen)].copy(), replace(COUNTS, values=None))
    open_source(cells()[:, list(COUNTS.chosen)].copy(), COUNTS, accepted=("totals",)).close()


def test_a_few_missing_genes_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    few = [name for name in COUNTS.filtered if name not in COUNTS.chosen][:3]
    with (
        caplog.at_level(logging.WARNING),
        open_source(cells()[:, [n for n in COUNTS.filtered if n not in few]].copy(), COUNTS),
    ):
        assert "3 are missing; they made up " in caplog.text


@pytest.mark.parametrize("space", [COUNTS, LOGS], ids=["counts", "log"])
def test_padding_with_zeros_is_told_with_its_share(space: GeneSpace, caplog: pytest.LogCaptureFixture) -> None:
    adata = cells() if space is COUNTS else logged(cells())
    x = adata.X.toarray()
    x[:, np.isin(adata.var_names, space.chosen[:40])] = 0
    x[:, np.flatnonzero(~np.isin(adata.var_names, space.chosen))[:60]] = 0
    adata.X = sparse.csr_matrix(x)
    with open_source(adata.copy(), space, accepted=("totals",)):
        assert re.search(
            r"of the 200 genes .*, 100 are zero in every cell that was looked at; they (made up|held) \d\d\.\d ?%",
            caplog.text,
        )
    if space is COUNTS:  # what is missing by name is refused, whatever else is zero
        with pytest.raises(InputError, match=r"60 are missing and 40 are zero in every .*--accept totals"):
            open_source(adata[:, (x.sum(axis=0) > 0) | np.isin(adata.var_names, space.chosen[:40])].copy(), space)


def test_a_table_that_is_mostly_padding_is_refused_unless_accepted() -> None:
    adata = cells()
    x = adata.X.toarray()
    x[:, 50:] = 0
    adata.X = sparse.csr_matrix(x)
    with pytest.raises(InputError, match=r"are zero in every cell .*--accept totals"):
        open_source(adata, COUNTS)
    open_source(adata, COUNTS, accepted=("totals",)).close()


def test_cells_of_one_type_are_no_padding(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(4)
    rates = rng.gamma(0.5, 1.0, size=300) * np.where(np.arange(300) % 6 == np.arange(6)[:, None], 6.0, 0.2)
    x = rng.poisson(np.repeat(rates, 50, axis=0))
    names = [f"Gene{i}" for i in range(300)]
    whole = ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), var=pd.DataFrame(index=names))
    space = fitted(whole)
    for part in (whole[:50], whole[100:110], whole[250:252]):
        with open_source(part.copy(), space):
            pass


def test_a_rare_type_that_shares_no_gene_with_the_others_passes_as_logarithms_and_else_where_it_is_accepted() -> None:
    is_rare = np.arange(200) % 10 > 7
    rates = np.where((np.arange(100) < 80) != is_rare[:, None], 3.0, 0.0)
    x = np.random.default_rng(1).poisson(rates).astype(np.float32)
    whole = ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=[f"Gene{i}" for i in range(100)]))
    for part in (is_rare, ~is_rare):
        open_source(logged(whole)[part].copy(), fitted(logged(whole))).close()
        open_source(whole[part].copy(), fitted(whole), accepted=("totals",)).close()


def test_variable_genes_of_one_type_may_hold_far_more_than_those_of_all(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(5)
    is_rare = np.arange(400) % 50 == 0
    held = np.where(is_rare, 0.9, 0.02)[:, None]  # share of the total in the first 60 genes
    rates = np.hstack([held * rng.dirichlet(np.ones(60), 400), (1 - held) * np.full((400, 140), 1 / 140)])
    x = rng.poisson(rates * rng.lognormal(9, 0.4, (400, 1))).astype(np.float32)
    names = [f"Gene{i}" for i in range(200)]
    whole = logged(ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=names)))[:, :60].copy()
    space = fitted(whole)
    assert space.values is not None
    assert space.values.total is None
    with open_source(whole[is_rare].copy(), space):
        assert "times as much a cell as the model was fitted to" in caplog.text
    with pytest.raises(InputError, match=r"holds logarithms of 0\.0\d+ times as much"):
        open_source(logged_again(whole, 0.01), space)


def logged_again(adata: ad.AnnData, factor: float) -> ad.AnnData:
    """Logarithms of the same values, scaled otherwise."""
    adata = adata.copy()
    adata.X = sparse.csr_matrix(np.log1p(np.expm1(adata.X.toarray()) * factor).astype(np.float32))
    return adata


@pytest.mark.parametrize("n_genes", [200, 80])
def test_a_few_shallow_cells_of_logarithms_are_not_taken_for_other_values(n_genes: int) -> None:
    rng = np.random.default_rng(6)
    x = rng.poisson(rng.gamma(0.3, 1, 200) * rng.lognormal(-0.5, 0.7, (400, 1))).astype(np.float32)
    x[:, 0] += 1  # no cell is empty
    names = [f"Gene{i}" for i in range(200)]
    whole = logged(ad.AnnData(sparse.csr_matrix(x), var=pd.DataFrame(index=names)))[:, :n_genes].copy()
    space = fitted(whole)
    for start in range(0, 120, 3):
        for n_cells in (1, 2, 3):
            open_source(whole[start : start + n_cells].copy(), space).close()
    with pytest.raises(InputError, match="holds counts values"):
        open_source(ad.AnnData(sparse.csr_matrix(x[:2] * 30), var=pd.DataFrame(index=names)), space)


def test_two_cells_of_some_genes_may_agree_on_a_total_in_another_base_by_chance() -> None:
    whole = logged(cells())[:, :80].copy()
    space = fitted(whole)
    assert space.values is not None
    assert space.values.total is None
    two = whole[:2].X.toarray()
    sums = (2.0**two - 1).sum(axis=1)
    two[1] = np.log2(1 + (2.0 ** two[1] - 1) * sums[0] / sums[1])
    open_source(ad.AnnData(sparse.csr_matrix(two.astype(np.float32)), var=whole.var), space).close()


def test_stores_are_compared_by_what_they_noted() -> None:
    other = replace(LOGS, values=fitted(logged(cells(), 1e6)).values)
    with pytest.raises(InputError, match=r"s\.zarr holds logarithms of 1,000,000 a cell, .* --accept values"):
        compare_records("s.zarr", other, LOGS)
    compare_records("s.zarr", other, LOGS, ("values",))
    compare_records("s.zarr", replace(other, values=None), LOGS)
    compare_records("s.zarr", LOGS, LOGS)
    assert other == LOGS  # what values looked like changes nothing of what becomes of a cell


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": 0.5}, "positive"),
        ({"means": [1.0]}, "one for each"),
        ({"total": "many"}, "finite number"),
        ({"total": -1}, "positive"),
    ],
)
def test_a_damaged_record_is_refused(changes: dict[str, Any], said: str) -> None:
    plain = LOGS.to_dict()
    assert GeneSpace.from_dict(plain).values == LOGS.values
    values: Any = plain["values"]
    with pytest.raises(StoreError, match=said):
        GeneSpace.from_dict(plain | {"values": values | changes})


ENSEMBL = [f"ENSG{i:011d}" for i in range(60)]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (list(map(str, range(60))), "positions (0, 1, ...)"),
        (ENSEMBL, "Ensembl identifiers (ENSG00000000000, human)"),
        ([f"ENSMUSG{i:011d}.3" for i in range(60)], "Ensembl identifiers with versions (ENSMUSG00000000000.3, mouse)"),
        (["CD3E", "GAPDH", "MT-CO1"], "symbols in capitals, as of human genes (CD3E)"),
        (["Cd3e", "Gapdh", "Actb"], "symbols with small letters, as of mouse genes (Cd3e)"),
        (["ACGTACGTACGTACGT-1", "TTGTACGTACGTACGT-1"], "barcodes of cells (ACGTACGTACGTACGT-1)"),
        ([], "no names"),
    ],
)
def test_names_are_described(names: list[str], said: str) -> None:
    assert described(names) == said


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        (str.upper, "but for capital letters (the model has Gene"),
        (lambda name: name.removeprefix("Gene"), "The model names symbols with small letters, as of mouse genes (Gene"),
    ],
)
def test_genes_that_are_named_otherwise_say_how(rename: Any, said: str) -> None:
    adata = cells()
    adata.var_names = list(map(rename, adata.var_names))
    with pytest.raises(InputError, match="has 0 of the 50 genes") as caught:
        open_source(adata, COUNTS)
    assert said in str(caught.value)


def test_a_transposed_matrix_is_told() -> None:
    with pytest.raises(InputError, match=r"the matrix is transposed; cells are rows \(adata\.T\)"):
        open_source(cells().T.copy(), COUNTS)
    adata = cells(60, 40)
    adata.var_names = list(map(str, range(40)))
    assert "named by positions (0, 1, ...)" in name_doubts(open_raw(adata))[0]
    assert name_doubts(open_raw(cells())) == []


def test_versions_are_left_out_where_that_is_asked_for() -> None:
    plain = cells(60, 60)
    plain.var_names = ENSEMBL
    space = fitted(plain)
    adata = plain.copy()
    adata.var_names = [f"{name}.{i % 7 + 1}" for i, name in enumerate(ENSEMBL)]
    with pytest.raises(InputError, match=r"but for the versions of Ensembl identifiers: .* --accept versions"):
        open_source(adata, space)
    with open_source(adata, space, accepted=("versions",)) as versioned, open_source(plain, space) as same:
        rows = np.arange(60)
        np.testing.assert_array_equal(versioned.read(rows).data, same.read(rows).data)
    twice = ["ENSG00000000000.1", "ENSG00000000000.2", "ENSG00000000001.9"]
    assert matched_names(space, twice, ("versions",)) == [*twice[:2], "ENSG00000000001"]


def test_logarithms_that_are_accepted_by_a_model_of_counts_are_read() -> None:
    with open_source(logged(cells()), COUNTS, accepted=("values",)) as source:
        source.read(np.arange(50))  # no value is refused
