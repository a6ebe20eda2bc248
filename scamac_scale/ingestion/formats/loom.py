"""Loom files: a dense matrix of genes by cells in HDF5, names and annotation in ``row_attrs`` and ``col_attrs``."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.arrays import check_array, check_names, is_array, part_of
from scamac_scale.ingestion.chunks import refuse_gaps
from scamac_scale.ingestion.formats.transpose import CHUNK_VALUES, Entries, TransposedRows, Unsorted
from scamac_scale.ingestion.rows import DENSE_SLAB_VALUES, below_one_another, value_dtype

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scamac_scale.ingestion.rows import Rows

logger = logging.getLogger(__name__)

Group = Any
"""An h5py group."""

GENE_NAMES = (
    "Gene",
    "gene_names",
    "var_names",
    "gene_symbols",
    "gene_name",
    "GeneName",
    "Symbol",
    "symbol",
    "index",
    "Accession",
    "gene_ids",
)
"""Names of attributes that name genes, the usual one first."""
CELL_NAMES = ("CellID", "obs_names", "cell_names", "cell_id", "barcode", "Barcode", "barcodes", "index")
"""Names of attributes that name cells."""
LOOKED_AT = 16
"""Genes that tell how many values are not zero."""
MOST_TWICE = 3
"""As often as this all values may be unpacked in a pass; else they are sorted by cells once."""


class OpenedLoom(NamedTuple):
    """A matrix of a loom file; ``obs`` has names as its index, and so has ``var``, which is named as the attribute they are from, if any."""

    rows: Rows
    var: pd.DataFrame
    obs: pd.DataFrame


def is_loom(file: Group) -> bool:
    """Tell whether an HDF5 file is a loom, by what is inside."""
    return "obs" not in file and "matrix" in file and ("row_attrs" in file or "col_attrs" in file)


def open_loom(file: Group, name: str, matrix: str) -> OpenedLoom:
    """Open a matrix of a loom file.

    Parameters
    ----------
    file
        An open h5py file for which `is_loom` holds.
    name
        Its path, for messages.
    matrix
        ``X``, or the name of a layer.

    Returns
    -------
    OpenedLoom
        Attributes with more than one value for a gene or cell are left out.

    Raises
    ------
    InputError
        If there is no such layer, or a part is missing or damaged.
    """
    layers = file["layers"] if "layers" in file and hasattr(file["layers"], "keys") else {}
    if matrix != "X" and matrix not in layers:
        raise InputError(
            f"{name} has no layer {matrix!r} (ingest.matrix); known are {', '.join(['X', *sorted(layers)])}."
        )
    values = part_of(file, "matrix", name) if matrix == "X" else part_of(layers, matrix, f"{name}: layers")
    where = f"{name}: {'matrix' if matrix == 'X' else f'layers/{matrix}'}"
    if values.shape is None or len(values.shape) != 2:
        raise InputError(f"{where} has {len(values.shape or ())} dimensions; expected genes by cells.")
    value_dtype(values.dtype, where)
    refuse_gaps(values, where)
    n_genes, n_cells = map(int, values.shape)
    var = _table(file, "row_attrs", n_genes, name, GENE_NAMES)
    obs = _table(file, "col_attrs", n_cells, name, CELL_NAMES)
    if obs.index.name is None:
        logger.warning("%s: cells have no names (col_attrs/CellID); they are numbered", name)
    return OpenedLoom(_rows(values, where), var, obs.rename_axis(None))


def _table(file: Group, key: str, length: int, name: str, names: tuple[str, ...]) -> pd.DataFrame:
    """Read attributes; the index is named as the attribute that it is from, None where there is none."""
    import pandas as pd

    group = file.get(key, {})
    if not hasattr(group, "keys"):
        raise InputError(f"{name}: {key} is no group; the file is damaged, write it again.")
    columns, left_out = {}, []
    for attribute in group:
        where = f"{name}: {key}/{attribute}"
        values = group[attribute]
        if not is_array(values):
            left_out.append(attribute)
            continue
        check_array(values, where)
        if not values.shape or values.shape[0] != length:
            raise InputError(
                f"{where} has shape {values.shape} for {length:,} {'genes' if key == 'row_attrs' else 'cells'}; the file is damaged, write it again."
            )
        if len(values.shape) > 1 or values.dtype.kind not in "biufSO" or values.dtype.names:
            left_out.append(attribute)
            continue
        check_names(values, where)
        refuse_gaps(values, where)
        found = values[:]
        if found.dtype.kind in "SO":
            found = np.array(
                [value.decode(errors="replace") if isinstance(value, bytes) else str(value) for value in found],
                dtype=object,
            )
        columns[attribute] = found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))
    if left_out:
        logger.warning(
            "%s: %d attributes of %s are left out, they are no columns: %s",
            name,
            len(left_out),
            key,
            ", ".join(left_out[:5]),
        )
    index = next((attribute for attribute in names if attribute in columns), None)
    if index and columns[index].dtype.kind not in "Oiu":
        raise InputError(
            f"{name}: {key}/{index} holds {columns[index].dtype}, which names nothing; expected texts or whole numbers. Write the file again."
        )
    labels = (
        pd.Index([str(value) for value in columns[index]], dtype=object, name=index)
        if index
        else pd.RangeIndex(length).astype(str)
    )
    return pd.DataFrame(
        {attribute: values for attribute, values in columns.items() if attribute != index or key == "row_attrs"},
        index=labels,
    )


def _rows(values: Any, name: str) -> Rows:  # Any: an h5py dataset
    """Read runs of cells as they lie where chunks allow it; else sort the values by cells first."""
    n_genes, n_cells = map(int, values.shape)
    slab = max(1, DENSE_SLAB_VALUES // max(1, n_genes))
    width = int(values.chunks[1]) if values.chunks else 1
    if width <= MOST_TWICE * slab or n_cells <= slab:
        return ColumnsAsRows(values, name, max(width, slab // width * width))
    dtype, per_slab = value_dtype(values.dtype, name), max(1, CHUNK_VALUES // max(1, n_cells))
    height = int(values.chunks[0])
    per_slab = max(height, per_slab // height * height)

    def read() -> Iterator[Entries]:
        for low in range(0, n_genes, per_slab):
            part = np.asarray(values[low : min(low + per_slab, n_genes)]).astype(dtype, copy=False)
            genes, cells = np.nonzero(part)
            yield Entries(cells.astype(np.int64), genes.astype(np.int64) + low, part[genes, cells])

    return TransposedRows(
        Unsorted(
            name,
            (n_cells, n_genes),
            n_genes * n_cells,
            values.dtype,
            "lies in chunks of many cells",
            read,
            n_likely=_likely(values),
        )
    )


def _likely(values: Any) -> int:  # Any: an h5py dataset
    """Guess how many values are not zero, by some genes that lie apart."""
    n_genes, n_cells = map(int, values.shape)
    genes = np.unique(np.linspace(0, n_genes - 1, LOOKED_AT).astype(int)) if n_genes and n_cells else np.zeros(0, int)
    found = [int(np.count_nonzero(values[gene, :CHUNK_VALUES])) / min(n_cells, CHUNK_VALUES) for gene in genes.tolist()]
    return int(n_genes * n_cells * max(0.01, 1.5 * float(np.mean(found)))) if found else 0


@dataclass(frozen=True)
class ColumnsAsRows:
    """A dense matrix of genes by cells, read in slabs of cells.

    Attributes
    ----------
    values
        (G, N) sliceable array.
    name
        Where it came from, for messages.
    slab_cells
        Cells held at a time as dense values: whole chunks.
    """

    values: Any
    name: str
    slab_cells: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, G)."""
        return int(self.values.shape[1]), int(self.values.shape[0])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values that `read` returns."""
        return value_dtype(self.values.dtype, self.name)

    @property
    def n_stored(self) -> int:
        """N G: a dense matrix stores its zeros too."""
        return self.shape[0] * self.shape[1]

    def read(self, start: int, stop: int) -> sparse.csr_matrix:
        """Read cells `start` to `stop` (exclusive); NaN counts as a value."""
        edges = [start, *range((start // self.slab_cells + 1) * self.slab_cells, stop, self.slab_cells), stop]
        slabs = [
            sparse.csr_matrix(np.asarray(self.values[:, low:high]).astype(self.dtype, copy=False).T)
            for low, high in itertools.pairwise(edges)
            if high > low
        ]
        return below_one_another(slabs, self.shape[1], self.dtype)
