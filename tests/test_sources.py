from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

from scamac_scale.cells.buffer import RowBuffer
from scamac_scale.cells.genes import GeneSpace
from scamac_scale.config import IngestConfig, LoaderConfig
from scamac_scale.errors import InputError, StoreError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import RawMatrix
from scamac_scale.ingestion.source import NormalisedSource
from scamac_scale.sources import CachedSource, open_source, tell_tech_batches
from scamac_scale.store.reader import StoreReader
from tests.support.csr import dense
from tests.support.donors import build_donors

if TYPE_CHECKING:
    import anndata as ad

CONFIG = IngestConfig(n_genes=50)


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("store") / "tiny.zarr", CONFIG)


@pytest.fixture(scope="module")
def space(store: Path) -> GeneSpace:
    return StoreReader(store).gene_space


def test_store_of_the_model_is_read_as_it_is(store: Path, space: GeneSpace) -> None:
    with open_source(str(store), space) as source:
        assert isinstance(source, StoreReader)
    with open_source(StoreReader(store)) as source:
        assert source.n_cells == 300


def test_store_with_other_genes_is_refused_with_the_way_out(store: Path, space: GeneSpace, tiny_atlas: Path) -> None:
    other = GeneSpace(space.kind, space.target_sum, space.filtered, space.chosen[:30])
    with pytest.raises(InputError, match=f"30 of the model's 30 genes.*made from: {tiny_atlas}"):
        open_source(store, other)


def test_damaged_store_is_not_taken_for_raw_data(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy.zarr"))
    (copy / "X" / "zarr.json").write_text("{}")
    with pytest.raises(StoreError, match="is not what was written"):
        open_source(copy)


def test_new_cells_are_matched_by_name_in_any_order(tiny_adata: ad.AnnData, space: GeneSpace, store: Path) -> None:
    order = np.random.default_rng(0).permutation(tiny_adata.n_vars)
    with open_source(tiny_adata[:, order].copy(), space) as source, open_source(store) as stored:
        rows = stored.source_rows
        np.testing.assert_array_equal(dense(source.read(rows)), dense(stored.read(np.arange(300))))
        assert source.missing_genes == ()


def test_missing_genes_are_counted_and_zero(
    tiny_adata: ad.AnnData, space: GeneSpace, caplog: pytest.LogCaptureFixture
) -> None:
    lost = space.chosen[::5]
    kept = [name for name in tiny_adata.var_names if name not in lost]
    with (
        caplog.at_level(logging.WARNING),
        open_source(tiny_adata[:, kept].copy(), space, accepted=("totals",)) as source,
    ):
        assert source.missing_genes == lost
        values = dense(source.read(np.arange(300)))
    assert f"lacks {len(lost)} of the {len(space.chosen)} genes of the model ({lost[0]}, " in caplog.text
    assert (values[:, ::5] == 0).all()
    totals = tiny_adata[:, [name for name in space.filtered if name not in lost]].X.sum(1).A1
    gene = space.chosen[1]
    expected = np.log1p(tiny_adata[:, gene].X.toarray().ravel() * (space.target_sum or 0) / totals)
    np.testing.assert_allclose(values[:, 1], expected, rtol=1e-6)  # the expected values are float32


def test_less_than_half_of_the_genes_is_refused(tiny_adata: ad.AnnData, space: GeneSpace) -> None:
    kept = [name for name in tiny_adata.var_names if name not in space.chosen[:26]]
    with pytest.raises(InputError, match=r"has 24 of the 50 genes of the model \(48%\); at least 50% are needed"):
        open_source(tiny_adata[:, kept].copy(), space)
    half = [name for name in tiny_adata.var_names if name not in space.chosen[:25]]
    assert len(open_source(tiny_adata[:, half].copy(), space, accepted=("totals",)).missing_genes) == 25


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1.0, "is not a finite number of at least 0"),
        (np.nan, "is not a finite number"),
        (np.inf, "is not a finite number"),
        (1.5, "is not a whole number, and the model was fitted to counts"),
    ],
)
def test_value_that_does_not_fit_the_model_is_named(
    tiny_adata: ad.AnnData, space: GeneSpace, value: float, message: str
) -> None:
    counts = sparse.lil_matrix(tiny_adata.X)
    counts[250, 3] = value
    tiny_adata.X = counts.tocsr()
    named = f"for cell 'cell250' and gene 'gene003'; it {message}"
    with open_source(tiny_adata, space) as source, pytest.raises(InputError, match=named):
        source.read(np.array([7, 250]))


