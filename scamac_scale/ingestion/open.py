"""Opening raw data: h5ad, AnnData zarr, 10x h5, loom, Matrix Market, or an AnnData, all behind `RawMatrix`.

Everything that can be wrong with a file and is cheap to see is refused here, with one message: wrong kind of file, no
matrix, unknown layer, duplicate genes, links that lead out of the file. Values are checked
where they are read (``csr.py``) and counted (``statistics.py``).
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError
from scamac_scale.ingestion.arrays import check_array, check_encoding, encoding, is_array, part_of
from scamac_scale.ingestion.chunks import refuse_dense_gaps, refuse_gaps
from scamac_scale.ingestion.files import ROOT_FILES, absolute_name, is_hdf5, open_file, place_of
from scamac_scale.ingestion.formats.csc import open_csc
from scamac_scale.ingestion.formats.gene_names import names_of
from scamac_scale.ingestion.formats.hints import tell_of_raw
from scamac_scale.ingestion.formats.lazy import in_memory, is_dask, open_dask
from scamac_scale.ingestion.formats.loom import is_loom, open_loom
from scamac_scale.ingestion.formats.mtx import open_mtx
from scamac_scale.ingestion.formats.mtx_files import find_market
from scamac_scale.ingestion.formats.mtx_there import copied_market
from scamac_scale.ingestion.frames import count_names, read_frame, read_names
from scamac_scale.ingestion.obsm import ObsmArray, dense_array
from scamac_scale.ingestion.raw import IN_MEMORY, RawMatrix, Recipe, blamed, closing, nothing
from scamac_scale.ingestion.rows import DenseRows, Rows, SparseRows
from scamac_scale.ingestion.tenx import is_tenx, open_tenx
from scamac_scale.remote.place import BucketPlace

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from anndata import AnnData

    from scamac_scale.ingestion.formats.mtx_files import MatrixFiles


logger = logging.getLogger(__name__)

Group = Any
"""An h5py or zarr group: looked up by name, with ``attrs``."""


class _Place(NamedTuple):
    """A matrix that an input holds: how to get it and the table of its genes, and what it is called in Python."""

    values: Callable[[], Any]
    var: Callable[[], Any]
    python: str


def open_raw(
    data: str | os.PathLike[str] | BucketPlace | AnnData, matrix: str = "X", gene_column: str | None = None
) -> RawMatrix:
    """Open raw data for reading by blocks of cells.

    Parameters
    ----------
    data
        Path or URL of an ``.h5ad``, an AnnData zarr folder, a 10x ``.h5`` (versions 2 and 3), a loom (told apart by what is inside), a Matrix
        Market file or a folder with one; or an AnnData: in memory, backed, or with an X of dask.
    matrix
        Where the values lie: ``X``, ``raw``, or the name of a layer; a layer of one of these two names is read where there
        is no other matrix of that name.
    gene_column
        Column of the table of genes that has their names; None takes its index, or symbols where the format has them.

    Returns
    -------
    RawMatrix
        Reads lazily; close it, or use it as a context manager.

    Raises
    ------
    InputError
        If there is nothing at the path, it is none of these formats, it is damaged or truncated, the matrix or the column is
        missing, gene names repeat, or an HDF5 file or a folder has links that lead out.

    Notes
    -----
    Symbols of 10x, Matrix Market and loom files, and names of a `gene_column`, are made unique as scanpy does; features other than gene
    expression are left out; the log says so. What does not lie by cells is sorted by cells once, see `TransposedRows`.
    """
    if not isinstance(data, str | os.PathLike | BucketPlace):
        return _open_anndata(data, matrix, gene_column)
    path = place_of(data)
    where = absolute_name(path)
    recipe = Recipe(open_raw, (where, matrix, gene_column), (where,))
    if isinstance(path, BucketPlace) and path.key:
        recipe = recipe.stamped()  # before it is copied
    market = path if isinstance(path, Path) else copied_market(path)
    files = None if market is None else find_market(market)
    recipe = _looked_at(recipe, path, files)
    if files is not None:
        with blamed(str(path), "it"):
            rows, var, obs = open_mtx(files, str(path), matrix)
            raw = _raw_of(rows, path, matrix, (var, "gene_symbols", gene_column), lambda: obs)
            beside = (files.genes, files.cells) if path == market and path.is_file() else ()
            return replace(raw, recipe=replace(recipe, files=(where, *map(str, beside))))
    with open_file(path, is_kept=True) as group:
        raw = replace(_open_hdf5_or_zarr(group, path, matrix, gene_column), recipe=recipe)
        _ = raw.obs  # what is wrong with it is known before hours of work
        return raw


def _looked_at(recipe: Recipe, path: Path | BucketPlace, files: MatrixFiles | None) -> Recipe:
    """Look at what is about to be opened; not below a folder that may be any."""
    if files is not None and isinstance(path, Path):
        used = (*files.matrices.values(), files.genes, files.cells)
        recipe = replace(recipe, files=tuple(map(absolute_name, used)))
    elif (
        isinstance(path, Path) and os.path.isdir(path) and not any(os.path.lexists(path / name) for name in ROOT_FILES)
    ):
        return recipe
    return recipe.stamped() if isinstance(path, Path) else recipe


def _open_hdf5_or_zarr(group: Group, path: Path | BucketPlace, matrix: str, gene_column: str | None) -> RawMatrix:
    """Open what an HDF5 file or a zarr folder holds."""
    name = str(path)
    if is_hdf5(group) and is_loom(group):
        loom = open_loom(group, name, matrix)
        column = None if loom.var.index.name is None else str(loom.var.index.name)
        if column is None and gene_column is None:
            known = ", ".join(map(str, loom.var.columns)) or "nothing"
            raise InputError(
                f"{name}: its row_attrs do not name the genes (Gene), they are {known}; name one with ingest.gene_column."
            )
        raw = _raw_of(loom.rows, path, matrix, (loom.var, column, gene_column), lambda: loom.obs, group)
    elif is_hdf5(group) and is_tenx(group):
        tenx = open_tenx(group, name, matrix)
        raw = _raw_of(tenx.rows, path, matrix, (tenx.var, "gene_symbols", gene_column), tenx.read_obs, group)
    else:
        raw = _open_group(group, path, matrix, gene_column)
    return raw


def _raw_of(
    rows: Rows,
    path: Path | BucketPlace,
    matrix: str,
    genes: tuple[pd.DataFrame, str | None, str | None],
    read_obs: Callable[[], pd.DataFrame],
    group: Group = None,
) -> RawMatrix:
    """Put together what a format other than AnnData has; `genes` are a table, its column of names, and the one that was asked for."""
    name, (var, usual, asked) = str(path), genes
    column = asked or usual
    assert column is not None
    names = names_of(var, column, name)
    return RawMatrix(
        name,
        path,
        matrix,
        names,
        rows,
        read_obs,
        closing(rows, group),
        read_vars=lambda: [(name, var.set_axis(list(names)))],
    )


def read_obs(data: str | os.PathLike[str] | BucketPlace) -> pd.DataFrame:
    """Read the annotation of the cells of a file, whatever else it holds.

    Parameters
    ----------
    data
        Path of an ``.h5ad``, an AnnData zarr folder, which need not have an X, or a loom.

    Returns
    -------
    DataFrame
        One row per cell, names as its index.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    path = place_of(data)
    with open_file(path) as group:
        if is_hdf5(group) and is_loom(group):
            return open_loom(group, str(path), "X").obs
        _require_anndata(group, str(path))
        return read_frame(group["obs"], f"{path}: obs", _uns(group))


