"""Whether a prediction is there already, for those who ask for it again."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.atomic import partial_folder, scratch_folder
from scamac_scale.infer.journal import check_same
from scamac_scale.infer.output import DENOISED_KEY, LATENT_KEY, UNS_KEY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.checkpoint import FittedModel


def is_finished(path: Path, model: FittedModel, n_cells: int, **options: Any) -> bool:  # Any: plain data
    """Tell whether a prediction is complete, and remove what a writer left that was killed after its last step.

    Parameters
    ----------
    path
        Of the output.
    model, n_cells, options
        What is asked for.

    Returns
    -------
    bool
        False where there is nothing, or no prediction.

    Raises
    ------
    ResumeError
        If there is a prediction, but of another model, input or other options.
    """
    if not os.path.lexists(path):
        return False
    centers = model.centers.cpu().numpy()
    try:
        with _opened(path) as group:
            about = group[f"uns/{UNS_KEY}"]
            is_same = (about["temperature"][()], *np.ravel(about["centers"][()])) == (
                model.temperature,
                *centers.ravel(),
            )
            found = {
                "model": is_same,
                "cells": int(group[f"obsm/{LATENT_KEY}"].shape[0]),
                "attention": _text(about["attention"][()]),
                "denoised": "layers" in group and DENOISED_KEY in group["layers"],
            }
    except (OSError, KeyError, ValueError):
        return False
    check_same(found, {"model": True, "cells": n_cells, **options}, path)
    if partial_folder(path).exists():
        with scratch_folder(path):
            pass  # it goes at the end
    return True


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
