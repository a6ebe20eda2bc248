"""Where predictions go: arrays in memory, or an AnnData zarr on disk that is complete or absent."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scamac_scale.atomic import atomic_folder, check_output, flush, scratch_folder, writing
from scamac_scale.errors import InputError, OutputError
from scamac_scale.infer import convert
from scamac_scale.infer.spool import RowSpool
from scamac_scale.store.obs import storable_frame

if TYPE_CHECKING:
    from collections.abc import Iterator
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

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Take some rows, in any order."""
        self._labels[rows] = labels
        for name, block in blocks.items():
            self._blocks[name][rows] = block

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> ad.AnnData:
        """Put the AnnData with all keys together."""
        import anndata as ad
        import pandas as pd

        obs = self._obs.copy()
        obs[CLUSTER_KEY] = cluster_column(self._labels, n_clusters)
        layers = {name: block for name, block in self._blocks.items() if name == DENOISED_KEY}
        obsm = {name: block for name, block in self._blocks.items() if name != DENOISED_KEY}
        var = pd.DataFrame(index=pd.Index(self._genes, dtype=object))
        return ad.AnnData(obs=obs, var=var, obsm=obsm, layers=layers, uns={UNS_KEY: uns})


class DiskOutput:
    """Predictions streamed to an AnnData zarr, or to an h5ad by way of one; complete or absent.

    Parameters
    ----------
    path
        Target ending in ``.zarr`` or ``.h5ad``; must not exist.
    obs, genes, widths
        As of `MemoryOutput`.
    is_ordered
        Whether rows are going to be written in order; otherwise they are kept in plain files until all are there, which
        takes their space a second time.
    scratch_bytes
        What else lies beside it while it is made.

    Raises
    ------
    InputError
        If two columns of `obs` would have the same name.
    OutputError
        If the target exists, ends otherwise, cannot be written, or its disk has no room for `widths`.
    """

    def __init__(
        self,
        path: str | Path,
        obs: pd.DataFrame,
        genes: list[str],
        widths: dict[str, int],
        *,
        is_ordered: bool = True,
        scratch_bytes: int = 0,
    ) -> None:
        self.path = check_target(path)
        self._is_ordered = is_ordered
        self._obs = storable_frame(obs.assign(**{CLUSTER_KEY: 0}))
        self._genes, self._widths = genes, widths
        # an h5ad lies beside its zarr while it is made, and rows out of order beside that
        n_copies = (2 if self.path.suffix == ".h5ad" else 1) + (not is_ordered)
        check_room(self.path, n_copies * 4 * len(obs) * sum(widths.values()) + scratch_bytes)
        self._labels = np.zeros(len(obs), dtype=np.int64)
        self._stack = ExitStack()
        self._spools: dict[str, RowSpool] = {}

    def __enter__(self) -> Self:
        import zarr

        is_zarr = self.path.suffix == ".zarr"
        self._folder = self._stack.enter_context(atomic_folder(self.path) if is_zarr else _scratch(self.path))
        try:
            with writing(self.path):
                self._group = zarr.open_group(self._folder, mode="w", zarr_format=3)
                self._write_frame_of_anndata()
                self._arrays = {name: self._create(name, width) for name, width in self._widths.items()}
                spooled = {} if self._is_ordered else self._widths
                self._spools = {
                    name: RowSpool(Path(self._folder), len(self._obs), width) for name, width in spooled.items()
                }
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        return self

    def _write_frame_of_anndata(self) -> None:
        import pandas as pd

        self._group.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._write("var", pd.DataFrame(index=pd.Index(self._genes, dtype=object)))
        for name in ("obsm", "obsp", "varm", "varp", "layers"):
            self._write(name, {})

    def _write(self, name: str, value: Any) -> None:  # Any: whatever AnnData can write
        from anndata.io import write_elem

        write_elem(self._group, name, value, dataset_kwargs={"shards": None})

    def _create(self, name: str, width: int) -> Any:  # Any: zarr's array type is not typed for slicing
        parent: Any = self._group["layers" if name == DENOISED_KEY else "obsm"]
        return parent.create_array(
            name,
            shape=(len(self._obs), width),
            chunks=(min(len(self._obs), chunk_cells(width)), width),
            dtype="float32",
            attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spool in self._spools.values():
            spool.close()
        self._stack.__exit__(kind, error, trace)

    def write(self, rows: IntArray, labels: IntArray, blocks: dict[str, FloatArray]) -> None:
        """Write some rows, in any order unless all of them were announced to come in theirs."""
        self._labels[rows] = labels
        with writing(self.path):
            for name, block in blocks.items():
                if name in self._spools:
                    self._spools[name].write(rows, block)
                else:
                    self._arrays[name][int(rows[0]) : int(rows[-1]) + 1] = block

    def finish(self, n_clusters: int, uns: dict[str, Any]) -> Path:
        """Write the columns; the target appears when the context ends."""
        obs = self._obs.assign(**{CLUSTER_KEY: cluster_column(self._labels, n_clusters)})
        with writing(self.path):
            for name, spool in self._spools.items():
                for start, block in spool.blocks(self._arrays[name].chunks[0]):
                    self._arrays[name][start : start + len(block)] = block
                spool.close()
            self._write("obs", obs)
            self._write("uns", {UNS_KEY: uns})
            if self.path.suffix == ".h5ad":
                _to_h5ad(self._folder, self.path)
        return self.path


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work."""
    if Path(path).suffix not in (".zarr", ".h5ad"):
        raise InputError(f"the output {path} must end in .zarr or .h5ad.")
    return check_output(path)


def chunk_cells(width: int) -> int:
    """Cells in a chunk of at most `CHUNK_BYTES`: a power of two, so that the blocks of a sweep cut few chunks."""
    cells = max(1, min(CHUNK_CELLS, CHUNK_BYTES // (4 * width)))
    return 1 << (cells.bit_length() - 1)


def check_room(target: Path, n_bytes: int) -> None:
    """Refuse a target, or a folder, whose disk has less than `n_bytes` free."""
    free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    if free < n_bytes:
        advice = "write .zarr, or make room" if target.suffix == ".h5ad" else "make room, or choose another disk"
        raise OutputError(f"{target} needs up to {n_bytes:,} bytes, {free:,} are free; {advice}.")


@contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Give a zarr folder beside the target, removed at the end; what lies beside it goes, too."""
    with scratch_folder(target) as partial:
        check_output(target)  # another job may have written it while we came here
        yield partial / "new.zarr"


def _to_h5ad(source: Path, target: Path) -> None:
    """Convert in a child process: HDF5 on a full disk ends its process with a segmentation fault."""
    check_room(target, 2 * sum(file.stat().st_size for file in source.rglob("*") if file.is_file()))
    partial = source.with_name("new.h5ad")
    command = [sys.executable, "-P", "-m", convert.__name__, str(source), str(partial)]
    paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # the child finds what this process finds
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths})
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the conversion ended with code {done.returncode}"]
        raise OutputError(f"{target} cannot be written: {reason[0]}; make room, or write .zarr.")
    flush(partial)
    check_output(target)  # it may have appeared in the meantime
    partial.rename(target)
    flush(target.parent)
