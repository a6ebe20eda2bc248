"""An AnnData zarr into an h5ad, a chunk of rows at a time; run as a process of its own by `disk`.

For results of predict: a table of cells and one of genes, which fit in memory, and dense arrays in ``obsm`` and ``layers``,
which need not.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

STREAMED = ("obsm", "layers")
COMPRESSION = "gzip"


def convert(source: str | Path, target: str | Path) -> None:
    """Write an h5ad with the content of an AnnData zarr.

    Parameters
    ----------
    source
        Folder whose ``obsm`` and ``layers`` hold dense arrays of N rows.
    target
        The file; replaced if it is there.

    Notes
    -----
    Holds one chunk of rows of one array, besides everything outside ``obsm`` and ``layers``.
    """
    import h5py
    import zarr
    from anndata.io import read_elem, write_elem

    group: Any = zarr.open_group(source, mode="r")  # Any: zarr's members are not typed for slicing
    with h5py.File(target, "w") as file:
        file.attrs.update(group.attrs)
        for name, member in group.members():
            if name not in STREAMED:
                write_elem(file, name, read_elem(member), dataset_kwargs={"compression": COMPRESSION})
                continue
            file.create_group(name).attrs.update(member.attrs)
            for key, array in member.arrays():
                _copy(array, file[name], key)


def _copy(array: Any, parent: Any, name: str) -> None:  # Any: a zarr array and an h5py group
    """Copy an array by the rows of its chunks, so that each is read and written once."""
    copied = parent.create_dataset(
        name, shape=array.shape, dtype=array.dtype, chunks=array.chunks, compression=COMPRESSION
    )
    copied.attrs.update(array.attrs)
    for start in range(0, array.shape[0], array.chunks[0]):
        stop = min(start + array.chunks[0], array.shape[0])
        copied[start:stop] = array[start:stop]


def reason(error: BaseException) -> str:
    """Tell in one line what HDF5 says in many, and not always as an error of the system."""
    found = re.search(r"errno = (\d+)", str(error))
    return os.strerror(int(found[1])) if found else " ".join(str(error).split())


def end_with(parent: int) -> None:
    """End when the process that started this one has ended, which nobody would tell otherwise."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        convert(*sys.argv[1:])
    except (OSError, RuntimeError) as error:
        sys.stderr.write(reason(error))
        sys.stderr.flush()
        os._exit(1)  # at a normal end HDF5 tries to write the rest once more, and crashes
