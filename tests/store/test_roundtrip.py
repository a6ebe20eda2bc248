from __future__ import annotations

import os
import threading
import warnings
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from scamac_scale.errors import InputError, PlanError, StoreError
from scamac_scale.store import layout
from scamac_scale.store.reader import StoreReader
from scamac_scale.store.shuffle import RowShuffler
from tests.support.stores import Written, counts, write

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.cells.buffer import RowBuffer
    from scamac_scale.cells.csr import CsrBlock


def dense(block: CsrBlock) -> np.ndarray:
    parts = (block.data, block.indices.astype(np.int64), block.indptr)
    return sparse.csr_matrix(parts, shape=(block.n_cells, block.n_genes)).toarray()


@settings(deadline=None, max_examples=15)
@given(rows=hnp.arrays(np.int64, st.integers(0, 80), elements=st.integers(0, 649)))
def test_any_rows_read_are_that_slice_in_memory(written: Written, rows: np.ndarray) -> None:
    with StoreReader(written.path) as reader:
        for _ in range(2):  # the second time without looking at the checksums of the fast profile
            # float32 rounds once, at the end
            np.testing.assert_allclose(dense(reader.read(rows)), written.expected[rows], rtol=6e-8, atol=0)


@settings(deadline=None, max_examples=15)
@given(
    n_cells=st.integers(1, 40),
    n_genes=st.integers(1, 12),
    density=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    chunk=st.integers(1, 60),
    step=st.integers(1, 50),
    kind=st.sampled_from(["counts", "linear", "log"]),
    profile=st.sampled_from(["fast", "small"]),
    shuffle=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_matrix_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory,
    n_cells: int,
    n_genes: int,
    density: float,
    chunk: int,
    step: int,
    kind: str,
    profile: str,
    shuffle: bool,
    seed: int,
) -> None:
    raw = counts(n_cells, n_genes, density, seed)
    if kind != "counts":
        raw = (raw * 0.37).astype(np.float32)
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    options = {"chunk_values": chunk, "block_cells": step, "profile": profile, "shuffle": shuffle}
    stored = write(path, raw, kind=kind, **options)
    reader = StoreReader(path)
    assert (reader.n_cells, reader.n_genes, reader.n_values) == (*raw.shape, raw.nnz)
    assert reader.profile == profile
    rows = reader.source_rows
    np.testing.assert_array_equal(np.sort(rows), np.arange(n_cells))
    assert shuffle or (rows == np.arange(n_cells)).all()
    np.testing.assert_allclose(dense(reader.read(np.arange(n_cells))), stored.expected[rows], rtol=6e-8, atol=0)
    with warnings.catch_warnings():  # scipy finds unsigned indices strange
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(anndata.read_zarr(path).X.toarray(), raw.toarray()[rows])


def test_anndata_opens_a_store_and_shows_the_counts(written: Written) -> None:
    adata = anndata.read_zarr(written.path)
    np.testing.assert_array_equal(adata.X.toarray(), written.raw.toarray())
    assert adata.X.dtype == np.uint8
    assert list(adata.obs_names) == list(written.obs.index)
    assert list(adata.var_names) == list(written.space.chosen)
    assert adata.var["n_cells"].tolist() == list(range(40))
    np.testing.assert_array_equal(adata.obs[layout.TOTAL], written.totals)


def test_reader_says_what_the_store_holds(written: Written) -> None:
    reader = StoreReader(written.path)
    assert reader.gene_space == written.space
    assert tuple(reader.gene_names) == written.space.chosen
    assert reader.missing_genes == ()
    assert reader.config["kind"] == "counts"
    assert reader.inputs == [{"name": "here"}]
    np.testing.assert_array_equal(reader.source_rows, np.arange(650))
    pd.testing.assert_frame_equal(reader.obs, written.obs, check_column_type=False)


def test_cell_without_counts_stays_zeros(written: Written) -> None:
    block = StoreReader(written.path).read(np.array([17, 17]))
    assert block.data.size == 0
    assert block.indptr.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("largest", "dtype"),
    [(255, np.uint8), (256, np.uint16), (65_535, np.uint16), (65_536, np.uint32), (2**32, np.uint64)],
)
@pytest.mark.slow
def test_counts_take_the_smallest_type_that_holds_them(tmp_path: Path, largest: int, dtype: type) -> None:
    raw = counts(20, 5)
    raw.data[3] = largest
    stored = write(tmp_path / "a.zarr", raw)
    adata = anndata.read_zarr(stored.path)
    assert adata.X.dtype == dtype
    assert adata.X.max() == largest
    # the largest entry is 2^32 with a total of the same size: float64 throughout
    np.testing.assert_allclose(dense(StoreReader(stored.path).read(np.arange(20))), stored.expected, rtol=6e-8)


