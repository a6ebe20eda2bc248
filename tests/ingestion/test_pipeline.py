from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import numpy as np
import pytest

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError, OutputError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.simulation.drawn import simulate
from scamac_scale.store.reader import StoreReader

if TYPE_CHECKING:
    from collections.abc import Callable


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_store_holds_the_counts_of_the_chosen_genes(tiny_atlas: Path, tmp_path: Path) -> None:
    path = ingest(tiny_atlas, tmp_path / "a.zarr", IngestConfig(n_genes=60, block_cells=70, shuffle=False))
    stored, atlas = ad.read_zarr(path), ad.read_h5ad(tiny_atlas)
    assert stored.shape == (300, 60)
    assert stored.X.dtype == np.uint8
    np.testing.assert_array_equal(stored.X.toarray(), atlas[:, stored.var_names].X.toarray())
    assert stored.obs["cell_type"].tolist() == atlas.obs["cell_type"].tolist()
    assert stored.obs_names.tolist() == atlas.obs_names.tolist()
    assert (stored.var["n_cells"] == (stored.X.toarray() > 0).sum(0)).all()
    assert set(stored.var) >= {"n_cells", "means", "dispersions", "dispersions_norm"}
    assert stored.obs["scamac_row"].tolist() == list(range(300))


@pytest.mark.slow
def test_store_does_not_depend_on_the_block_size(tiny_atlas: Path, tmp_path: Path) -> None:
    readers = [
        StoreReader(ingest(tiny_atlas, tmp_path / f"{size}.zarr", IngestConfig(block_cells=size)))
        for size in (1, 7, 4096)
    ]
    blocks = [reader.read(np.arange(300)) for reader in readers]
    for reader, block in zip(readers[1:], blocks[1:], strict=True):
        assert reader.gene_space.chosen == readers[0].gene_space.chosen
        np.testing.assert_array_equal(block.indices, blocks[0].indices)
        np.testing.assert_allclose(block.data, blocks[0].data, rtol=6e-8)


@pytest.mark.parametrize(
    ("kind", "change", "dtype"),
    [
        ("counts", lambda x: x, np.uint8),
        ("linear", lambda x: x * 13.7, np.float32),
        ("log", lambda x: np.log1p(x * 0.9), np.float32),
    ],
)
@pytest.mark.slow
def test_kind_is_detected_and_kept(
    tiny_adata: ad.AnnData, tmp_path: Path, kind: str, change: Callable[[np.ndarray], np.ndarray], dtype: type
) -> None:
    tiny_adata.X = change(tiny_adata.X.toarray().astype(np.float64))
    reader = StoreReader(ingest(tiny_adata, tmp_path / "a.zarr", IngestConfig(shuffle=False)))
    assert reader.gene_space.kind == kind
    stored = ad.read_zarr(reader.path)
    assert stored.X.dtype == dtype
    np.testing.assert_array_equal(stored.X.toarray(), tiny_adata[:, stored.var_names].X.astype(np.float32))


def test_fingerprint_names_the_input(tiny_atlas: Path, tmp_path: Path) -> None:
    (about,) = StoreReader(ingest(tiny_atlas, tmp_path / "a.zarr")).inputs
    assert about["name"] == str(tiny_atlas)
    assert about["bytes"] == tiny_atlas.stat().st_size
    assert (about["n_cells"], about["n_genes"], about["matrix"]) == (300, 200, "X")
    assert len(about["genes_sha256"]) == 64


def test_config_is_kept(tiny_atlas: Path, tmp_path: Path) -> None:
    config = IngestConfig(n_genes=40, target_sum=500.0)
    reader = StoreReader(ingest(tiny_atlas, tmp_path / "a.zarr", config))
    assert IngestConfig(**reader.config) == config
    assert reader.gene_space.target_sum == 500.0