def test_raw_matrix_and_layers_are_read(tiny_adata: ad.AnnData, space: GeneSpace, store: Path) -> None:
    tiny_adata.layers["counts"] = tiny_adata.X.copy()
    tiny_adata.raw = tiny_adata.copy()
    tiny_adata.X = tiny_adata.X * 0.5
    reader = StoreReader(store)
    expected = dense(reader.read(np.argsort(reader.source_rows)[:10]))
    for matrix in ("raw", "counts"):
        with open_source(tiny_adata, space, ingest=IngestConfig(matrix=matrix)) as source:
            np.testing.assert_array_equal(dense(source.read(np.arange(10))), expected)


def bytes_of(source: Any) -> int:
    buffer = RowBuffer()
    source.load(np.array([0]), np.array([source.n_cells]), buffer)
    n_bytes = buffer.indptr.nbytes + buffer.genes.nbytes + buffer.values.nbytes
    return n_bytes if buffer.scale is None else n_bytes + buffer.scale.nbytes


@pytest.mark.parametrize("kind", ["store", "h5ad"])
def test_cells_are_kept_in_memory_only_where_they_fit(store: Path, tiny_atlas: Path, kind: str) -> None:
    data = {"store": store, "h5ad": tiny_atlas}[kind]
    with open_source(data, ingest=CONFIG) as source:
        needed = bytes_of(source)
        assert not isinstance(source, CachedSource)
    with open_source(data, ingest=CONFIG, loader=LoaderConfig(cache_bytes=needed - 1)) as source:
        assert not isinstance(source, CachedSource)
    with open_source(data, ingest=CONFIG, loader=LoaderConfig(cache_bytes=needed)) as source:
        assert isinstance(source, CachedSource)
        assert bytes_of(source) == needed


@pytest.mark.parametrize(("cache", "is_cached"), [("none", False), ("host", True), ("device", True)])
def test_a_cache_can_be_asked_for_or_not(store: Path, cache: str, is_cached: bool) -> None:
    with open_source(store, loader=LoaderConfig(cache=cache, cache_bytes=1)) as source:
        assert isinstance(source, CachedSource) == is_cached


@pytest.mark.parametrize("kind", ["counts", "linear"])
def test_cached_cells_are_the_cells(tiny_atlas: Path, tmp_path: Path, kind: str) -> None:
    path = ingest(tiny_atlas, tmp_path / "a.zarr", IngestConfig(n_genes=50, kind=kind))
    rows = np.random.default_rng(0).integers(0, 300, 100)
    with open_source(path) as streamed, open_source(path, loader=LoaderConfig(cache="host")) as cached:
        np.testing.assert_array_equal(dense(streamed.read(rows)), dense(cached.read(rows)))


