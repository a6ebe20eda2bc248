"""A new h5ad of an old one and a part of uns; run as a process of its own by `writing`."""

from __future__ import annotations

import os
import sys
import threading
from typing import TYPE_CHECKING, Any

from scamac_scale.infer.output.convert import COMPRESSION, end_with, reason
from scamac_scale.marker_genes.parts import write_part

if TYPE_CHECKING:
    from pathlib import Path


def merge(source: str | Path, table: str | Path, target: str | Path, key: str) -> None:
    """Write an h5ad with all that another one has, and a table in its uns.

    Parameters
    ----------
    source
        The other h5ad; its arrays are copied as they are stored.
    table
        Zarr with a group ``table``.
    target
        The file.
    key
        Of uns; what is there of that name is left out.
    """
    import h5py
    import zarr
    from anndata.io import read_elem, write_elem

    group: Any = zarr.open_group(table, mode="r")  # Any: zarr's members are not typed
    with h5py.File(source, "r") as old, h5py.File(target, "w") as new:
        new.attrs.update(old.attrs)
        for name in old:
            if name != "uns":
                old.copy(name, new, name)
        write_elem(new, "uns", {})
        for name in old.get("uns", ()):
            if name != key:
                old.copy(f"uns/{name}", new["uns"], name)
        write_elem(new["uns"], key, {})
        for name, member in group["table"].members():
            write_part(new["uns"][key], name, read_elem(member), {"compression": COMPRESSION})


if __name__ == "__main__":
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    try:
        merge(*sys.argv[1:])
    except (OSError, RuntimeError) as error:
        sys.stderr.write(reason(error))
        sys.stderr.flush()
        os._exit(1)  # at a normal end HDF5 tries to write the rest once more, and crashes
