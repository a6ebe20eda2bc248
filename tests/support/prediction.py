"""A small atlas, stores of it in two orders, a model for it, and what tells one prediction from another."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr

from scamac_scale import sweep
from scamac_scale.config import IngestConfig
from scamac_scale.infer import predict
from scamac_scale.infer.options import PredictOptions
from scamac_scale.infer.output import disk, table
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.simulation.drawn import simulate
from scamac_scale.sources import open_source
from tests.support.fitted import fitted_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from scamac_scale.fitted import FittedModel

N_CELLS = 5500
N_BLOCKS = 6
ORDERS = ("ordered", "shuffled")


def make_stores(folder: Path, n_cells: int = N_CELLS) -> Path:
    """Stores ``ordered.zarr`` and ``shuffled.zarr`` of the same cells, six blocks of them."""
    folder.mkdir(exist_ok=True)
    atlas = simulate(folder / "atlas.zarr", n_cells, n_genes=60, n_types=5)
    for order in ORDERS:
        ingest(atlas, folder / f"{order}.zarr", IngestConfig(n_genes=30, shuffle=order == "shuffled"))
    return folder


def model_of(store: Path, seed: int = 0) -> FittedModel:
    """A model of random weights."""
    with open_source(store) as source:
        model = fitted_model(seed, tuple(source.gene_names))
        model.genes = source.gene_space
    torch.nn.init.normal_(model.network.get_parameter("fusion.alpha"), generator=torch.manual_seed(2))
    return model


def look_often(put: Callable[[Any, str, Any], None] = setattr, every_s: float = 0.0) -> None:
    """Make a turn of each block, an entry of the journal every so often, and small chunks, so that every rank has some."""
    for module in (sweep, disk, predict):
        put(module, "TICK_BATCHES", 1)
    put(disk, "JOURNAL_S", every_s)
    put(table, "CHUNK_CELLS", 512)


def run_predict(store: Path, out: Path, world: World = ALONE, **options: Any) -> Any:
    """Predict a store by its model."""
    how = {name: options.pop(name) for name in ("seed", "resume") if name in options}
    model = model_of(store, how.pop("seed", 0))
    asked = PredictOptions(**{"is_denoised": True, **options})
    with open_source(store, model.genes) as source:
        return predict.predict(model, source, out, asked, world=world, **how)


def digests(path: Path) -> dict[str, str]:
    """SHA-256 of every array of a result, zarr or h5ad, but for what names the file that it was made from."""
    import h5py

    found = {}

    def take(name: str, array: Any) -> None:
        if name == "uns/scamac_details/identity":
            return
        values = array[()]
        text = (
            values.tobytes() if np.asarray(values).dtype.kind in "biuf" else repr(np.asarray(values).tolist()).encode()
        )
        found[name] = hashlib.sha256(text).hexdigest()

    if path.is_dir():
        for name, member in zarr.open_group(path, mode="r").members(max_depth=None):
            if isinstance(member, zarr.Array):
                take(name, member)
        return found
    with h5py.File(path) as file:
        file.visititems(lambda name, member: take(name, member) if isinstance(member, h5py.Dataset) else None)
    return found


def tree_digest(path: Path) -> str:
    """SHA-256 of all files of a folder, with their names."""
    found = hashlib.sha256()
    for file in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        found.update(f"{file.relative_to(path)}\n".encode() + file.read_bytes())
    return found.hexdigest()