def test_runs_of_raw_data_that_lie_near_each_other_are_read_together(
    tiny_adata: ad.AnnData, space: GeneSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    import anndata as ad

    adata = ad.concat([tiny_adata] * 30, index_unique="-")
    read = []
    read_block = RawMatrix.read_block

    def count(raw: RawMatrix, start: int, stop: int) -> Any:
        read.append((start, stop))
        return read_block(raw, start, stop)

    monkeypatch.setattr(RawMatrix, "read_block", count)
    with NormalisedSource(open_raw(adata), space) as source:
        read.clear()  # the look at some cells
        rows = np.array([5, 6, 700, 1500, 3900, 4500, 8999])
        found = dense(source.read(rows))
        assert read == [(5, 1501), (3900, 4501), (8999, 9000)]
        np.testing.assert_array_equal(found[1], dense(source.read(np.array([6])))[0])
        np.testing.assert_array_equal(found[5], dense(source.read(np.array([4500])))[0])


def test_file_is_closed_with_the_source(tiny_atlas: Path, space: GeneSpace) -> None:
    with open_source(tiny_atlas, space) as source:
        source.read(np.arange(3))
    with pytest.raises(InputError):
        source.read(np.arange(3))


def test_file_is_closed_where_opening_fails(tiny_atlas: Path, space: GeneSpace, tmp_path: Path) -> None:
    other = GeneSpace("counts", 1.0, ("a", "b"), ("a", "b"))
    with pytest.raises(InputError, match="0 of the 2 genes"):
        open_source(tiny_atlas, other)
    # an open HDF5 file could not be opened for writing
    import h5py

    h5py.File(tiny_atlas, "r+").close()


def test_damage_found_while_filling_the_cache_closes_the_source(store: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "copy.zarr"))
    (copy / "X" / "data" / "c" / "0").unlink()
    with pytest.raises(StoreError, match="X/data/c/0 is missing"):
        open_source(copy, loader=LoaderConfig(cache_bytes=2**20))


def test_an_input_that_does_not_fit_is_not_read_twice(
    tiny_atlas: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Any, rows: Any) -> None:
        raise AssertionError("read before it was known to fit")

    def refuse_load(source: Any, starts: Any, stops: Any, into: Any) -> None:
        raise AssertionError("loaded before it was known to fit")

    needed = StoreReader(store).csr_bytes
    monkeypatch.setattr(NormalisedSource, "read", refuse)
    monkeypatch.setattr(NormalisedSource, "load", refuse_load)
    with open_source(tiny_atlas, ingest=CONFIG, loader=LoaderConfig(cache_bytes=needed - 1)) as source:
        assert isinstance(source, NormalisedSource)


LOGGED = GeneSpace("log", None, tuple(f"gene{i:03d}" for i in range(50)), tuple(f"gene{i:03d}" for i in range(50)))
LINEAR = GeneSpace("linear", 1e4, LOGGED.filtered, LOGGED.chosen)


def logged(values: sparse.csr_matrix, total: float = 1e4) -> sparse.csr_matrix:
    scaled = sparse.csr_matrix(values.multiply(total / values.sum(axis=1)))
    return scaled.log1p().astype(np.float32)


