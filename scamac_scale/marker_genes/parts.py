"""Parts of a table into a group of a zarr or an h5ad."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

logger = logging.getLogger(__name__)


@contextmanager
def unstable_types() -> Iterator[None]:
    """Let zarr not warn of the types in which anndata writes record arrays."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have a Zarr V3 specification")
        yield


def write_part(group: Any, name: str, value: Any, dataset_kwargs: dict[str, Any]) -> None:
    """Write one part.

    Parameters
    ----------
    group
        Of h5py or zarr.
    name, value
        As of `MarkerTable.elements`.
    dataset_kwargs
        For arrays, as of ``anndata.io.write_elem``.
    """
    import pandas as pd
    from anndata.io import write_elem

    with unstable_types():
        if isinstance(value, pd.DataFrame) and any("/" in column for column in value.columns):
            _write_frame(group, name, value, dataset_kwargs)
        else:
            write_elem(group, name, value, dataset_kwargs={} if isinstance(value, dict) else dataset_kwargs)


def _write_frame(group: Any, name: str, frame: pd.DataFrame, dataset_kwargs: dict[str, Any]) -> None:
    """Write a table with slashes in names of columns, which anndata reads as paths, but does not write."""
    from anndata.io import write_elem

    if not _are_paths(list(frame.columns)):
        logger.warning(
            "%s is left out of the result: names such as %r cannot be stored; the CSV has it", name, _odd(frame)
        )
        return
    write_elem(group, name, frame[[]], dataset_kwargs=dataset_kwargs)
    for column in frame.columns:
        *above, last = column.split("/")
        place = group[name]
        for part in above:
            place = place.require_group(part)
        write_elem(place, last, frame[column].to_numpy(), dataset_kwargs=dataset_kwargs)
    group[name].attrs["column-order"] = list(frame.columns)


def _odd(frame: pd.DataFrame) -> str:
    return next(str(column) for column in frame.columns if "/" in column)


def _are_paths(columns: list[str]) -> bool:
    """Whether all names can be paths: of parts that are some, and none the beginning of another."""
    parts = [tuple(column.split("/")) for column in columns]
    above = {path[:n] for path in parts for n in range(1, len(path))}
    return not above & set(parts) and not any(part in ("", ".", "..", "_index") for path in parts for part in path)
