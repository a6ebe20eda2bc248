"""What values are taken for, on cells that were made from counts in every way that is common."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion import evidence
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.kinds import Verdict, judge
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.statistics import measure, take_census
from tests.support.formats import write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Values = np.ndarray[Any, Any]

N_CELLS, N_GENES = 120, 300


def counts(seed: int = 0, depth: float = 3000) -> Values:
    """Counts of two types of cells, of unequal depths."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(0.4, 1, (2, N_GENES))
    rates /= rates.sum(axis=1, keepdims=True)
    depths = depth * rng.lognormal(0, 0.4, (N_CELLS, 1))
    return rng.poisson(rates[np.arange(N_CELLS) % 2] * depths).astype(float)


def scaled(x: Values, total: float = 1e4) -> Values:
    return x / np.maximum(x.sum(axis=1, keepdims=True), 1) * total


def logged(x: Values, total: float = 1e4, base: float = math.e) -> Values:
    return np.log1p(scaled(x, total)) / math.log(base)


def noise(x: Values) -> Values:
    return np.random.default_rng(1).uniform(0.7, 1.0, x.shape)


def without_ambient(x: Values) -> Values:
    return np.maximum(x - 0.1 * x.sum(axis=1, keepdims=True) * x.sum(axis=0) / x.sum(), 0)


def back_from_log(x: Values) -> Values:
    return np.expm1(logged(x).astype(np.float32)) * x.sum(axis=1, keepdims=True).astype(np.float32) / np.float32(1e4)


def averaged(x: Values) -> Values:
    """As imputation leaves them: logarithms that are no longer of counts."""
    return (logged(x) + logged(x)[::-1]) / 2