@pytest.mark.parametrize(
    ("space", "make", "said"),
    [
        (LOGGED, lambda x: x, "holds counts values (all are whole), and the model was fitted to log values"),
        (LOGGED, lambda x: x * 0.1, "holds linear values (values are whole, or of few denominators"),
        (LINEAR, logged, "holds log (base e, 10,000 a cell) values (exp(x) - 1 of cells sums to 10,000"),
    ],
)
def test_values_of_another_kind_than_the_models_are_refused_unless_accepted(
    tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture, space: GeneSpace, make: Any, said: str
) -> None:
    tiny_adata.X = make(tiny_adata.X).astype(np.float32)
    with pytest.raises(InputError, match=r"ingest\.matrix .* --accept values") as caught:
        open_source(tiny_adata, space)
    assert said in str(caught.value)
    with caplog.at_level(logging.WARNING), open_source(tiny_adata, space, accepted=("values",)) as source:
        source.read(np.arange(300))
    assert [said in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(("space", "make"), [(LOGGED, logged), (LINEAR, lambda x: x * 0.5), (LINEAR, lambda x: x)])
def test_values_of_the_models_kind_pass_without_a_word(
    tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture, space: GeneSpace, make: Any
) -> None:
    tiny_adata.X = make(tiny_adata.X).astype(np.float32)
    with caplog.at_level(logging.WARNING), open_source(tiny_adata, space) as source:
        source.read(np.arange(300))
    assert caplog.text == ""


def test_what_is_no_logarithm_is_found_where_it_is_read(tiny_adata: ad.AnnData) -> None:
    tiny_adata.X = logged(tiny_adata.X)
    tiny_adata.X.data[0] = 100.0
    with (
        open_source(tiny_adata, LOGGED) as source,
        pytest.raises(InputError, match=r"cell 'cell000' .* it is no logarithm"),
    ):
        source.read(np.arange(10))


@pytest.mark.parametrize("cache", ["none", "host"])
@pytest.mark.parametrize("is_store", [False, True])
def test_a_source_tells_the_batch_key_and_raw_data_has_the_genes_of_the_store(
    tiny_adata: ad.AnnData, tmp_path: Path, cache: Any, is_store: bool
) -> None:
    tiny_adata.obs["donor"] = [f"d{i % 3}" for i in range(300)]
    config = IngestConfig(n_genes=50, batch_key="donor")
    out = ingest(tiny_adata, tmp_path / "a.zarr", config)
    loader = LoaderConfig(cache=cache)
    with open_source(out if is_store else tiny_adata, ingest=config, loader=loader) as source:
        assert source.batch_key == "donor"
        assert source.gene_space == StoreReader(out).gene_space
    with open_source(tiny_adata, StoreReader(out).gene_space, ingest=config) as source:
        assert source.batch_key == "donor"
    with open_source(tiny_adata, ingest=CONFIG, loader=loader) as source:
        assert source.batch_key is None


def test_a_wrong_batch_key_of_raw_data_is_refused_before_any_pass(
    tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RawMatrix, "read_block", None)
    with pytest.raises(InputError, match="obs has no column 'donr'"):
        open_source(tiny_adata, ingest=IngestConfig(batch_key="donr"))


@pytest.mark.parametrize("key", [None, "", "none"])
def test_without_a_key_a_source_knows_no_technical_batches(key: str | None) -> None:
    with open_source(build_donors(), ingest=CONFIG) as source:
        tell_tech_batches(source, key)
        assert source.tech_batches is None
        assert source.levels is None


@pytest.mark.parametrize("loader", [None, LoaderConfig(cache="host")], ids=["streamed", "in memory"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_a_store_knows_the_batches_of_its_rows(tmp_path: Path, shuffle: bool, loader: LoaderConfig | None) -> None:
    cells = build_donors()
    path = ingest(cells, tmp_path / "store.zarr", IngestConfig(n_genes=50, shuffle=shuffle))
    with open_source(path, loader=loader) as source:
        tell_tech_batches(source, "donor,chip")
        assert source.tech_batches is not None
        assert source.levels is not None
        names = [name for levels in source.tech_batches.names for name in levels]
        assert names == ["ann", "bob", "cat", "10", "11"]
        expected = cells.obs[["donor", "chip"]].astype(str).to_numpy()[source.source_rows]
        np.testing.assert_array_equal(np.array(names)[source.levels], expected)


def test_a_column_of_one_level_is_left_out_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    cells = build_donors()
    cells.obs["lab"] = "ours"
    with open_source(cells, ingest=CONFIG) as source:
        tell_tech_batches(source, "lab")
        assert source.tech_batches is None
        tell_tech_batches(source, "lab,donor")
        assert source.tech_batches is not None
        assert source.tech_batches.columns == ("donor",)
    assert caplog.text.count("all cells have the same value in lab: there is nothing to correct by it") == 2


def test_a_column_that_is_not_there_is_refused_by_name() -> None:
    with open_source(build_donors(), ingest=CONFIG) as source:
        with pytest.raises(InputError, match=r"obs of the input has no column 'lab' \(batch key\)"):
            tell_tech_batches(source, "donor,lab")
        assert source.tech_batches is None