def open_obsm(data: str | os.PathLike[str] | BucketPlace | AnnData, key: str) -> ObsmArray:
    """Open an array of ``obsm`` for reading by blocks of cells.

    Parameters
    ----------
    data
        Path of an ``.h5ad`` or an AnnData zarr folder, which need not have an X, or an AnnData.
    key
        Of ``obsm``, such as ``X_scAMAC``.

    Returns
    -------
    ObsmArray
        Reads lazily; close it, or use it as a context manager.

    Raises
    ------
    InputError
        If the file cannot be read, has no such key, or it is no dense array of numbers.
    """
    if not isinstance(data, str | os.PathLike | BucketPlace):
        return dense_array(_find_obsm(data.obsm, key, IN_MEMORY), f"{IN_MEMORY}: obsm[{key!r}]")
    path = place_of(data)
    with open_file(path, is_kept=True) as group:
        _require_anndata(group, str(path))
        name = f"{path}: obsm[{key!r}]"
        found = dense_array(_find_obsm(group.get("obsm", {}), key, str(path)), name, getattr(group, "close", nothing))
        check_array(found.values, name)
        refuse_gaps(found.values, name)
        return found


def _find_obsm(obsm: Any, key: str, name: str) -> Any:  # Any: a group of a file, or what AnnData has
    if key not in obsm:
        raise InputError(f"{name} has no obsm[{key!r}] (basis); known are {', '.join(sorted(obsm.keys())) or 'none'}.")
    return obsm[key]


def _require_anndata(group: Group, name: str) -> None:
    if "obs" not in group or "var" not in group:
        held = ", ".join(sorted(group.keys())[:10]) or "nothing"
        lacking = " and no ".join(key for key in ("obs", "var") if key not in group)
        raise InputError(f"{name} is not an AnnData file: it has no {lacking} (it holds {held}).")