@pytest.mark.slow
def test_gene_indices_are_uint32_beyond_65535_genes(tmp_path: Path) -> None:
    raw = sparse.csr_matrix(([1, 2], [0, 70_000], [0, 1, 2]), shape=(2, 70_001))
    reader = StoreReader(write(tmp_path / "a.zarr", raw).path)
    block = reader.read(np.array([1, 0]))
    assert block.indices.dtype == np.uint32
    assert block.indices.tolist() == [70_000, 0]


def test_explicit_zeros_and_unsorted_rows_are_tidied(tmp_path: Path) -> None:
    untidy = sparse.csr_matrix((np.array([3, 0, 1]), np.array([2, 1, 0]), np.array([0, 2, 3])), shape=(2, 3))
    stored = write(tmp_path / "a.zarr", untidy, blocks=iter([untidy]))
    block = StoreReader(stored.path).read(np.array([0, 1]))
    assert block.indptr.tolist() == [0, 1, 2]
    assert untidy.nnz == 3  # the caller's block is left alone


def test_row_outside_the_store_is_refused(written: Written) -> None:
    with pytest.raises(PlanError, match="Row 650 is not in the source, which has rows 0 to 649"):
        StoreReader(written.path).read(np.array([3, 650]))


def test_reads_from_several_threads_agree(written: Written) -> None:
    reader = StoreReader(written.path)
    wrong: list[int] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            rows = rng.integers(0, 650, 50)
            if not np.allclose(dense(reader.read(rows)), written.expected[rows], rtol=6e-8, atol=0):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_store_is_the_same_bytes_for_the_same_seed_and_any_blocks(tmp_path: Path) -> None:
    raw = counts(300, 20)
    files = []
    for name, step in (("a.zarr", 300), ("b.zarr", 7)):
        path = write(tmp_path / name, raw, block_cells=step, shuffle=True, chunk_values=50).path
        files.append({file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()})
    assert files[0] == files[1]


def test_no_file_of_the_shuffle_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowShuffler.__init__, "__defaults__", (3000,))
    stored = write(tmp_path / "a.zarr", counts(300, 20), shuffle=True, block_cells=10)
    assert sorted(path.name for path in stored.path.iterdir()) == sorted(
        ["X", "layers", "obs", "obsm", "obsp", "uns", "var", "varm", "varp", "zarr.json"]
    )


def test_value_that_the_type_cannot_hold_is_refused(tmp_path: Path) -> None:
    raw = counts(20, 5)
    changed = raw.copy()
    changed.data[0] = 300
    with pytest.raises(InputError, match="has changed since it was checked"):
        write(tmp_path / "a.zarr", raw, blocks=iter([changed]))
    assert list(tmp_path.iterdir()) == []


def test_input_that_ends_early_is_refused(tmp_path: Path) -> None:
    raw = counts(20, 5)
    with pytest.raises(InputError, match="15 cells were read, but the input announced 20"):
        write(tmp_path / "a.zarr", raw, blocks=iter([raw[:15]]))
    assert list(tmp_path.iterdir()) == []


def test_scattered_cells_are_read_with_what_lies_between_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = write(tmp_path / "a.zarr", counts(900, 20), chunk_values=64)
    loaded: list[tuple[int, int]] = []
    load = StoreReader._load

    def count(reader: StoreReader, starts: np.ndarray, stops: np.ndarray, into: RowBuffer) -> None:
        loaded.extend(zip(starts.tolist(), stops.tolist(), strict=True))
        load(reader, starts, stops, into)

    monkeypatch.setattr(StoreReader, "_load", count)
    with StoreReader(stored.path) as reader:
        rows = np.r_[3:400:7, 500:880:50]
        np.testing.assert_allclose(dense(reader.read(rows)), stored.expected[rows], rtol=6e-8, atol=0)
        assert loaded == [(3, 396), (500, 851)]


def test_a_store_that_replaces_an_open_one_is_not_mixed_into_it(tmp_path: Path) -> None:
    first = write(tmp_path / "a.zarr", counts(300, 20, seed=0), chunk_values=64)
    with StoreReader(first.path) as reader:
        reader.read(np.arange(100))
        write(tmp_path / "a.zarr", counts(300, 20, seed=1), chunk_values=64, overwrite=True)
        with pytest.raises(StoreError, match=r"X/indices/c/[0-9]+ is missing"):
            reader.read(np.arange(300))


def test_a_reader_leaves_no_folder_open_and_reads_nothing_more(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zarr", counts(50, 8)).path
    before = set(os.listdir("/proc/self/fd"))
    with StoreReader(path) as reader:
        assert len(set(os.listdir("/proc/self/fd")) - before) >= 2
        reader.read(np.arange(3))
    assert not set(os.listdir("/proc/self/fd")) - before
    with pytest.raises(StoreError, match="cannot be read"):
        reader.read(np.arange(3))
