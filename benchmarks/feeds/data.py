"""One folder of simulated cells in the formats of all feeds, made once, and what every cell must be.

Cells are numbered by their row in the atlas. Normalised means log1p of counts scaled to the median total over all genes.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import time
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

COUNTS_PER_GENE = 0.3
"""Median counts of a cell over the genes; at 3,000 genes about 500 of them are not zero."""
N_DATASETS = 10
"""Runs of neighbouring cells, as if atlases were joined end to end."""
WRITTEN_CELLS = 4096
MARKER = "prepared.json"
WEIGHT_SEED = 20260101

Block = tuple[slice, np.ndarray, np.ndarray, np.ndarray]
"""Rows, and their indptr (from 0), indices and data."""


def prepare(folder: Path, n_cells: int, n_genes: int, say: Callable[[str], None]) -> dict[str, float]:
    """Make the files that all feeds share, those that are missing.

    Parameters
    ----------
    folder
        Where; made if missing.
    n_cells, n_genes
        Size of the atlas.
    say
        Told what is being made.

    Returns
    -------
    dict
        Seconds that each part took when it was made.

    Raises
    ------
    ValueError
        If the folder holds data of other parameters.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = parameters(n_cells, n_genes)
    held = read_marker(folder)
    if held["parameters"] not in ({}, wanted):
        raise ValueError(f"the data folder was made with {held['parameters']}, expected {wanted}; name another one.")
    _write_marker(folder, {**held, "parameters": wanted})
    for name, make in PARTS.items():
        make_part(folder, name, lambda make=make: make(folder), say)
    return read_marker(folder)["seconds"]


def make_part(folder: Path, name: str, make: Callable[[], None], say: Callable[[str], None]) -> None:
    """Make one part of the folder unless it is there, and note how long it took."""
    if name in read_marker(folder)["seconds"]:
        return
    say(f"making {name}")
    began = time.perf_counter()
    make()
    held = read_marker(folder)
    held["seconds"][name] = round(time.perf_counter() - began, 2)
    _write_marker(folder, held)


def parameters(n_cells: int, n_genes: int) -> dict[str, Any]:
    """What the atlas is drawn with."""
    from scamac_scale.simulation.drawn import simulate

    settings: dict[str, Any] = {"n_cells": n_cells, "n_genes": n_genes, "seed": 0}
    if "counts_per_gene" in inspect.signature(simulate).parameters:
        settings["counts_per_gene"] = COUNTS_PER_GENE
    return settings


def read_marker(folder: Path) -> dict[str, Any]:
    """What the folder was made with, and the seconds of each part that is there."""
    path = folder / MARKER
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return {"parameters": {}, "seconds": {}, **held}


def _write_marker(folder: Path, held: dict[str, Any]) -> None:
    beside = folder / (MARKER + ".new")
    beside.write_text(json.dumps(held, indent=1) + "\n")
    os.replace(beside, folder / MARKER)


def write_atlas(folder: Path) -> None:
    """Draw the raw counts, as AnnData zarr."""
    from scamac_scale.simulation.drawn import simulate

    settings = dict(read_marker(folder)["parameters"])
    simulate(folder / "atlas.zarr", settings.pop("n_cells"), overwrite=True, **settings)


def write_raw(folder: Path) -> None:
    """Copy the raw counts into an h5ad."""
    import h5py
    import zarr

    atlas = zarr.open_group(folder / "atlas.zarr", mode="r")
    with h5py.File(folder / "raw.h5ad", "w") as file:
        copy_atlas(atlas, file, lambda block: block[3])


def write_normalised_h5ad(folder: Path) -> None:
    """Normalise into an h5ad."""
    import h5py
    import zarr

    atlas = zarr.open_group(folder / "atlas.zarr", mode="r")
    with h5py.File(folder / "normalised.h5ad", "w") as file:
        copy_atlas(atlas, file, normaliser(atlas))


def write_normalised_zarr(folder: Path) -> None:
    """Normalise into a zarr."""
    import zarr

    atlas = zarr.open_group(folder / "atlas.zarr", mode="r")
    copy_atlas(atlas, zarr.open_group(folder / "normalised.zarr", mode="w", zarr_format=3), normaliser(atlas))


def normaliser(atlas: Any) -> Callable[[Block], np.ndarray]:
    """Find the median total, and give the function that normalises the values of a block."""
    total = np.concatenate([row_sums(indptr, data) for _, indptr, _, data in blocks(atlas)])
    scale = np.median(total) / np.where(total > 0, total, 1.0)  # a cell without counts has nothing to scale

    def normalise(block: Block) -> np.ndarray:
        rows, indptr, _, data = block
        return np.log1p(data * np.repeat(scale[rows], np.diff(indptr))).astype(np.float32)

    return normalise


