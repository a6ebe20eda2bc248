"""An AnnData whose X is an array of dask: the same cells, and each chunk is computed as seldom as can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale import ScAMAC, tl
from scamac_scale.errors import InputError
from scamac_scale.ingestion.formats.transpose import TransposedRows
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.raw import read_blocks
from tests.support.formats import write_zarr
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from pathlib import Path

da = pytest.importorskip("dask.array")


def blocks_of(
    matrix: Any, heights: tuple[int, ...], widths: tuple[int, ...], kind: Any
) -> tuple[Any, list[tuple[int, int]]]:
    """An array of dask whose chunks are made by `kind`, and a list of those that were computed."""
    computed: list[tuple[int, int]] = []
    tops, lefts = np.cumsum([0, *heights]), np.cumsum([0, *widths])

    def chunk(block_info: Any = None) -> Any:
        row, column = block_info[None]["chunk-location"]
        computed.append((row, column))
        return kind(matrix[tops[row] : tops[row + 1], lefts[column] : lefts[column + 1]])

    made = da.map_blocks(chunk, chunks=(heights, widths), dtype=matrix.dtype, meta=kind(matrix[:0, :0]))
    return made, computed


KINDS = {
    "numpy": lambda part: part.toarray(),
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "array": sparse.csr_array,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("widths", [(200,), (90, 110)])
def test_every_kind_of_chunk_gives_the_same_cells(kind: str, widths: tuple[int, ...], tiny_adata: ad.AnnData) -> None:
    expected = tiny_adata.X.toarray()
    tiny_adata.X, computed = blocks_of(tiny_adata.X, (70, 130, 100), widths, KINDS[kind])
    with open_raw(tiny_adata) as raw:
        found = sparse.vstack([block for _, block in read_blocks(raw, 37, "reading")])
        np.testing.assert_array_equal(found.toarray(), expected)
        assert len([place for place in computed if place != (0, 0)]) == 3 * len(widths) - 1  # each once
        assert raw.read_block(69, 71).has_canonical_format
        assert raw.read_block(5, 5).shape == (0, 200)
        assert raw.dtype == np.float32


def test_chunks_of_genes_are_sorted_by_cells_once(tiny_adata: ad.AnnData) -> None:
    expected = tiny_adata.X.toarray()
    tiny_adata.X, computed = blocks_of(tiny_adata.X, (300,), (50, 50, 50, 50), sparse.csc_matrix)
    with open_raw(tiny_adata) as raw:
        assert isinstance(raw.rows, TransposedRows)
        np.testing.assert_array_equal(np.vstack([block.toarray() for _, block in read_blocks(raw, 37, "x")]), expected)
        assert computed.count((0, 3)) == 1


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_what_read_lazy_gives_is_read(form: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    pytest.importorskip("xarray")
    expected = tiny_adata.X.toarray()
    tiny_adata.X = {"csr": tiny_adata.X, "csc": tiny_adata.X.tocsc(), "dense": expected}[form]
    path = write_zarr(tiny_adata, tmp_path / "a.zarr")
    lazy = ad.experimental.read_lazy(path)
    with open_raw(lazy) as raw:
        np.testing.assert_array_equal(raw.read_block(0, 300).toarray(), expected)
        assert isinstance(raw.obs, pd.DataFrame)
        assert list(raw.obs["cell_type"]) == list(tiny_adata.obs["cell_type"])
        assert raw.gene_names == tuple(tiny_adata.var_names)


def test_a_graph_that_fails_is_told_as_such(tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture) -> None:
    def fail(part: Any) -> Any:
        return part if not part.size else part[: 1 // 0]

    dense = da.from_array(tiny_adata.X.toarray(), chunks=(100, 200))
    tiny_adata.layers["wrong"] = da.map_blocks(fail, dense, dtype=np.float32, chunks=dense.chunks)
    tiny_adata.raw = ad.AnnData(tiny_adata.layers["wrong"], obs=tiny_adata.obs, var=tiny_adata.var)
    tiny_adata.X = tiny_adata.X.log1p()
    with open_raw(tiny_adata) as raw:  # what is wrong with raw matters to those who read it
        raw.read_block(0, 300)
    with (
        open_raw(tiny_adata, "wrong") as raw,
        pytest.raises(
            InputError, match=r"its array of dask fails at chunk \(1, 0\): ZeroDivisionError: .*zero; mend"
        ) as said,
    ):
        raw.read_block(130, 140)
    assert "damaged" not in str(said.value)


def test_unknown_sizes_and_broken_promises_are_refused(tiny_adata: ad.AnnData) -> None:
    dense = da.from_array(tiny_adata.X.toarray(), chunks=(100, 200))
    tiny_adata.layers["short"] = da.map_blocks(lambda part: part[:-1], dense, dtype=np.float32, chunks=dense.chunks)
    tiny_adata.layers["flag"] = dense > 0
    with (
        open_raw(tiny_adata, "short") as raw,
        pytest.raises(InputError, match=r"a chunk of dask has shape \(99, 200\)"),
    ):
        raw.read_block(0, 1)
    with pytest.raises(InputError, match="values of type bool"):
        open_raw(tiny_adata, "flag")
    from scamac_scale.ingestion.formats.lazy import open_dask

    with pytest.raises(InputError, match="unknown sizes; call compute_chunk_sizes"):
        open_dask(dense[dense[:, 0] > 0], "here")


def test_fit_predict_and_tl_take_it(tiny_adata: ad.AnnData) -> None:
    config, plain = QUICK, tiny_adata.copy()
    tiny_adata.X = blocks_of(tiny_adata.X, (150, 150), (200,), sparse.csr_matrix)[0]
    model = ScAMAC(config=config).fit(tiny_adata)
    expected = ScAMAC(config=config).fit(plain).predict(plain)
    np.testing.assert_array_equal(model.predict(tiny_adata).obsm["X_scAMAC"], expected.obsm["X_scAMAC"])
    tl.scamac(tiny_adata, config=config)
    np.testing.assert_array_equal(tiny_adata.obsm["X_scAMAC"], expected.obsm["X_scAMAC"])
