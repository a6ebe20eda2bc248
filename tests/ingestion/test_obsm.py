from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion import obsm
from scamac_scale.ingestion.open import open_obsm
from tests.support.formats import write_zarr
from tests.support.mixing import result

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


def written(adata: ad.AnnData, kind: str, folder: Path) -> Any:
    if kind == "memory":
        return adata
    path = folder / f"out.{kind}"
    if kind == "zarr":
        return write_zarr(adata, path)
    adata.write_h5ad(path)
    return path


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
@pytest.mark.parametrize("block_values", [1, 5 * 7, 2**22])
def test_blocks_of_any_size_give_all_cells_once(
    kind: str, block_values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obsm, "BLOCK_VALUES", block_values)
    adata = result(n_cells=60)
    with open_obsm(written(adata, kind, tmp_path), "X_scAMAC") as latent:
        assert latent.shape == (60, 5)
        blocks = list(latent.blocks())
    assert [start for start, _ in blocks] == np.cumsum([0, *(len(block) for _, block in blocks[:-1])]).tolist()
    np.testing.assert_array_equal(np.concatenate([block for _, block in blocks]), adata.obsm["X_scAMAC"])


def test_blocks_are_whole_rows_of_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.setattr(obsm, "BLOCK_VALUES", 100)
    path = written(result(n_cells=60), "h5ad", tmp_path)
    with h5py.File(path, "a") as file:
        values = file["obsm/X_scAMAC"][:]
        del file["obsm/X_scAMAC"]
        file["obsm"].create_dataset("X_scAMAC", data=values, chunks=(8, 5))
    with open_obsm(path, "X_scAMAC") as latent:
        assert [start for start, _ in latent.blocks()] == [0, 16, 32, 48]


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        (sparse.csr_matrix(np.eye(60, 3)), "expected a dense array"),
        (pd.DataFrame({"a": np.arange(60.0)}, index=[f"cell{row}" for row in range(60)]), "expected a dense array"),
        (np.zeros((60, 2, 2)), "shape \\(60, 2, 2\\)"),
        (np.zeros((60, 0)), "is empty"),
        (np.zeros((60, 2), dtype=complex), "real numbers"),
        (np.where(np.arange(60)[:, None] == 41, np.nan, np.zeros((60, 2))), "not finite, first at cell number 41"),
    ],
)
@pytest.mark.slow
def test_what_is_no_dense_array_of_numbers_is_refused(kind: str, values: Any, words: str, tmp_path: Path) -> None:
    adata = result(n_cells=60)
    adata.obsm["X_other"] = values
    data = written(adata, kind, tmp_path)
    with pytest.raises(InputError, match=words), open_obsm(data, "X_other") as latent:
        list(latent.blocks())


@pytest.mark.parametrize("kind", ["memory", "h5ad", "zarr"])
def test_an_unknown_key_is_refused_with_those_that_are_there(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no obsm\['X_pca'\] \(basis\); known are X_scAMAC"):
        open_obsm(written(result(n_cells=60), kind, tmp_path), "X_pca")


def test_a_damaged_file_is_one_clear_error(tmp_path: Path) -> None:
    path = written(result(n_cells=60), "zarr", tmp_path)
    chunk = next(file for file in sorted((path / "obsm/X_scAMAC/c").rglob("*")) if file.is_file())
    chunk.write_bytes(b"not a chunk")
    with pytest.raises(InputError, match="damaged"), open_obsm(path, "X_scAMAC") as latent:
        list(latent.blocks())