def row_sums(indptr: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sum each row of CSR, in float64."""
    row = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
    return np.bincount(row, weights=values, minlength=len(indptr) - 1)


def blocks(root: Any) -> Iterator[Block]:
    """Read X run by run, as (rows, indptr, indices, data)."""
    indptr = root["X/indptr"][:]
    for start in range(0, len(indptr) - 1, WRITTEN_CELLS):
        rows = slice(start, min(start + WRITTEN_CELLS, len(indptr) - 1))
        values = slice(int(indptr[rows.start]), int(indptr[rows.stop]))
        inside = indptr[rows.start : rows.stop + 1] - indptr[rows.start]
        yield rows, inside, root["X/indices"][values], root["X/data"][values]


def copy_atlas(atlas: Any, target: Any, values: Callable[[Block], np.ndarray]) -> None:
    """Write an AnnData group with other values; memory holds one block.

    Notes
    -----
    Of an h5ad the arrays lie in one piece, uncompressed, which is the fastest to read.
    """
    from anndata.io import read_elem, write_elem

    obs = read_elem(atlas["obs"])
    n_cells, n_genes = len(obs), int(atlas["X"].attrs["shape"][1])
    obs["cell_id"] = np.arange(n_cells, dtype=np.int64)
    obs["dataset"] = dataset_of(n_cells)
    target.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    plain: dict[str, Any] = {"shards": None} if hasattr(target, "create_array") else {}
    write_elem(target, "obs", obs, dataset_kwargs=plain)
    write_elem(target, "var", read_elem(atlas["var"]), dataset_kwargs=plain)
    x = target.create_group("X")
    x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, n_genes]})
    indptr = atlas["X/indptr"][:]
    n_values = int(indptr[-1])
    chunk = max(1, n_values * WRITTEN_CELLS // n_cells)
    _create(x, "indptr", len(indptr), np.int32 if n_values < 2**31 else np.int64, len(indptr))[:] = indptr
    indices = _create(x, "indices", n_values, np.int32, chunk)
    data = _create(x, "data", n_values, np.float32, chunk)
    for block in blocks(atlas):
        rows, inside = block[:2]
        place = slice(int(indptr[rows.start]), int(indptr[rows.start] + inside[-1]))
        indices[place] = block[2].astype(np.int32)
        data[place] = values(block)


def dataset_of(n_cells: int) -> np.ndarray:
    """(N,) which joined atlas each cell is from."""
    return (np.arange(n_cells) * N_DATASETS // n_cells).astype(np.int32)


def _create(group: Any, name: str, size: int, dtype: Any, chunk: int) -> Any:
    if hasattr(group, "create_array"):
        return group.create_array(name, shape=(size,), dtype=np.dtype(dtype), chunks=(min(chunk, size),))
    return group.create_dataset(name, shape=(size,), dtype=dtype)


def write_truth(folder: Path) -> None:
    """Sum up every normalised cell with random weights."""
    import h5py

    with h5py.File(folder / "normalised.h5ad") as file:
        n_genes = int(file["X"].attrs["shape"][1])
        weights = np.random.default_rng(WEIGHT_SEED).standard_normal(n_genes)
        sums: list[np.ndarray] = []
        for _, indptr, indices, data in blocks(file):
            product = data * weights[indices]
            sums.append(np.stack([row_sums(indptr, product), row_sums(indptr, np.abs(product)), np.diff(indptr)]))
    checksum, magnitude, nnz = np.concatenate(sums, axis=1)
    dataset = dataset_of(len(nnz))
    np.savez(
        folder / "truth.npz",
        weights=weights,
        checksum=checksum,
        magnitude=magnitude,
        nnz=nnz.astype(np.int64),
        dataset=dataset,
    )


def write_annbatch(folder: Path) -> None:
    """Make annbatch's collection with its own defaults; runs where annbatch is."""
    import zarr
    from annbatch import DatasetCollection

    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
    shutil.rmtree(folder / "annbatch", ignore_errors=True)
    (folder / "annbatch").mkdir()
    collection = DatasetCollection(folder / "annbatch" / "collection.zarr")
    collection.add_adatas([folder / "normalised.h5ad"], rng=np.random.default_rng(0))


PARTS: dict[str, Callable[[Path], None]] = {
    "atlas.zarr": write_atlas,
    "raw.h5ad": write_raw,
    "normalised.h5ad": write_normalised_h5ad,
    "normalised.zarr": write_normalised_zarr,
    "truth.npz": write_truth,
}
