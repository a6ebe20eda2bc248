"""The peers, each as its documentation recommends it; heavy imports stay inside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from feeds import data
from feeds.measure import Feed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


class AnnBatch(Feed):
    """annbatch over its own shuffled and sharded collection, read by zarrs.

    Notes
    -----
    The collection's X alone is loaded, and cells are told by their index in it: obs of each batch, which
    a trainer without labels does not need, would cost more.
    """

    modules: ClassVar[tuple[str, ...]] = ("annbatch", "zarrs", "torch")
    in_peer: ClassVar[bool] = True
    candidates: ClassVar[tuple[dict[str, Any], ...]] = (
        {"chunk_size": 32, "preload_nchunks": 256, "to": "torch"},  # README
        {"chunk_size": 32, "preload_nchunks": 256, "to": None},  # SciPy makes it dense, not torch
        {"chunk_size": 64, "preload_nchunks": 256, "to": None},  # the collection's own chunks
        {"chunk_size": 512, "preload_nchunks": 32, "to": None},  # defaults of Loader
        {"chunk_size": 512, "preload_nchunks": 64, "to": None},  # the same, better shuffled
    )

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Make the collection."""
        data.write_annbatch(folder)

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The collection."""
        return [folder / "annbatch"]

    def imports(self) -> None:
        """Import, and choose the codecs as the README says."""
        super().imports()
        import zarr

        zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})

    def open(self) -> None:
        """Open the collection and read the ids."""
        from annbatch import DatasetCollection

        self._collection = DatasetCollection(self.folder / "annbatch" / "collection.zarr", mode="r")
        self._ids = self._collection.obs(columns=["cell_id"])["cell_id"].to_numpy(dtype=np.int64)
        self.n_cells = len(self._ids)
        self.burst_batches = max(1, self.settings["chunk_size"] * self.settings["preload_nchunks"] // self.batch_cells)

    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Iterate over one loader again and again."""
        from annbatch import Loader

        loader = Loader(
            batch_size=self.batch_cells,
            chunk_size=self.settings["chunk_size"],
            preload_nchunks=self.settings["preload_nchunks"],
            shuffle=True,
            return_index=True,
            preload_to_gpu=False,
            to=self.settings["to"] if self.layout == "dense" else None,
            rng=np.random.default_rng(seed),
        ).use_collection(self._collection, load_adata=_only_x)
        while True:
            yield self._epoch(loader)

    def _epoch(self, loader: Any) -> Iterator[tuple[np.ndarray, Any]]:
        for batch in loader:
            x = batch["X"]
            if self.layout == "csr":
                values = (x.indptr, x.indices, x.data)
            else:
                values = x.to_dense() if self.settings["to"] == "torch" else x.toarray()
            yield self._ids[batch["index"]], values


def _only_x(group: Any) -> Any:
    import anndata

    return anndata.AnnData(X=anndata.io.sparse_dataset(group["X"]))


class ScDataset(Feed):
    """scDataset, blocks of cells shuffled, over a backed h5ad.

    Notes
    -----
    Its examples shuffle blocks of 16 cells and read 16 batches at a time; fewer are read here, for these batches are large.
    Rows are fetched by a mask, for which anndata reads runs of cells; by index, the default, it reads cell by cell. Each
    worker opens the file itself.
    """

    modules: ClassVar[tuple[str, ...]] = ("scdataset", "torch", "anndata")
    in_peer: ClassVar[bool] = True
    candidates: ClassVar[tuple[dict[str, Any], ...]] = (
        {"block_size": 16, "fetch_cells": 16384, "num_workers": 0},
        {"block_size": 16, "fetch_cells": 16384, "num_workers": 1},
        {"block_size": 16, "fetch_cells": 16384, "num_workers": 2},
        {"block_size": 16, "fetch_cells": 65536, "num_workers": 0},
        {"block_size": 64, "fetch_cells": 16384, "num_workers": 0},  # less mixed, faster
    )

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The normalised h5ad."""
        return [folder / "normalised.h5ad"]

    def open(self) -> None:
        """Open the file and read the ids."""
        self._rows = _BackedRows(self.folder / "normalised.h5ad")
        self.n_cells = len(self._rows)
        self._fetch_factor = max(1, self.settings["fetch_cells"] // self.batch_cells)
        # Workers read at different times, so bursts even out.
        self.burst_batches = self._fetch_factor * max(1, self.settings["num_workers"])

    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Iterate over one DataLoader again and again; its workers stay."""
        from scdataset import BlockShuffling, scDataset
        from torch.utils.data import DataLoader

        dataset = scDataset(
            self._rows,
            BlockShuffling(block_size=self.settings["block_size"]),
            batch_size=self.batch_cells,
            fetch_factor=self._fetch_factor,
            fetch_callback=_BackedRows.fetch,
            batch_callback=self._take,
            seed=seed,
        )
        workers: dict[str, Any] = {"num_workers": self.settings["num_workers"]}
        if workers["num_workers"]:
            workers |= {"prefetch_factor": self._fetch_factor + 1, "persistent_workers": True}
        loader = DataLoader(dataset, batch_size=None, **workers)
        while True:
            yield self._epoch(loader)

    def _take(self, fetched: tuple[np.ndarray, Any], chosen: np.ndarray) -> tuple[Any, Any]:
        import torch

        ids, x = fetched
        batch = x[chosen]
        arrays = (batch.indptr, batch.indices, batch.data) if self.layout == "csr" else (batch.toarray(),)
        # As tensors, or workers send them through a pipe.
        return torch.from_numpy(ids[chosen]), tuple(torch.from_numpy(array) for array in arrays)

    def _epoch(self, loader: Any) -> Iterator[tuple[np.ndarray, Any]]:
        for ids, arrays in loader:
            yield ids.numpy(), tuple(arrays) if self.layout == "csr" else arrays[0]