def test_columns_of_a_store_are_replaced_with_a_word(
    tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_adata.obs["scamac_total"], tiny_adata.obs["scamac_row"] = -1.0, 7
    with caplog.at_level(logging.WARNING):
        found = StoreReader(ingest(tiny_adata, tmp_path / "b.zarr", IngestConfig(n_genes=30)))
    assert "scamac_total, scamac_row of obs are replaced" in caplog.text
    assert sorted(found.source_rows.tolist()) == list(range(300))


def test_bad_input_leaves_nothing_behind(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.X = -tiny_adata.X
    with pytest.raises(InputError):
        ingest(tiny_adata, tmp_path / "a.zarr")
    assert names(tmp_path) == []


def test_bad_output_is_said_before_the_input_is_opened(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="make it first"):
        ingest(tmp_path / "nowhere.h5ad", tmp_path / "no" / "a.zarr")
    with pytest.raises(InputError):
        ingest(tmp_path / "nowhere.h5ad", tmp_path / "a.zarr")


def test_existing_store_is_only_replaced_when_asked(tiny_atlas: Path, tmp_path: Path) -> None:
    ingest(tiny_atlas, tmp_path / "a.zarr", IngestConfig(n_genes=60))
    with pytest.raises(OutputError, match="already there"):
        ingest(tiny_atlas, tmp_path / "a.zarr", IngestConfig(n_genes=30))
    ingest(tiny_atlas, tmp_path / "a.zarr", IngestConfig(n_genes=30), overwrite=True)
    assert StoreReader(tmp_path / "a.zarr").n_genes == 30
    assert names(tmp_path) == ["a.zarr"]


def test_input_is_never_replaced_by_its_own_store(tmp_path: Path) -> None:
    source = simulate(tmp_path / "a.zarr", 300, n_genes=50, n_types=3)
    (tmp_path / "link.zarr").symlink_to(source)
    shutil.copytree(source, tmp_path / "outer.zarr")
    inner = shutil.copytree(source, tmp_path / "outer.zarr" / "inner.zarr")
    for data, out, message in [
        (source, source, "would replace the input"),
        (tmp_path / "link.zarr", source, "would replace the input"),
        (source, tmp_path / "link.zarr", "would replace the input"),
        (inner, tmp_path / "outer.zarr", "would replace the input"),
        (source, source / "new.zarr", "lies inside the input"),
    ]:
        with pytest.raises(OutputError, match=message):
            ingest(data, out, overwrite=True)
    with open_raw(source) as raw:
        assert raw.n_cells == 300


@pytest.mark.skipif("SCAMAC_DATA" not in os.environ, reason="SCAMAC_DATA names no folder of real data")
@pytest.mark.parametrize(
    "name",
    [
        "yan90_rpkm.h5ad",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("pbmc3k_seurat.h5ad", "kang12k_1287g.h5ad")),
    ],
)
@pytest.mark.slow
def test_real_data_survives_the_store(tmp_path: Path, name: str) -> None:
    source = Path(os.environ["SCAMAC_DATA"]) / name
    if not source.exists():
        pytest.skip(f"{name} is not in SCAMAC_DATA")
    stored, atlas = ad.read_zarr(ingest(source, tmp_path / "a.zarr")), ad.read_h5ad(source)
    atlas = atlas[stored.obs["scamac_row"].to_numpy()]
    picked = atlas[:, stored.var_names].X
    dense = picked if isinstance(picked, np.ndarray) else picked.toarray()
    np.testing.assert_array_equal(stored.X.toarray(), dense.astype(np.float32))
    assert stored.obs_names.tolist() == atlas.obs_names.astype(str).tolist()
    assert list(stored.obs)[:-2] == list(atlas.obs)


def test_a_shuffled_store_is_the_permutation_of_its_seed(tiny_atlas: Path, tmp_path: Path) -> None:
    atlas = ad.read_h5ad(tiny_atlas)
    orders = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        stored = ad.read_zarr(ingest(tiny_atlas, tmp_path / f"{name}.zarr", IngestConfig(n_genes=60, seed=seed)))
        rows = stored.obs["scamac_row"].to_numpy()
        np.testing.assert_array_equal(stored.X.toarray(), atlas[rows, stored.var_names].X.toarray())
        assert stored.obs_names.tolist() == atlas.obs_names[rows].tolist()
        assert stored.obs["cell_type"].tolist() == atlas.obs["cell_type"].iloc[rows].tolist()
        orders.append(rows)
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] == orders[2]).mean() < 0.1
    assert np.corrcoef(orders[0], np.arange(300))[0, 1] < 0.2
