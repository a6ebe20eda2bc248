"""All clusters that are asked for, one after the other: genes by a first pass, cells by a second one, then a tree for each; all of it kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.cells.tech_batches import find_tech_batches
from scamac_scale.durable.atomic import atomic_file
from scamac_scale.durable.faults import reach
from scamac_scale.errors import InputError
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.progress import track
from scamac_scale.subclusters.cell_files import CellFiles, Wanted
from scamac_scale.subclusters.genes import LOG_SCALE, genes_of_clusters, kind_of
from scamac_scale.subclusters.tree import Cluster, Found, cut_cluster

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.subclusters.labels import Labels
    from scamac_scale.subclusters.options import RefineOptions


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be cut, and where it is kept how far that has come.

    Attributes
    ----------
    model
        Of the fit.
    raw
        (N, G) values.
    labels
        Of its cells.
    options
        What is asked for.
    folder
        For what is kept.
    """

    model: FittedModel
    raw: RawMatrix
    labels: Labels
    options: RefineOptions
    folder: Path

    def run(self) -> dict[int, Found]:
        """Cut all clusters that were chosen, but for those that were cut before; what came of each, by its code."""
        chosen = self.labels.chosen
        found = {code: kept for number, code in enumerate(chosen) if (kept := self._read(number)) is not None}
        if len(found) < len(chosen):
            codes = np.full(self.raw.n_cells, len(chosen), dtype=np.int32)
            for number, code in enumerate(chosen):
                codes[self.labels.codes == code] = number
            batches = self._tech_batches()
            files = CellFiles(self.folder)
            with LocalEngine(self.options.ingest.block_cells) as engine:
                totals, genes = self._genes(codes, engine)
                reach("refine.sums")
                files.write(self.raw, Wanted(codes, genes, self._scale(totals)), engine)
            names = np.array(self.raw.gene_names, dtype=object)
            is_counts = kind_of(self.model.genes, totals) == "counts"
            with track("cutting clusters", len(chosen), "clusters") as progress:
                progress.advance(len(found))
                for number, code in enumerate(chosen):
                    if code in found:
                        continue
                    own, name = codes == number, self.labels.names[code]
                    cluster = Cluster(number, name, tuple(names[genes[number]]), totals[own], batches[own], is_counts)
                    found[code] = cut_cluster(cluster, files, self.options.min_cells, self.model.config.seed)
                    self._keep(number, found[code])
                    progress.advance(1)
                    reach("refine.cluster")
        return {code: found[code] for code in chosen}

    def _scale(self, totals: NDArray[np.float64]) -> NDArray[np.float64] | None:
        """(N,) what linear values, and reads, are multiplied by before the logarithm."""
        if kind_of(self.model.genes, totals) != "linear":
            return None
        return (self.model.genes.target_sum or LOG_SCALE) / np.maximum(totals, np.finfo(np.float64).tiny)

    def _genes(self, codes: IntArray, engine: Engine) -> tuple[NDArray[np.float64], list[IntArray]]:
        """Totals of the cells and genes of the clusters: those that were kept, or by the first pass."""
        path, n_chosen = self.folder / "genes.npz", len(self.labels.chosen)
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                return kept["arr_0"], [kept[f"arr_{number + 1}"] for number in range(n_chosen)]
        totals, genes = genes_of_clusters(self.raw, codes, n_chosen, self.model.genes, self.options.n_genes, engine)
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, totals, *genes)
        return totals, genes

    def _tech_batches(self) -> IntArray:
        """(N,) technical batch of each cell: by the columns of the fit."""
        columns, raw = tuple(self.model.tech_levels), self.raw
        if not columns:
            return np.zeros(raw.n_cells, dtype=np.int64)
        missing = [column for column in columns if column not in raw.obs]
        if missing:
            raise InputError(
                f"{raw.name}: obs has no column {', '.join(missing)}, by which the model knows technical batches; add it, for their "
                "differences would be taken for parts of clusters."
            )
        return find_tech_batches(raw.obs, columns, where=f"{raw.name}: obs").joint().astype(np.int64)

    def _keep(self, number: int, found: Found) -> None:
        """Keep what came of a cluster, complete or not at all."""
        with atomic_file(self.folder / f"{number}.found.npz") as partial, partial.open("wb") as file:
            np.savez(file, parts=found.parts, tests=np.array(json.dumps(found.tests)))

    def _read(self, number: int) -> Found | None:
        path = self.folder / f"{number}.found.npz"
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as kept:
            return Found(kept["parts"], json.loads(str(kept["tests"])))
