"""Where predictions go: arrays in memory, or an AnnData zarr on disk that is complete or absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scamac_scale.errors import OutputError

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


def cluster_column(labels: IntArray, n_clusters: int) -> pd.Categorical:
    """Labels as scanpy likes them: a categorical of the strings "0" to "K-1"."""
    import pandas as pd

    return pd.Categorical.from_codes(np.asarray(labels), categories=[str(index) for index in range(n_clusters)])


class MemoryOutput:
    """Predictions as an AnnData in memory.

    Parameters
    ----------
    obs
        (N) rows of the input, carried over.
    genes
        (G) names of the genes of the model.
    widths
        Name of each block to its number of columns; layers and obsm alike.
    """

    def __init__(self, obs: pd.DataFrame, genes: list[str], widths: dict[str, int]) -> None:
        self._obs = obs
        self._genes = genes
        self._labels = np.zeros(len(obs), dtype=np.int64)
        self._blocks = {name: np.zeros((len(obs), width), dtype=np.float32) for name, width in widths.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def write(self, start: int, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Take the rows from `start` on."""
        self._labels[start : start + len(labels)] = labels
        for name, block in blocks.items():
            self._blocks[name][start : start + len(block)] = block

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> ad.AnnData:
        """The AnnData with all keys."""
        import anndata as ad
        import pandas as pd

        obs = self._obs.copy()
        obs[CLUSTER_KEY] = cluster_column(self._labels, n_clusters)
        layers = {name: block for name, block in self._blocks.items() if name == DENOISED_KEY}
        obsm = {name: block for name, block in self._blocks.items() if name != DENOISED_KEY}
        var = pd.DataFrame(index=pd.Index(self._genes, dtype=object))
        return ad.AnnData(obs=obs, var=var, obsm=obsm, layers=layers, uns={UNS_KEY: uns})


class DiskOutput:
    """Predictions streamed to an AnnData zarr, or to an h5ad by way of one.

    The zarr is written beside the target and renamed at the end; nothing stays after an error.

    Parameters
    ----------
    path
        Target ending in ``.zarr`` or ``.h5ad``; must not exist.
    obs, genes, widths
        As of `MemoryOutput`.

    Raises
    ------
    OutputError
        If the target exists, ends otherwise, or cannot be written.
    """

    def __init__(self, path: str | Path, obs: pd.DataFrame, genes: list[str], widths: dict[str, int]) -> None:
        self.path = check_target(path)
        self._obs, self._genes, self._widths = obs, genes, widths
        self._partial = self.path.with_name(f".{self.path.stem}.partial-{os.getpid()}.zarr")
        self._labels = np.zeros(len(obs), dtype=np.int64)

    def __enter__(self) -> Self:
        import anndata as ad
        import pandas as pd
        import zarr

        var = pd.DataFrame(index=pd.Index(self._genes, dtype=object))
        try:
            ad.settings.zarr_write_format = 3
            ad.AnnData(obs=self._obs, var=var).write_zarr(self._partial)
            self._group = zarr.open_group(self._partial, mode="r+")
            self._arrays = {name: self._create(name, width) for name, width in self._widths.items()}
        except OSError as error:
            self._discard()
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        return self

    def _create(self, name: str, width: int) -> Any:  # Any: zarr's array type is not typed for slicing
        parent = self._group["layers" if name == DENOISED_KEY else "obsm"]
        chunk_cells = max(1, min(len(self._obs), CHUNK_BYTES // (4 * max(width, 1))))
        return parent.create_array(
            name,
            shape=(len(self._obs), width),
            chunks=(chunk_cells, max(width, 1)),
            dtype="float32",
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._discard()

    def _discard(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, start: int, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Write the rows from `start` on."""
        self._labels[start : start + len(labels)] = labels
        try:
            for name, block in blocks.items():
                self._arrays[name][start : start + len(block)] = block
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> Path:
        """Write the columns, then move everything to the target."""
        from anndata.io import write_elem

        obs = self._obs.copy()
        obs[CLUSTER_KEY] = cluster_column(self._labels, n_clusters)
        try:
            write_elem(self._group, "obs", obs)
            write_elem(self._group, "uns", {UNS_KEY: uns})
            if self.path.suffix == ".h5ad":
                _to_h5ad(self._partial, self.path)
            else:
                self._partial.rename(self.path)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        return self.path


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work."""
    path = Path(path)
    if path.suffix not in (".zarr", ".h5ad"):
        raise OutputError(f"the output {path} must end in .zarr or .h5ad.")
    if path.exists():
        raise OutputError(f"the output {path} exists already; name another path, or remove it first.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder of {path} cannot be made: {error.strerror}.") from error
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"the folder {path.parent} cannot be written; name another output.")
    return path


_CONVERT = "import sys, anndata; anndata.read_zarr(sys.argv[1]).write_h5ad(sys.argv[2], compression='gzip')"


def _to_h5ad(source: Path, target: Path) -> None:
    """Convert in a child process: HDF5 on a full disk ends its process with a segmentation fault."""
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    free = shutil.disk_usage(target.parent).free
    if free < 2 * size:
        raise OutputError(f"{target} needs up to {2 * size:,} bytes, {free:,} are free; write .zarr instead, or make room.")
    partial = target.with_name(f".{target.stem}.partial-{os.getpid()}.h5ad")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CONVERT, str(source), str(partial)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise OutputError(f"{target} cannot be written: {reason[0]}")
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)
