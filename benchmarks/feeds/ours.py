"""The cases of this program: its store in both profiles, and the same feed over files and matrices that are not one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from feeds.measure import Feed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    import numpy as np


class Ours(Feed):
    """The feed of this program over one kind of source; counts are log-normalised on the way."""

    modules: ClassVar[tuple[str, ...]] = ("torch", "scamac_scale.loader.feed", "scamac_scale.sources", "anndata")
    source: ClassVar[str] = ""

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The one that it reads."""
        return [folder / cls.source]

    def open(self) -> None:
        """Open the source; what is no store is measured first, by two passes."""
        from scamac_scale.loader.feed import Feed as Reader
        from scamac_scale.loader.plan import window_sizes
        from scamac_scale.sources import open_source

        self._source = open_source(self._data(), ingest=_settings(), loader=self._loader())
        self._ids = self._source.source_rows
        self.n_cells = self._source.n_cells
        self._sizes = window_sizes(self.n_cells, self._source.csr_bytes)
        self._reader = Reader(self._source, layout=self.layout, threads=self.settings.get("threads"))

    def _data(self) -> Any:
        return self.folder / self.source

    def _loader(self) -> Any:
        from scamac_scale.config import LoaderConfig

        return LoaderConfig(cache=self.settings.get("cache", "none"))

    def epochs(self, seed: int) -> Iterator[Iterable[tuple[np.ndarray, Any]]]:
        """Run one endless plan: reading ahead crosses the ends of epochs."""
        from scamac_scale.loader.plan import EpochPlan

        plan = EpochPlan(self.n_cells, self.batch_cells, seed, **self._sizes)
        run = self._reader.run(plan, 0, plan.n_batches * 10**6)
        while True:
            yield (self._batch(next(run)) for _ in range(plan.n_batches))

    def _batch(self, batch: Any) -> tuple[np.ndarray, Any]:
        values = batch.values
        if self.layout == "csr":
            values = (values.indptr.numpy(), values.genes.numpy(), values.values.numpy())
        return self._ids[batch.rows], values

    def close(self) -> None:
        """Stop the threads."""
        self._reader.close()
        self._source.close()


class _Store(Ours):
    profile: ClassVar[str] = ""

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """Ingest the counts."""
        from scamac_scale.ingestion.pipeline import ingest

        ingest(folder / "atlas.zarr", folder / cls.source, _settings(cls.profile), overwrite=True)


class StoreFast(_Store):
    """The store, not compressed."""

    source: ClassVar[str] = "fast.store.zarr"
    profile: ClassVar[str] = "fast"


class StoreSmall(_Store):
    """The store, compressed."""

    source: ClassVar[str] = "small.store.zarr"
    profile: ClassVar[str] = "small"


class StoreCached(StoreFast):
    """The store, read once into memory."""

    candidates: ClassVar[tuple[dict[str, Any], ...]] = ({"cache": "host"},)

    @classmethod
    def prepare(cls, folder: Path) -> None:
        """It is the store of `StoreFast`."""
        if not (folder / cls.source).exists():
            super().prepare(folder)


class Zarr(Ours):
    """Counts in an AnnData zarr, as simulated."""

    source: ClassVar[str] = "atlas.zarr"


class H5ad(Ours):
    """Counts in a backed h5ad."""

    source: ClassVar[str] = "raw.h5ad"


class Memory(H5ad):
    """Counts in an AnnData in memory."""

    def _data(self) -> Any:
        import anndata

        return anndata.read_h5ad(self.folder / self.source)


def _settings(profile: str = "fast") -> Any:
    """All genes, in their order, so that every feed has the same values."""
    from scamac_scale.config import IngestConfig

    return IngestConfig(n_genes=10**6, min_cell_fraction=0.0, profile=profile)


CASES: dict[str, type[Feed]] = {
    "store_fast": StoreFast,
    "store_small": StoreSmall,
    "store_cached": StoreCached,
    "zarr": Zarr,
    "h5ad": H5ad,
    "memory": Memory,
}