def _open_group(group: Group, path: Path | BucketPlace, matrix: str, gene_column: str | None) -> RawMatrix:
    """Open the AnnData that an HDF5 file or a zarr group holds."""
    name = str(path)
    _require_anndata(group, name)
    own: dict[str, _Place] = {}
    if _is_there(group, "X"):
        own["X"] = _Place(lambda: group["X"], lambda: group["var"], "adata.X")
    if _is_there(group, "raw") and hasattr(group["raw"], "keys") and _is_there(group["raw"], "X"):
        own["raw"] = _Place(lambda: group["raw"]["X"], lambda: group["raw"]["var"], "adata.raw.X")
    elif _is_there(group, "raw.X") and "raw.var" in group:  # as anndata before 0.7 wrote it
        own["raw"] = _Place(lambda: group["raw.X"], lambda: group["raw.var"], "adata.raw.X")
    layers = group.get("layers", {})
    layers = layers if hasattr(layers, "keys") else {}
    place = _choose_matrix(name, matrix, own, {key: _layer(layers, key, lambda: group["var"]) for key in layers})
    rows = _open_element(place.values(), f"{name}: {matrix}")
    if matrix == "X" and "raw" in own:
        tell_of_raw(rows, lambda: _open_element(own["raw"].values(), f"{name}: raw"), name)
    _check_counts(
        rows, count_names(group["obs"], f"{name}: obs"), count_names(place.var(), f"{name}: var"), f"{name}: {matrix}"
    )

    def read_var() -> pd.DataFrame:
        return read_frame(place.var(), f"{name}: var", _uns(group))

    genes = read_names(place.var(), f"{name}: var") if gene_column is None else names_of(read_var(), gene_column, name)
    return RawMatrix(
        name,
        path,
        matrix,
        tuple(genes),
        rows,
        lambda: read_frame(group["obs"], f"{name}: obs", _uns(group)),
        closing(rows, group),
        _base_of(_uns(group) or {}),
        read_vars=lambda: [(name, read_var().set_axis(list(genes)))],
    )


def _check_counts(rows: Rows, n_obs: int | None, n_var: int | None, name: str) -> None:
    """Compare the matrix with the names, before these are read or anything is allocated by their number."""
    n_cells, n_genes = rows.shape
    if n_var is not None and n_var != n_genes:
        raise InputError(
            f"{name} has {n_genes} columns, but {n_var} genes are named; the file is damaged, write it again."
        )
    if n_obs is not None and n_obs != n_cells:
        raise InputError(
            f"{name.partition(': ')[0]}: obs names {n_obs} cells, but {name.partition(': ')[2]} has {n_cells}; the file is "
            "damaged, write it again."
        )


def _uns(group: Group) -> Any:  # Any: a group, where there is one
    uns = group.get("uns", None)
    return uns if hasattr(uns, "keys") else None


def _base_of(uns: Any) -> float | None:  # Any: a group of a file, or what AnnData has
    """Read the base of the logarithm that scanpy noted; None where there is no such note, or no number above 1."""
    try:
        base = uns["log1p"]["base"]
        number = float(base[()] if hasattr(base, "shape") else base)
    except (LookupError, OSError, RuntimeError, ValueError, TypeError, AttributeError):
        return None
    return number if 1 < number < float("inf") else None


def _is_there(group: Group, key: str) -> bool:
    return key in group and encoding(group[key])[0] != "null"


def _layer(layers: Any, key: str, var: Callable[[], Any]) -> _Place:
    return _Place(lambda: layers[key], var, f"adata.layers[{key!r}]")


def _choose_matrix(name: str, matrix: str, own: dict[str, _Place], layers: dict[str, _Place]) -> _Place:
    """Look up a matrix: ``X`` and ``raw`` before a layer of the same name."""
    places = layers | own
    if matrix in own and matrix in layers:
        logger.warning("%s: there is a layer %r, too; %s is read", name, matrix, own[matrix].python)
    if matrix in places:
        return places[matrix]
    known = [*own, *sorted(layers.keys() - own.keys())]
    if matrix == "X":
        hint = (
            f"say where the values lie with ingest.matrix: {', '.join(known)}" if known else "it holds no matrix at all"
        )
        raise InputError(f"{name} has no X; {hint}.")
    what = "raw" if matrix == "raw" else f"layer {matrix!r}"
    raise InputError(f"{name} has no {what} (ingest.matrix); known are {', '.join(known) or 'none'}.")


