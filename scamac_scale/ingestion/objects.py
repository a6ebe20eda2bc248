"""Inputs in object storage: an HDF5 file is read by ranges, a zarr by its objects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scamac_scale.errors import InputError
from scamac_scale.ingestion.raw import blamed, reason
from scamac_scale.ingestion.strangers import EXPECTED, HEAD_BYTES, say_of_head
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.stream import ObjectFile
from scamac_scale.remote.zarrs import ZarrObjects

if TYPE_CHECKING:
    from scamac_scale.remote.place import BucketPlace

Group = Any
"""An h5py or zarr group."""


def open_object(place: BucketPlace) -> Group:
    """Open an HDF5 file or a zarr that lies in a bucket.

    Parameters
    ----------
    place
        Of the object, or of the folder of a zarr.

    Returns
    -------
    Group
        Its root; one of h5py has ``close``.

    Raises
    ------
    InputError
        If there is nothing, or something else.
    """
    bucket = Bucket(place, InputError)
    if (entry := bucket.find()) is not None:
        return _open_hdf5(ObjectFile(bucket, entry), place, entry.size)
    entries = bucket.listing() if place.key else []
    if not entries:
        raise InputError(f"there is no object and no folder {place}; {EXPECTED}.")
    return _open_zarr(bucket, entries)


def _open_hdf5(file: ObjectFile, place: BucketPlace, n_bytes: int) -> Group:
    import h5py

    try:
        return h5py.File(file, "r")
    except OSError as error:
        try:
            if file.error is not None:
                raise file.error from None
            raise InputError(say_of_head(place, file.peek(0, HEAD_BYTES), n_bytes, str(error))) from error
        finally:
            file.close()


def _open_zarr(bucket: Bucket, entries: list[Any]) -> Group:
    import zarr

    store = ZarrObjects(bucket, entries)
    try:
        with blamed(str(bucket.place), "it"):
            return zarr.open_group(store, mode="r")
    except InputError as error:
        raise InputError(
            f"{bucket.place} is a folder, but not an AnnData zarr ({reason(error.__cause__ or error)})."  # type: ignore[arg-type]
        ) from error
