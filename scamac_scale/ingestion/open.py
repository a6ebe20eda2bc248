"""Opening raw data: h5ad, AnnData zarr, 10x h5, or an AnnData in memory, all behind `RawMatrix`.

Everything that can be wrong with a file and is cheap to see is refused here, with one message: wrong kind of file, no
matrix, unknown layer, gene-major (CSC) storage, duplicate genes, links that lead out of the file. Values are checked
where they are read (``csr.py``) and counted (``statistics.py``).
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scamac_scale.errors import InputError, ScamacError
from scamac_scale.ingestion.obsm import ObsmArray, dense_array
from scamac_scale.ingestion.raw import READ_ERRORS, RawMatrix, blamed, nothing
from scamac_scale.ingestion.rows import DenseRows, Rows, SparseRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)

IN_MEMORY = "the AnnData in memory"

Group = Any
"""An h5py or zarr group: looked up by name, with ``attrs``."""


class _Place(NamedTuple):
    """A matrix that an input holds: how to get it and the table of its genes, and what it is called in Python."""

    values: Callable[[], Any]
    var: Callable[[], Any]
    python: str


def open_raw(data: str | os.PathLike[str] | AnnData, matrix: str = "X") -> RawMatrix:
    """Open raw data for reading by blocks of cells.

    Parameters
    ----------
    data
        Path of an ``.h5ad``, an AnnData zarr folder or a 10x ``.h5`` (versions 2 and 3; told apart by what is inside),
        or an AnnData, in memory or backed.
    matrix
        Where the values lie: ``X``, ``raw``, or the name of a layer; a layer of one of these two names is read where there
        is no other matrix of that name.

    Returns
    -------
    RawMatrix
        Reads lazily; close it, or use it as a context manager.

    Raises
    ------
    InputError
        If there is nothing at the path, it is none of these formats, it is damaged or truncated, the matrix is missing
        or stored by genes (CSC) on disk, gene names repeat, or an HDF5 file links outside itself.

    Notes
    -----
    Genes of a 10x file that share a name are made unique as scanpy does, and features other than gene expression are
    left out; the log says so. A CSC matrix in memory is converted, which takes its size again.
    """
    if not isinstance(data, (str, os.PathLike)):
        return _open_anndata(data, matrix)
    from scamac_scale.ingestion.tenx import is_tenx, open_tenx

    path = Path(data)
    with _open_file(path, is_kept=True) as group:
        if path.is_file() and is_tenx(group):
            genes, rows, read_obs = open_tenx(group, str(path), matrix)
            return RawMatrix(str(path), path, matrix, genes, rows, read_obs, group.close)
        return _open_group(group, path, matrix)


def read_obs(data: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the annotation of the cells of a file, whatever else it holds.

    Parameters
    ----------
    data
        Path of an ``.h5ad`` or an AnnData zarr folder; it need not have an X.

    Returns
    -------
    DataFrame
        One row per cell, names as its index.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    path = Path(data)
    with _open_file(path) as group:
        _require_anndata(group, str(path))
        return _read_frame(group["obs"], "obs")


def open_obsm(data: str | os.PathLike[str] | AnnData, key: str) -> ObsmArray:
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
    if not isinstance(data, (str, os.PathLike)):
        return dense_array(_find_obsm(data.obsm, key, IN_MEMORY), f"{IN_MEMORY}: obsm[{key!r}]")
    path = Path(data)
    with _open_file(path, is_kept=True) as group:
        _require_anndata(group, str(path))
        found = _find_obsm(group.get("obsm", {}), key, str(path))
        return dense_array(found, f"{path}: obsm[{key!r}]", getattr(group, "close", nothing))


def _find_obsm(obsm: Any, key: str, name: str) -> Any:  # Any: a group of a file, or what AnnData has
    if key not in obsm:
        raise InputError(f"{name} has no obsm[{key!r}] (basis); known are {', '.join(sorted(obsm.keys())) or 'none'}.")
    return obsm[key]


@contextlib.contextmanager
def _open_file(path: Path, *, is_kept: bool = False) -> Iterator[Group]:
    """Open an HDF5 file or a zarr folder; it is closed at the end unless it `is_kept` and nothing went wrong."""
    if path.is_dir():
        group, close = _open_zarr(path), nothing
    elif path.is_file():
        group = _open_hdf5(path)
        close = group.close
    else:
        raise InputError(f"there is no file or folder {path}; expected an .h5ad, an AnnData .zarr or a 10x .h5.")
    try:
        with blamed(str(path), "it"):
            yield group
    except BaseException:
        close()
        raise
    if not is_kept:
        close()


def _open_hdf5(path: Path) -> Group:
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(
            f"{path} cannot be opened as HDF5 ({error}); expected a complete .h5ad or 10x .h5 file. Copy or write it "
            "again."
        ) from error
    try:
        with blamed(str(path), "it"):
            _refuse_links(file, str(path))
    except ScamacError:
        file.close()
        raise
    return file


def _refuse_links(file: Group, name: str) -> None:
    """Refuse what makes an HDF5 file read other files."""
    import h5py

    groups, seen = [file], set()
    while groups:
        group = groups.pop()
        for key in group:
            if isinstance(group.get(key, getlink=True), h5py.SoftLink):
                continue  # leads to a place inside this file, which is looked at by itself
            where = f"{group.name.rstrip('/')}/{key}"
            if isinstance(group.get(key, getlink=True), h5py.ExternalLink):
                raise InputError(f"{name}: {where} is a link to another file, which is not followed; copy the data in.")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise InputError(
                        f"{name}: {where} keeps its values in other files, which are not read; copy the data in."
                    )
            elif isinstance(item, h5py.Group) and address not in seen:
                groups.append(item)
            seen.add(address)


def _open_zarr(path: Path) -> Group:
    import zarr

    try:
        return zarr.open_group(str(path), mode="r")
    except READ_ERRORS as error:
        hint = ""
        if any(path.glob("matrix.mtx*")):
            hint = " It looks like a 10x folder: read it with scanpy.read_10x_mtx and write an .h5ad."
        raise InputError(f"{path} is a folder, but not an AnnData zarr ({error}).{hint}") from error


def _require_anndata(group: Group, name: str) -> None:
    if "obs" not in group or "var" not in group:
        held = ", ".join(sorted(group.keys())[:10]) or "nothing"
        raise InputError(f"{name} is not an AnnData file: it has no obs and var (it holds {held}).")


def _open_group(group: Group, path: Path, matrix: str) -> RawMatrix:
    """Open the AnnData that an HDF5 file or a zarr group holds."""
    name = str(path)
    _require_anndata(group, name)
    own: dict[str, _Place] = {}
    if _is_there(group, "X"):
        own["X"] = _Place(lambda: group["X"], lambda: group["var"], "adata.X")
    if _is_there(group, "raw") and _is_there(group["raw"], "X"):
        own["raw"] = _Place(lambda: group["raw"]["X"], lambda: group["raw"]["var"], "adata.raw.X")
    layers = group.get("layers", {})
    place = _choose_matrix(name, matrix, own, {key: _layer(layers, key, lambda: group["var"]) for key in layers})
    genes = _read_frame(place.var(), "var").index
    rows = _open_element(place.values(), f"{name}: {matrix}", place.python)
    close = getattr(group, "close", nothing)
    return RawMatrix(name, path, matrix, tuple(genes), rows, lambda: _read_frame(group["obs"], "obs"), close)


def _is_there(group: Group, key: str) -> bool:
    return key in group and dict(group[key].attrs).get("encoding-type") != "null"


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


def _read_frame(element: Group, role: str) -> pd.DataFrame:
    import pandas as pd
    from anndata.io import read_elem

    frame = read_elem(element)
    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            f"{role} is {type(frame).__name__}, expected a table; write the file again with anndata >= 0.8."
        )
    frame.index = frame.index.astype(str)
    return frame


def _open_element(element: Group, name: str, place: str) -> Rows:
    """Open one matrix of an HDF5 file or a zarr group."""
    attributes: Mapping[str, Any] = dict(element.attrs)
    if hasattr(element, "shape") and hasattr(element, "dtype"):
        return _dense(element, name)
    kind = attributes.get("encoding-type", attributes.get("h5sparse_format"))
    if kind in ("csc", "csc_matrix"):
        raise InputError(
            f"{name} is stored by genes (CSC), and cells cannot be read from it without reading all of it; convert it "
            f"once: {place} = {place}.tocsr(), then adata.write_h5ad(...) under a new name."
        )
    if kind not in ("csr", "csr_matrix"):
        raise InputError(f"{name} is stored as {kind!r}; expected a dense array or a CSR matrix.")
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    if shape is None or len(shape) != 2:
        raise InputError(f"{name} has no shape of two numbers; the file is damaged, write it again.")
    parts = (element["indptr"], element["indices"], element["data"])
    return SparseRows.check(parts, (int(shape[0]), int(shape[1])), name)


def _dense(values: Any, name: str) -> DenseRows:
    rows = DenseRows(values, name)
    if len(values.shape) != 2:
        raise InputError(f"{name} has {len(values.shape)} dimensions; expected cells by genes.")
    _ = rows.dtype  # refuses values that are no numbers
    return rows


def _open_anndata(adata: Any, matrix: str) -> RawMatrix:
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
    rows = _open_values(place.values(), f"{IN_MEMORY}: {matrix}", place.python)
    return RawMatrix(IN_MEMORY, None, matrix, tuple(place.var().index.astype(str)), rows, lambda: _named(adata.obs))


def _named(obs: pd.DataFrame) -> pd.DataFrame:
    frame = obs.copy()
    frame.index = frame.index.astype(str)
    return frame


def _open_values(values: Any, name: str, place: str) -> Rows:
    from scipy import sparse

    if sparse.issparse(values):
        by_cells = values.tocsr()
        return SparseRows.check((by_cells.indptr, by_cells.indices, by_cells.data), by_cells.shape, name)
    if isinstance(values, np.ndarray):
        return _dense(np.asarray(values), name)
    if hasattr(values, "group"):  # a backed sparse matrix
        return _open_element(values.group, name, place)
    if type(values).__module__.startswith(("h5py", "zarr")):
        return _dense(values, name)
    raise InputError(f"{name} is a {type(values).__name__}; expected a NumPy array or a SciPy sparse matrix.")
