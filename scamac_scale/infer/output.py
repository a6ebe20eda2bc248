"""What a prediction consists of, and predictions in memory; those on disk are in `disk`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scamac_scale.durable.atomic import check_output
from scamac_scale.errors import InputError

if TYPE_CHECKING:
    from types import TracebackType

    import anndata as ad
    import pandas as pd

    from scamac_scale.arrays import FloatArray, IntArray

LATENT_KEY = "X_scAMAC"
MEMBERSHIP_KEY = "scamac_membership"
CLUSTER_KEY = "scamac_cluster"
DENOISED_KEY = "scamac_denoised"
UNS_KEY = "scamac"
CHUNK_BYTES = 8 * 2**20
CHUNK_CELLS = 16 * 1024


def cluster_column(labels: IntArray, n_clusters: int) -> pd.Categorical[str]:
    """Labels as scanpy likes them: a categorical of the strings "0" to "K-1"."""
    import pandas as pd

    codes: Any = labels  # pandas-stubs knows fewer integer arrays than pandas
    return pd.Categorical.from_codes(codes, categories=pd.Index(map(str, range(n_clusters))))


@dataclass(frozen=True)
class Table:
    """What is predicted.

    Attributes
    ----------
    obs
        (N) rows of the input, carried over; on other ranks than the first only their number counts.
    genes
        (G) names of the genes of the model.
    widths
        Name of each block to its number of columns; layers and obsm alike.
    """

    obs: pd.DataFrame
    genes: list[str]
    widths: dict[str, int]


class MemoryOutput:
    """Predictions as an AnnData in memory.

    Parameters
    ----------
    table
        What is going to come.

    Attributes
    ----------
    turns, needs_rows
        As of `disk.DiskOutput`.
    """

    turns = 0
    needs_rows = True

    def __init__(self, table: Table) -> None:
        self.table = table
        self._labels = np.zeros(len(table.obs), dtype=np.int64)
        self._blocks = {
            name: np.zeros((len(table.obs), width), dtype=np.float32) for name, width in table.widths.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def look(self, *, is_patient: bool = False) -> None:
        """Do nothing: what is in memory cannot be kept."""

    def tick(self, turns: int) -> None:
        """Do nothing, as `look`."""

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Take some rows, in any order."""
        self._labels[rows] = labels
        for name, block in blocks.items():
            self._blocks[name][rows] = block

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> ad.AnnData:
        """Put the AnnData with all keys together."""
        import anndata as ad
        import pandas as pd

        obs = self.table.obs.copy()
        obs[CLUSTER_KEY] = cluster_column(self._labels, n_clusters)
        layers = {name: block for name, block in self._blocks.items() if name == DENOISED_KEY}
        obsm = {name: block for name, block in self._blocks.items() if name != DENOISED_KEY}
        var = pd.DataFrame(index=pd.Index(self.table.genes, dtype=object))
        return ad.AnnData(obs=obs, var=var, obsm=obsm, layers=layers, uns={UNS_KEY: uns})


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work."""
    if Path(path).suffix not in (".zarr", ".h5ad"):
        raise InputError(f"the output {path} must end in .zarr or .h5ad.")
    return check_output(path)


def chunk_cells(width: int) -> int:
    """Cells in a chunk of at most `CHUNK_BYTES`: a power of two, so that the blocks of a sweep cut few chunks."""
    cells = max(1, min(CHUNK_CELLS, CHUNK_BYTES // (4 * width)))
    return 1 << (cells.bit_length() - 1)