def joined(one: Values, other: Values, n_other: int = N_CELLS // 2) -> Values:
    return np.vstack([one[:-n_other], other[-n_other:]])


def judged(x: Values, uns: dict[str, Any] | None = None) -> Verdict:
    adata = ad.AnnData(sparse.csr_matrix(x.astype(np.float32)), uns=uns or {})
    with open_raw(adata) as raw:
        return judge(take_census(raw, LocalEngine(50)).evidence, raw.cell_named, raw.noted_base)


LOGS: dict[str, tuple[Callable[[Values], Values], float, float | None]] = {
    "of 10,000": (logged, math.e, 1e4),
    "of a million": (lambda x: logged(x, 1e6), math.e, 1e6),
    "of one": (lambda x: logged(x, 1), math.e, 1),
    "in base 2": (lambda x: logged(x, base=2), 2, 1e4),
    "in base 10": (lambda x: logged(x, base=10), 10, 1e4),
    "with two decimals": (lambda x: np.round(logged(x), 2), math.e, 1e4),
    "half precision": (lambda x: logged(x).astype(np.float16), math.e, 1e4),
    "of some genes": (lambda x: logged(x)[:, ::3], math.e, None),
    "of some genes in base 2": (lambda x: logged(x, base=2)[:, ::3], 2, None),
    "of counts": (np.log1p, math.e, None),
    "of counts in base 2": (lambda x: np.log2(x + 1), 2, None),
    "of counts in base 10": (lambda x: np.log10(x + 1), 10, None),
}


@pytest.mark.parametrize("depth", [200, 3000], ids=["shallow", "deep"])
@pytest.mark.parametrize("name", LOGS)
def test_logarithms_are_known_with_their_base_and_total(name: str, depth: float) -> None:
    make, base, total = LOGS[name]
    found = judged(make(counts(depth=depth)))
    assert (found.kind, found.is_sure, found.conflict, found.remarks) == ("log", True, "", ())
    assert found.base == pytest.approx(base)
    assert found.total == (None if total is None else pytest.approx(total, rel=0.02))


LINEAR: dict[str, Callable[[Values], Values]] = {
    "proportions": lambda x: scaled(x, 1),
    "percent": lambda x: scaled(x, 100),
    "per million": lambda x: scaled(x, 1e6),
    "percent of some genes": lambda x: scaled(x, 100)[:, ::3],
    "computed back from logarithms": back_from_log,
    "halves and thirds": lambda x: x + (x > 0) * np.random.default_rng(2).choice([0, 0.5, 1 / 3, 0.25], x.shape),
    "some fractions": lambda x: x + (x > 0) * (noise(x) > 0.97) * noise(x),
}


@pytest.mark.parametrize("depth", [200, 3000], ids=["shallow", "deep"])
@pytest.mark.parametrize("name", LINEAR)
def test_linear_values_are_known_however_small(name: str, depth: float) -> None:
    found = judged(LINEAR[name](counts(depth=depth)))
    assert (found.kind, found.is_sure, found.conflict) == ("linear", True, "")


@pytest.mark.parametrize("make", [without_ambient, lambda x: x * noise(x)], ids=["without ambient", "decontaminated"])
def test_corrected_counts_are_no_logarithms_though_all_are_small(make: Callable[[Values], Values]) -> None:
    values = make(counts(depth=120))
    assert values.max() < 25
    found = judged(values)
    assert (found.kind, found.is_sure) == ("linear", False)


def test_a_guess_asks_for_the_kind(caplog: pytest.LogCaptureFixture) -> None:
    x = sparse.csr_matrix(averaged(counts()).astype(np.float32))
    with caplog.at_level(logging.WARNING):
        space = measure(open_raw(ad.AnnData(x)), IngestConfig(n_genes=50)).gene_space
    assert space.kind == "log"
    assert space.values is not None
    assert not space.values.is_sure
    assert "values taken as log, but the evidence is weak (sums of cells spread " in caplog.text
    assert "say ingest.kind (--ingest.kind): counts, linear or log" in caplog.text


MIXED: dict[str, Callable[[Values], Values]] = {
    "counts and logarithms": lambda x: joined(x, logged(x)),
    "three logarithms among counts": lambda x: joined(x, logged(x), 3),
    "three cells of counts among logarithms": lambda x: joined(logged(x), x, 3),
    "some genes of both": lambda x: joined(x, logged(x))[:, ::3],
    "counts and averaged logarithms": lambda x: joined(x, averaged(x)),
    "counts and logarithms of counts": lambda x: joined(x, np.log1p(x)),
    "per million and logarithms": lambda x: joined(scaled(x, 1e6), logged(x)),
    "counts and per million": lambda x: joined(x, scaled(x, 1e6)),
    "three cells of counts among proportions": lambda x: joined(scaled(x, 1.0), x, 3),
    "two totals": lambda x: joined(logged(x), logged(x, 1e6)),
    "three cells of another total": lambda x: joined(logged(x), logged(x, 1e6), 3),
    "two medians": lambda x: joined(logged(x, 3000), logged(x, 4100)),
    "two bases": lambda x: joined(logged(x), logged(x, base=2)),
    "two bases of some genes": lambda x: joined(logged(x), logged(x, base=2))[:, ::3],
}


@pytest.mark.parametrize("name", MIXED)
def test_cells_of_two_kinds_are_refused_with_an_example_of_each(name: str) -> None:
    adata = ad.AnnData(sparse.csr_matrix(MIXED[name](counts()).astype(np.float32)))
    adata.obs_names = [f"c{i}" for i in range(N_CELLS)]
    with pytest.raises(
        InputError, match=r"X holds values of two kinds: .* such as 'c\d+' .* such as 'c\d+' .*ingest\.kind"
    ):
        measure(open_raw(adata), IngestConfig())


def test_a_kind_that_is_said_wins_over_cells_that_disagree(caplog: pytest.LogCaptureFixture) -> None:
    adata = ad.AnnData(sparse.csr_matrix(joined(logged(counts(), 3000), logged(counts(), 4100)).astype(np.float32)))
    with caplog.at_level(logging.WARNING):
        space = measure(open_raw(adata), IngestConfig(kind="log")).gene_space
    assert space.values is not None
    assert (space.kind, space.values.seen) == ("log", "mixed")
    assert "X is taken as log as was said, but looks like cells of two kinds: " in caplog.text


def test_whole_values_that_have_the_total_of_all_are_no_counts() -> None:
    x = scaled(counts(), 1e6)
    x[:4] = np.floor(x[:4])
    x[:4, 0] += 1e6 - x[:4].sum(axis=1)
    found = judged(x)
    assert (found.kind, found.total, found.conflict) == ("linear", pytest.approx(1e6), "")


def test_few_decimals_are_no_scaled_counts() -> None:
    deep = np.random.default_rng(3).gamma(0.3, 30, (N_CELLS, N_GENES))
    values = np.round(np.log1p(deep), 3)  # the smallest is 0.001, and all are multiples of it
    found = judged(values)
    assert (found.kind, found.is_sure) == ("log", False)


def test_cells_that_seem_to_be_of_a_kind_by_chance_are_no_conflict() -> None:
    x = averaged(counts())
    x[4:6], x[10:12] = logged(counts())[4:6, ::-1], scaled(counts(depth=200), 20)[10:12]
    assert judged(x).conflict == ""
    x[10:60] = scaled(counts(depth=200), 20)[10:60]
    x[60:] = logged(counts(), 3000)[60:]
    assert "linear values" in judged(x).conflict


def test_one_damaged_cell_of_counts_is_named() -> None:
    x = counts()
    x[7, x[7].argmax()] += 0.37
    found = judged(x)
    assert (found.kind, found.conflict) == ("linear", "")
    assert "1 of 120 cells hold fractions, such as cell '7'" in found.remarks[0]


def test_square_roots_are_told() -> None:
    found = judged(np.sqrt(counts(depth=200)))
    assert found.kind == "linear"
    assert "square roots of counts" in found.remarks[0]


@pytest.mark.parametrize("largest", [1, 2**40])
def test_whole_values_are_counts(largest: int) -> None:
    assert judged(np.minimum(counts() * 2**40, largest)).kind == "counts"


def test_two_cells_and_empty_cells_are_judged() -> None:
    x = logged(counts())
    x[2:] = 0
    assert judged(x[:5]).total == pytest.approx(1e4)


@pytest.mark.parametrize("base", [2, 10])
@pytest.mark.parametrize("place", ["memory", "h5ad", "zarr"])
def test_genes_of_other_bases_are_those_of_scanpy(base: int, place: str, tmp_path: Path) -> None:
    adata = ad.AnnData(sparse.csr_matrix(counts().astype(np.float32)))
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata, base=base)
    data: Any = adata
    if place == "h5ad":
        data = tmp_path / "a.h5ad"
        adata.write_h5ad(data)
    elif place == "zarr":
        data = write_zarr(adata, tmp_path / "a.zarr")
    with open_raw(data) as raw:
        assert raw.noted_base == base
        space = measure(raw, IngestConfig(n_genes=40)).gene_space
    sc.pp.filter_genes(adata, min_cells=6)
    sc.pp.highly_variable_genes(adata, n_top_genes=40)
    assert space.chosen == tuple(adata.var_names[adata.var["highly_variable"]])
    assert space.values is not None
    assert (space.values.base, space.values.total) == (base, pytest.approx(1e4))


