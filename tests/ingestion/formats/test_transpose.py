"""Values that do not lie by cells: sorted in bounded memory, exactly as scipy does, and nothing is left behind."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.errors import InputError, OutputError
from scamac_scale.ingestion.formats import transpose as transpose_module
from scamac_scale.ingestion.formats.csc import open_csc
from scamac_scale.ingestion.open import open_raw

if TYPE_CHECKING:
    from pathlib import Path


def csc(n_cells: int, n_genes: int, seed: int, density: float = 0.2, dtype: Any = np.float32) -> sparse.csc_matrix:
    rng = np.random.default_rng(seed)
    made = sparse.random(n_cells, n_genes, density, "csc", rng=rng, data_rvs=lambda n: rng.integers(1, 90, n))
    return made.astype(dtype)


def small_pieces(monkeypatch: pytest.MonkeyPatch, chunk: int = 37, bucket: int = 50) -> None:
    """Let few values be many."""
    monkeypatch.setattr(transpose_module, "CHUNK_VALUES", chunk)
    monkeypatch.setattr("scamac_scale.ingestion.formats.csc.CHUNK_VALUES", chunk)
    monkeypatch.setattr(transpose_module, "BUCKET_VALUES", bucket)


def all_of(rows: Any, block: int = 7) -> sparse.csr_matrix:
    n_cells = rows.shape[0]
    parts = [rows.read(start, min(start + block, n_cells)) for start in range(0, n_cells, block)]
    assert all(part.has_canonical_format for part in parts)
    return sparse.vstack(parts, format="csr") if parts else sparse.csr_matrix(rows.shape, dtype=rows.dtype)


def parts_of(matrix: sparse.csc_matrix) -> tuple[Any, Any, Any]:
    return matrix.indptr, matrix.indices, matrix.data


@settings(max_examples=40)
@given(n_cells=st.integers(0, 60), n_genes=st.integers(0, 40), seed=st.integers(0, 9), chunk=st.integers(1, 99))
def test_any_matrix_is_what_scipy_makes_of_it(n_cells: int, n_genes: int, seed: int, chunk: int) -> None:
    matrix = csc(n_cells, n_genes, seed)
    expected = matrix.tocsr()
    for bucket in (2**22, 20):
        with pytest.MonkeyPatch.context() as patch:
            small_pieces(patch, chunk, bucket)
            rows = open_csc(parts_of(matrix), matrix.shape, "here")
            found = all_of(rows)
            rows.close()
        assert rows.shape == expected.shape
        assert rows.n_stored == expected.nnz
        for ours, theirs in zip(parts_of(found), parts_of(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("dtype", ["u1", "i8", ">f4", "f8", "f2"])
def test_values_keep_their_type_and_a_full_bucket_goes_in_parts(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch, 50, 100)
    dense = np.zeros((300, 70))
    dense[3:13] = np.arange(700).reshape(10, 70) % 5  # all values in the first of many buckets
    dense[3] = 7
    matrix = sparse.csc_matrix(dense)
    data = matrix.data.astype(dtype)
    rows = open_csc((matrix.indptr, matrix.indices, data), matrix.shape, "here")
    np.testing.assert_array_equal(all_of(rows).toarray(), dense)
    assert rows.dtype == np.dtype(dtype).newbyteorder("=") if dtype != "f2" else rows.dtype == np.float32


def test_second_values_are_summed_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_pieces(monkeypatch)
    rng = np.random.default_rng(0)
    cells, genes = rng.integers(0, 40, 500), np.sort(rng.integers(0, 20, 500))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(genes, minlength=20))])
    rows = open_csc((pointer, cells, np.ones(500, np.int32)), (40, 20), "here")
    expected = sparse.csr_matrix((np.ones(500, np.int32), (cells, genes)), shape=(40, 20))
    np.testing.assert_array_equal(all_of(rows).toarray(), expected.toarray())
    assert f"here: {500 - expected.nnz} values are second ones for a gene of the same cell" in caplog.text
    assert caplog.text.count("second ones") == 1


def test_a_sum_beyond_the_type_is_refused() -> None:
    rows = open_csc((np.array([0, 2]), np.array([1, 1]), np.array([200, 100], np.uint8)), (3, 1), "here")
    with pytest.raises(InputError, match=r"here: several values .* cell 1, sum to more than uint8 holds"):
        rows.read(0, 3)


@pytest.mark.parametrize("wrong", [-1, 30, 2**31])
def test_a_cell_that_is_not_there_is_refused(wrong: int, tiny_adata: ad.AnnData) -> None:
    matrix = csc(30, 20, 1)
    indices = matrix.indices.astype(np.int64)
    indices[11] = wrong
    rows = open_csc((matrix.indptr, indices, matrix.data), matrix.shape, "here")
    with pytest.raises(
        InputError, match=rf"here: gene number \d+ has a value for cell {wrong}, but there are 30 cells"
    ):
        rows.read(0, 1)


@pytest.mark.parametrize("n_left", [-1, 1])
def test_a_pointer_that_does_not_fit_is_refused(n_left: int) -> None:
    matrix = csc(30, 20, 1)
    pointer = matrix.indptr.copy()
    pointer[-1] += n_left
    with pytest.raises(InputError, match="indptr must rise from 0"):
        open_csc((pointer, matrix.indices, matrix.data), matrix.shape, "here")
    with pytest.raises(InputError, match=r"expected \(22,\) for 21 genes"):
        open_csc(parts_of(matrix), (30, 21), "here")
    with pytest.raises(InputError, match="indices are float64"):
        open_csc((matrix.indptr, matrix.indices.astype(float), matrix.data), matrix.shape, "here")


def test_the_cost_is_said_before_and_scratch_files_have_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    small_pieces(monkeypatch)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    caplog.set_level("INFO")
    rows = open_csc(parts_of(csc(300, 40, 2)), (300, 40), "here")
    assert "here" not in caplog.text  # not before a cell is wanted
    n_open = len(os.listdir("/proc/self/fd"))
    rows.read(0, 10)
    assert (
        f"here is stored by genes (CSC): its 2,400 values are sorted by cells once, in up to 0.0 GB of scratch files in {tmp_path}"
        in caplog.text
    )
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == n_open + 2
    rows.read(40, 99)
    assert caplog.text.count("sorted by cells") == 1
    rows.close()
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_without_room_it_is_refused_before(monkeypatch: pytest.MonkeyPatch) -> None:
    small_pieces(monkeypatch)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    rows = open_csc(parts_of(csc(300, 40, 2)), (300, 40), "here")
    with pytest.raises(
        OutputError, match=r"here is stored by genes .* needs up to [\d,]+ bytes, 1,000 are free.*TMPDIR"
    ):
        rows.read(0, 10)


def test_a_full_disk_is_no_damaged_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    matrix = csc(300, 40, 2)
    ad.AnnData(matrix, pd.DataFrame(index=[f"c{i}" for i in range(300)])).write_h5ad(tmp_path / "a.h5ad")
    small_pieces(monkeypatch)

    class Full(io.BytesIO):
        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(transpose_module, "_scratch", lambda is_small: Full())
    with open_raw(tmp_path / "a.h5ad") as raw, pytest.raises(OutputError, match="No space left"):
        raw.read_block(0, 10)


class Huge:
    """Claims more values than any machine holds; only a few stretches may be asked for."""

    def __init__(self, length: int, dtype: Any, fill: Any) -> None:
        self.shape, self.dtype, self.fill = (length,), np.dtype(dtype), fill

    def __getitem__(self, part: slice) -> Any:
        assert part.stop - part.start < 10_000
        return np.asarray(self.fill(np.arange(part.start, part.stop)), self.dtype)


def test_more_values_than_two_to_the_31_are_reached() -> None:
    """No number of values or of stretches is held in 32 bits."""
    from scamac_scale.ingestion.rows import SparseRows

    per_cell, n_cells = 1000, 4_000_000
    pointer = np.arange(n_cells + 1, dtype=np.int64) * per_cell
    length = int(pointer[-1])
    assert length > 2**31
    indices, data = Huge(length, np.int64, lambda at: at % per_cell), Huge(length, np.int32, lambda at: at // per_cell)
    rows = SparseRows.check((pointer, indices, data), (n_cells, 2000), "huge")
    block = rows.read(n_cells - 3, n_cells)
    assert block.nnz == 3000
    assert block.data.tolist() == [cell for cell in range(n_cells - 3, n_cells) for _ in range(1000)]
    by_genes = open_csc((np.array([0, 5, length]), indices, data), (n_cells, 2), "huge")
    assert by_genes.n_stored == length
    assert by_genes.shape == (n_cells, 2)
