"""How a training store looks on disk: names, types, chunks, shards, version (docs/store.md describes it whole).

A store is an AnnData zarr v3 group. ``X`` holds the chosen genes of every cell as sparse rows of raw values; ``obs`` the
columns of the input and two of ours; ``var`` the gene statistics; ``uns/scamac`` the gene space and where all came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

VERSION = 1
RECORD = "scamac_store"
"""Attribute of the root group that holds the commit record."""
METADATA = "zarr.json"
GENE_SPACE = "uns/scamac/gene_space"
TOTAL = "scamac_total"
"""Column of obs: total of the cell over the filtered genes, before scaling."""
SOURCE_ROW = "scamac_row"
"""Column of obs: row of the cell in the input."""
INDPTR_CHUNK = 2**17
CHUNK_VALUES = 2**15
SHARD_VALUES = 2**25
COMPRESSOR = {"cname": "lz4", "clevel": 5}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How an array of values is cut.

    Attributes
    ----------
    chunk_values
        Values that are encoded and checked together: 32,768 are about 60 cells of 500 values.
    shard_values
        Values in a file, whole chunks: about 65,000 cells of 500 values, so that 100 million cells are 3,000 files.
    """

    chunk_values: int = field(default_factory=lambda: CHUNK_VALUES)
    shard_values: int = field(default_factory=lambda: SHARD_VALUES)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """How the two large arrays of a store are compressed: LZ4 after a shuffle of the bytes or bits; None for not at all."""

    data: str | None
    indices: str | None


PROFILES = {"fast": Profile(data=None, indices=None), "small": Profile(data="bitshuffle", indices="shuffle")}
"""``fast`` is not compressed, ``small`` takes half of the space and twice the time (docs/store.md has the measurement)."""


def array_metadata(dtype: np.dtype[Any], sizes: Sizes, shuffle: str | None) -> dict[str, Any]:
    """Parts of the ``zarr.json`` of a large array on which a reader relies."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    plain = little if dtype.itemsize > 1 else {"name": "bytes"}
    blosc = {
        "name": "blosc",
        "configuration": {"typesize": dtype.itemsize, **COMPRESSOR, "shuffle": shuffle, "blocksize": 0},
    }
    crc = {"name": "crc32c"}
    sharding = {
        "chunk_shape": [sizes.chunk_values],
        "codecs": [plain, *([] if shuffle is None else [blosc]), crc],
        "index_codecs": [little, crc],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [sizes.shard_values]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }


def index_dtype(n_genes: int) -> np.dtype[Any]:
    """Smallest type of the gene indices: uint16 below 65,536 genes, uint32 beyond."""
    return np.dtype(np.uint16 if n_genes < 2**16 else np.uint32)


def value_dtype(kind: str, largest: float) -> np.dtype[Any]:
    """Type of the stored values.

    Parameters
    ----------
    kind
        Of the gene space.
    largest
        Largest value to be stored; only asked for counts.

    Returns
    -------
    dtype
        The smallest unsigned type for counts, float32 otherwise.
    """
    if kind != "counts":
        return np.dtype(np.float32)
    return next(np.dtype(name) for name in ("u1", "u2", "u4", "u8") if largest <= np.iinfo(name).max)
