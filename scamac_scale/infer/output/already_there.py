"""Whether a prediction is there already, for those who ask for it again."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.atomic import partial_folder, scratch_folder
from scamac_scale.durable.plain import parse_json
from scamac_scale.infer.output.journal import check_same
from scamac_scale.infer.output.table import IDENTITY, detail_in

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def is_finished(path: Path, belongs: dict[str, Any]) -> bool:
    """Tell whether a prediction is complete, and remove what a writer left that was killed after its last step.

    Parameters
    ----------
    path
        Of the output.
    belongs
        From `journal.identity`: what is asked for.

    Returns
    -------
    bool
        False where there is nothing, or no prediction.

    Raises
    ------
    ResumeError
        If there is a prediction, but of another model, input or other options.
    """
    if not os.path.lexists(path) or not (path.is_file() or path.is_dir()):  # a pipe would wait
        return False
    try:
        with _opened(path) as group:
            found = identity_in(group)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError):
        return False
    check_same(found, belongs, path)
    if partial_folder(path).exists():
        with scratch_folder(path):
            pass  # it goes at the end
    return True


def identity_in(group: Any) -> dict[str, Any]:  # Any: an h5py or zarr group
    """Read what a prediction says that it was made from; where there is none, whatever the library raises."""
    return parse_json(_text(detail_in(group["uns"], IDENTITY)[()]))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:  # Any: an h5py or zarr group
    import h5py
    import zarr

    if path.is_dir():
        yield zarr.open_group(path, mode="r")
        return
    with h5py.File(path) as file:
        yield file


def _text(value: Any) -> str:  # Any: text as zarr or HDF5 gives it
    return value.decode() if isinstance(value, bytes) else str(value)
