"""The result with its sub-clusters: what the result held, one more column and a table, as a new file."""

from __future__ import annotations

import csv
import io
import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import zarr

from scamac_scale.durable.atomic import atomic_file, writing
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import OutputError
from scamac_scale.infer.output.table import chunk_cells
from scamac_scale.ingestion.files import open_file, place_of
from scamac_scale.ingestion.frames import read_frame
from scamac_scale.ingestion.raw import blamed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

logger = logging.getLogger(__name__)

SUBCLUSTER_KEY = "scamac_subcluster"
UNS_KEY = "scamac_refine"
COPIED = ("obsm", "layers")
TABLE_START = b"cluster,part,n_cells,"
"""Of the table of tests, as text."""


def write_result(result: str | Path, obs: pd.DataFrame, uns: Mapping[str, Any], path: Path) -> None:
    """Write an AnnData zarr with the content of a result, another table of cells and one more entry of uns.

    Parameters
    ----------
    result
        Zarr or h5ad: its var, uns and dense arrays of obsm and layers are copied, a block of rows at a time.
    obs
        (N) rows.
    uns
        Goes into ``uns["scamac_refine"]``.
    path
        Folder to write; empty.
    """
    from anndata.io import read_elem, write_elem

    place = place_of(result)
    with open_file(place) as source, zarr.config.set({"array.write_empty_chunks": True}):
        target = zarr.open_group(path, mode="w", zarr_format=3)
        target.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        with blamed(str(result), "its var or uns"):
            var = read_elem(source["var"])
            kept = read_elem(source["uns"]) if "uns" in source else {}
        options = {"dataset_kwargs": {"shards": None}}
        with writing(path):
            write_elem(target, "var", var, **options)
            write_elem(target, "obs", obs, **options)
            write_elem(target, "uns", {**kept, UNS_KEY: dict(uns)}, **options)
            for name in ("obsm", "obsp", "varm", "varp", "layers"):
                write_elem(target, name, {}, **options)
        left = [f"{name}/{key}" for name in ("obsp", "varm", "varp") for key in source.get(name, {})]
        for name in COPIED:
            for key in source.get(name, {}):
                array = source[name][key]
                if getattr(array, "ndim", 0) != 2 or array.shape[0] != len(obs):
                    left.append(f"{name}/{key}")
                    continue
                with blamed(str(result), f"{name}/{key}"), writing(path):
                    _copy(array, target, f"{name}/{key}")
    if left:
        logger.warning("%s: %s are not carried over", result, ", ".join(left[:5]) + (", ..." if len(left) > 5 else ""))


def _copy(array: Any, target: Any, name: str) -> None:  # Any: an array of h5py or zarr, and a zarr group
    n_rows, width = array.shape
    rows = min(n_rows, chunk_cells(max(width, 1)))
    copied = target.create_array(
        name,
        shape=array.shape,
        chunks=(max(rows, 1), max(width, 1)),
        dtype=array.dtype,
        attributes={"encoding-type": "array", "encoding-version": "0.2.0"},
    )
    for start in range(0, n_rows, max(rows, 1)):
        copied[start : start + rows] = array[start : start + rows]


def table_path(out: str | Path) -> Path:
    """Name the table beside a result."""
    return at_home(out).with_suffix(".refine.csv")


def read_table(out: str | Path) -> list[dict[str, Any]]:
    """Read the table of tests that a result holds: plain data."""
    with open_file(place_of(out)) as source:
        frame = read_frame(source[f"uns/{UNS_KEY}/table"], f"{out}: uns/{UNS_KEY}/table")
    return [
        {str(name): value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def check_table(out: str | Path) -> None:
    """Refuse a file of the table's name that is none, before any work.

    Raises
    ------
    OutputError
        If there is one.
    """
    path = table_path(out)
    if not os.path.lexists(path):
        return
    is_ours = path.is_file() and not path.is_symlink()
    if is_ours:
        with writing(path), path.open("rb") as file:
            is_ours = file.read(len(TABLE_START)) in (b"", TABLE_START)
    if not is_ours:
        raise OutputError(f"{path} is already there, and no table of refine; remove it, or choose another --out.")


def write_table(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table of tests beside a result."""
    text = io.StringIO(newline="")
    if rows:
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    path = table_path(out)
    with writing(path), atomic_file(path) as partial:
        partial.write_text(text.getvalue())


def table_frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make the table of ``uns["scamac_refine"]``, which AnnData can write."""
    frame = pd.DataFrame(list(rows))
    frame.index = pd.Index([str(at) for at in range(len(frame))], dtype=object)
    for column in frame.columns:
        if frame[column].map(lambda value: isinstance(value, str)).all():
            frame[column] = np.asarray(frame[column].to_numpy(), dtype=object)
    return frame