def _open_element(element: Group, name: str) -> Rows:
    """Open one matrix of an HDF5 file or a zarr group."""
    if is_array(element):
        check_array(element, name)
        check_encoding(element, name, ("array",))
        rows = _dense(element, name)
        if refuse_dense_gaps(element, name):
            logger.warning(
                "%s: files of chunks are not there; they fit genes that are hardly found, and are read as zeros", name
            )
        return rows
    if not hasattr(element, "keys"):
        raise InputError(f"{name} is a named type, expected a matrix; the file is damaged, write it again.")
    attributes = dict(element.attrs)
    kind = attributes.get("encoding-type", attributes.get("h5sparse_format"))
    kind = kind.decode(errors="replace") if isinstance(kind, bytes) else kind
    if not isinstance(kind, str) or kind not in ("csc", "csc_matrix", "csr", "csr_matrix"):
        raise InputError(
            f"{name} is stored as {kind!r}; expected a dense array, or a CSR or CSC matrix; write it so, as adata.X.tocsr() is."
        )
    if "encoding-type" in attributes:
        check_encoding(element, name, ("csr_matrix", "csc_matrix"))
    shape = _two_numbers(attributes.get("shape", attributes.get("h5sparse_shape")), name)
    indptr, indices, data = (part_of(element, key, name) for key in ("indptr", "indices", "data"))
    for key, part in (("indptr", indptr), ("indices", indices), ("data", data)):
        if key != "indptr" or data.shape != (0,):  # without values it is all zeros
            refuse_gaps(part, f"{name}/{key}")
    if kind in ("csc", "csc_matrix"):
        return open_csc((indptr, indices, data), shape, name)
    return SparseRows.check((indptr, indices, data), shape, name)


def _two_numbers(shape: Any, name: str) -> tuple[int, int]:  # Any: what an attribute holds
    """Cells and genes of a header, which may hold anything."""
    try:
        numbers = np.atleast_1d(np.asarray(shape, dtype=object)).tolist()
        whole = [int(number) for number in numbers if not isinstance(number, str | bytes | bool)]
        if len(whole) == len(numbers) == 2 and whole == numbers and min(whole) >= 0:
            return whole[0], whole[1]
    except (TypeError, ValueError, OverflowError):
        pass
    raise InputError(f"{name} has no shape of two numbers; the file is damaged, write it again.")


def _dense(values: Any, name: str) -> DenseRows:
    rows = DenseRows(values, name)
    if values.shape is None or len(values.shape) != 2:
        raise InputError(f"{name} has {len(values.shape or ())} dimensions; expected cells by genes.")
    _ = rows.dtype  # refuses values that are no numbers
    return rows


def _open_anndata(adata: Any, matrix: str, gene_column: str | None) -> RawMatrix:
    """Open an AnnData, in memory or backed."""
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        raise InputError(f"cannot read cells from a {type(adata).__name__}; expected a path or an AnnData.")
    own: dict[str, _Place] = {}
    if adata.X is not None:
        own["X"] = _Place(lambda: adata.X, lambda: adata.var, "adata.X")
    if adata.raw is not None:
        own["raw"] = _Place(lambda: adata.raw.X, lambda: adata.raw.var, "adata.raw.X")
    layers = {key: _layer(adata.layers, key, lambda: adata.var) for key in adata.layers}
    place = _choose_matrix(IN_MEMORY, matrix, own, layers)
    rows = _open_values(place.values(), f"{IN_MEMORY}: {matrix}")
    if matrix == "X" and "raw" in own:
        tell_of_raw(rows, lambda: _open_values(own["raw"].values(), f"{IN_MEMORY}: raw"), IN_MEMORY)

    def read_var() -> pd.DataFrame:
        return _named(in_memory(place.var()))

    index = place.var().index.astype(str) if gene_column is None else None
    genes = tuple(index) if index is not None else names_of(read_var(), gene_column or "", IN_MEMORY)
    return RawMatrix(
        IN_MEMORY,
        None,
        matrix,
        genes,
        rows,
        lambda: _named(in_memory(adata.obs)),
        closing(rows),
        noted_base=_base_of(adata.uns),
        read_vars=lambda: [(IN_MEMORY, read_var().set_axis(list(genes)))],
    )


def _named(table: pd.DataFrame) -> pd.DataFrame:
    frame = table.copy()
    frame.index = frame.index.astype(str)
    return frame


def _open_values(values: Any, name: str) -> Rows:
    from scipy import sparse

    if sparse.issparse(values):
        by_cells = values.tocsr()
        return SparseRows.check((by_cells.indptr, by_cells.indices, by_cells.data), by_cells.shape, name)
    if isinstance(values, np.ndarray):
        return _dense(np.asarray(values), name)
    if is_dask(values):
        return open_dask(values, name)
    if hasattr(values, "group"):  # a backed sparse matrix
        return _open_element(values.group, name)
    if type(values).__module__.startswith(("h5py", "zarr")):
        return _dense(values, name)
    raise InputError(
        f"{name} is a {type(values).__name__}; expected an array of NumPy or dask, or a sparse matrix of SciPy."
    )