@pytest.mark.parametrize(
    ("base", "said"), [(None, None), (math.e, math.e), ("x", None), (-2.0, None), (np.array([1, 2]), None)]
)
def test_a_note_of_the_base_may_be_anything(base: Any, said: float | None) -> None:
    with open_raw(ad.AnnData(counts(), uns={"log1p": {"base": base}})) as raw:
        assert raw.noted_base == said


def test_a_note_that_the_values_contradict_is_told() -> None:
    found = judged(logged(counts()), {"log1p": {"base": 2}})
    assert found.base == pytest.approx(math.e)
    assert 'uns["log1p"] notes base 2, but the values are logarithms in base e' in found.remarks[0]


def test_a_bounded_sample_is_the_same_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "SAMPLE_CELLS", 20)
    raw = open_raw(ad.AnnData(sparse.csr_matrix(logged(counts()).astype(np.float32))))
    found = [take_census(raw, LocalEngine(block)).evidence for block in (1, 7, 120, 1000)]
    for other in found[1:]:
        np.testing.assert_array_equal(other.sample, found[0].sample)
    assert (found[0].n_fraction, len(found[0].sample)) == (N_CELLS, 20)
    assert np.unique(found[0].sample[:, 0]).size == 20
    assert found[0].sample[:, 0].max() > 60


def test_evidence_survives_a_note() -> None:
    raw = open_raw(ad.AnnData(sparse.csr_matrix(joined(counts(), scaled(counts())).astype(np.float32))))
    before = take_census(raw, LocalEngine(50)).evidence
    noted = {name: np.asarray(value) for name, value in before.to_arrays().items()}
    after = evidence.Evidence.from_arrays(noted)
    assert judge(after, str) == judge(before, str)


def test_shallow_logarithms_in_base_2_of_which_some_cells_are_whole_are_of_one_kind() -> None:
    rng = np.random.default_rng(3)
    x = np.log2(rng.poisson(rng.gamma(0.2, 1.0, 60) * 0.5, (4000, 60)) + 1.0)
    found = judged(x)
    assert (found.kind, found.base, found.conflict) == ("log", 2.0, "")
