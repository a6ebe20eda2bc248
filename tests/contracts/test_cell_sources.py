from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale.config import IngestConfig, LoaderConfig
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.sources import CachedSource, open_source
from scamac_scale.store.reader import StoreReader
from tests.contracts.cell_source import CellSourceContract

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.sources import OpenSource

CONFIG = IngestConfig(n_genes=60, block_cells=77)


@pytest.fixture(scope="module")
def atlas(tiny_atlas: Path) -> ad.AnnData:
    return ad.read_h5ad(tiny_atlas)


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("store") / "tiny.zarr", CONFIG)


def write_zarr(adata: ad.AnnData, path: Path, version: int) -> Path:
    with warnings.catch_warnings(), ad.settings.override(zarr_write_format=version, auto_shard_zarr_v3=False):
        warnings.simplefilter("ignore")  # anndata and zarr announce that their defaults will change
        adata.write_zarr(path)
    return path


class Contract(CellSourceContract):
    """Opens what the fixture `path` gives; the expected values are computed from the counts in memory."""

    cache = "none"

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls) -> Any:
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, data: Any) -> Iterator[OpenSource]:
        with open_source(data, ingest=CONFIG, loader=LoaderConfig(cache=cls.cache)) as opened:
            yield opened

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, atlas: ad.AnnData, source: OpenSource) -> np.ndarray:
        space = source.gene_space
        assert space.target_sum is not None
        totals = atlas[:, list(space.filtered)].X.toarray().astype(np.float64).sum(1, keepdims=True)
        counts = atlas[:, list(space.chosen)].X.toarray().astype(np.float64)
        return np.log1p(counts * (space.target_sum / totals))[source.source_rows]

    def test_obs_is_that_of_the_input(self, source: OpenSource, atlas: ad.AnnData) -> None:
        expected = atlas.obs.iloc[source.source_rows]
        assert source.obs.index.tolist() == expected.index.tolist()
        if "cell_type" in source.obs:  # a 10x file has none
            pd.testing.assert_frame_equal(source.obs, expected, check_column_type=False)

    def test_cells_are_held_in_memory_where_that_was_asked_for(self, source: OpenSource) -> None:
        assert (source.resident is not None) == (self.cache == "host")

    def test_values_have_the_bits_of_the_store(self, source: OpenSource, store: Path) -> None:
        other = StoreReader(store)
        mine, theirs = (found.read(np.argsort(found.source_rows)) for found in (source, other))
        np.testing.assert_array_equal(mine.indptr, theirs.indptr)
        np.testing.assert_array_equal(mine.indices, theirs.indices)
        np.testing.assert_array_equal(mine.data, theirs.data)


class TestStore(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, store: Path) -> Path:
        return store

    def test_rows_are_shuffled(self, source: OpenSource) -> None:
        assert (np.diff(source.source_rows) == 1).mean() < 0.05


class TestSmallStore(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return ingest(tiny_atlas, tmp_path_factory.mktemp("small") / "s.zarr", replace(CONFIG, profile="small"))


class TestStoreInOrder(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return ingest(tiny_atlas, tmp_path_factory.mktemp("ordered") / "s.zarr", replace(CONFIG, shuffle=False))

    def test_rows_are_those_of_the_input(self, source: OpenSource) -> None:
        np.testing.assert_array_equal(source.source_rows, np.arange(source.n_cells))


class TestLinearStore(Contract):
    """Float values that are scaled."""

    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return ingest(tiny_atlas, tmp_path_factory.mktemp("linear") / "s.zarr", replace(CONFIG, kind="linear"))


class TestStoreInMemory(TestStore):
    cache = "host"

    def test_is_in_memory(self, source: OpenSource) -> None:
        assert isinstance(source, CachedSource)


class TestH5ad(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tiny_atlas: Path) -> Path:
        return tiny_atlas


class TestH5adInMemory(TestH5ad):
    cache = "host"

    def test_is_in_memory(self, source: OpenSource) -> None:
        assert isinstance(source, CachedSource)


class TestZarr(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("zarr") / "plain.zarr"
        return write_zarr(atlas, path, 3)


class TestZarrVersion2Dense(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("zarr") / "dense.zarr"
        copy = atlas.copy()
        copy.X = copy.X.toarray()
        return write_zarr(copy, path, 2)


class TestMemory(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData) -> ad.AnnData:
        return atlas


class TestMemoryByGenes(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData) -> ad.AnnData:
        copy = atlas.copy()
        copy.X = sparse.csc_matrix(copy.X)
        return copy


class TestMemoryWithExplicitZeros(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData) -> ad.AnnData:
        copy = atlas.copy()
        copy.X = sparse.csr_matrix(np.ones(copy.shape, np.float32))
        copy.X.data[:] = atlas.X.toarray().ravel()
        return copy


class TestNewCells(Contract):
    """Raw data and the gene space of a model: nobody has counted the values."""

    @pytest.fixture(scope="class")
    @classmethod
    def source(cls, atlas: ad.AnnData, store: Path) -> Iterator[OpenSource]:
        with open_source(atlas, StoreReader(store).gene_space) as opened:
            yield opened


class TestBacked(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, tiny_atlas: Path) -> Iterator[ad.AnnData]:
        adata = ad.read_h5ad(tiny_atlas, backed="r")
        yield adata
        adata.file.close()


class TestTenxH5(Contract):
    @pytest.fixture(scope="class")
    @classmethod
    def data(cls, atlas: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("tenx") / "filtered_feature_bc_matrix.h5"
        counts = sparse.csr_matrix(atlas.X)
        names = np.array(atlas.var_names, dtype="S")
        with h5py.File(path, "w") as file:
            matrix = file.create_group("matrix")
            matrix["barcodes"] = np.array(atlas.obs_names, dtype="S")
            matrix["data"] = counts.data.astype(np.int32)
            matrix["indices"] = counts.indices.astype(np.int64)
            matrix["indptr"] = counts.indptr.astype(np.int64)
            matrix["shape"] = np.array(counts.shape[::-1])
            features = matrix.create_group("features")
            features["id"] = names
            features["name"] = names
            features["feature_type"] = np.full(names.size, b"Gene Expression")
            features["genome"] = np.full(names.size, b"GRCh38")
        return path