class _BackedRows:
    """X and cell ids of an h5ad, opened anew in every process."""

    def __init__(self, path: Path) -> None:
        import h5py

        self._path = path
        self._x: Any = None
        with h5py.File(path) as file:
            self._ids = file["obs/cell_id"][:].astype(np.int64)

    def __len__(self) -> int:
        return len(self._ids)

    def fetch(self, rows: np.ndarray) -> tuple[np.ndarray, Any]:
        """Read sorted rows: ids, and a CSR matrix."""
        import anndata
        import h5py

        if self._x is None:
            self._x = anndata.io.sparse_dataset(h5py.File(self._path)["X"])
        mask = np.zeros(len(self._ids), dtype=bool)
        mask[rows] = True
        return self._ids[rows], self._x[mask]


class AnnLoader(Feed):
    """anndata.experimental.AnnLoader over a backed h5ad, in the main process: its workers read cell by cell."""

    modules: ClassVar[tuple[str, ...]] = ("anndata", "torch", "anndata.experimental.pytorch")
    layouts: ClassVar[tuple[str, ...]] = ("dense",)

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The normalised h5ad."""
        return [folder / "normalised.h5ad"]

    def open(self) -> None:
        """Open the file; obs keeps the ids alone."""
        import anndata

        self._adata = anndata.read_h5ad(self.folder / "normalised.h5ad", backed="r")
        self._adata.obs = self._adata.obs[["cell_id"]]
        self.n_cells = self._adata.n_obs

    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Iterate over one loader again and again; it shuffles by NumPy's global generator."""
        import warnings

        from anndata.experimental import AnnLoader

        np.random.seed(seed)  # noqa: NPY002  the loader has no other seed
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader = AnnLoader([self._adata], batch_size=self.batch_cells, shuffle=True)
        while True:
            yield ((batch.obs["cell_id"].numpy().astype(np.int64), batch.X) for batch in loader)

    def close(self) -> None:
        """Close the file."""
        self._adata.file.close()


class Scipy(Feed):
    """The whole CSR matrix in memory, rows taken by a random permutation."""

    modules: ClassVar[tuple[str, ...]] = ("scipy", "anndata")

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The normalised h5ad."""
        return [folder / "normalised.h5ad"]

    def open(self) -> None:
        """Read it all."""
        import anndata

        adata = anndata.read_h5ad(self.folder / "normalised.h5ad")
        self._x = adata.X
        self._ids = adata.obs["cell_id"].to_numpy(dtype=np.int64)
        self.n_cells = adata.n_obs

    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Permute anew each epoch."""
        rng = np.random.default_rng(seed)
        while True:
            yield self._epoch(rng.permutation(self.n_cells))

    def _epoch(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        for start in range(0, len(order), self.batch_cells):
            rows = order[start : start + self.batch_cells]
            x = self._x[rows]
            yield self._ids[rows], (x.indptr, x.indices, x.data) if self.layout == "csr" else x.toarray()


CASES: dict[str, type[Feed]] = {"annbatch": AnnBatch, "scdataset": ScDataset, "annloader": AnnLoader, "scipy": Scipy}
