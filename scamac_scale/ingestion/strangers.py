"""Files and folders that are not what is read here: each gets the sentence that helps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from scamac_scale.remote.place import BucketPlace

Group = Any
"""An h5py or zarr group."""

EXPECTED = "expected an .h5ad, an AnnData .zarr, a 10x .h5, a .loom, or a folder of Matrix Market files"
"""What every message about something else ends with."""
HEAD_BYTES = 1024
"""Of a file, that are looked at to tell what it is."""
MOST_ENTRIES = 2000
"""Of folders, that are looked at."""
DEPTH = 4
"""Folders below one another: Solo.out/Gene/filtered/matrix.mtx."""

_R = "an R object, which only R reads: convert it there to .h5ad (anndataR, zellkonverter or SeuratDisk)"
SUFFIXES = {
    ".rds": _R,
    ".rdata": _R,
    ".rda": _R,
    ".robj": _R,
    ".qs": _R,
    ".csv": "a table of text: read it with anndata.io.read_csv(...) (.T where genes are rows), and write an .h5ad",
    ".tsv": "a table of text: read it with anndata.io.read_text(...) (.T where genes are rows), and write an .h5ad",
    ".txt": "a table of text: read it with anndata.io.read_text(...) (.T where genes are rows), and write an .h5ad",
    ".xlsx": "a table of Excel, which changes names of genes: look for the counts in another format",
    ".parquet": "a Parquet table: read it with pandas, make an AnnData of it, and write an .h5ad",
    ".npz": "an archive of NumPy or SciPy, without names: make an AnnData of it, and write an .h5ad",
}
"""What a name says, where the file is no HDF5."""

MAGIC: dict[bytes, str] = {
    b"version https://git-lfs": "a pointer of git-lfs, the data was not downloaded: git lfs pull",
    b"PK\x03\x04": "a zip archive: unpack it first (unzip), also a zarr",
    b"BZh": "compressed with bzip2: bunzip2 it first",
    b"\xfd7zXZ": "compressed with xz: unxz it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unzstd it first",
    b"\x1f\x8b": "compressed with gzip: gunzip it first (and tar -xf it, if it ends in .tar.gz)",
    b"PAR1": SUFFIXES[".parquet"],
    b"\x80\x04\x95": "a pickle of Python, which can run code and is not read: write an .h5ad where it comes from",
    b"\x80\x05\x95": "a pickle of Python, which can run code and is not read: write an .h5ad where it comes from",
    b"\x93NUMPY": "an array of NumPy, without names: make an AnnData of it, and write an .h5ad",
    b"%%MatrixMarket": "a Matrix Market file: name it .mtx, with its names (features.tsv, barcodes.tsv) beside it, and give that",
    b"%PDF": "a PDF",
    b"CDF": "a NetCDF file",
}
"""How files begin, and what they are."""

LOCKED = (
    "cannot be locked: another program has it open for writing, such as a notebook, or its disk knows no locks. Close it there "
    "(file.close(), or end that program), or read a copy; on a disk without locks set HDF5_USE_FILE_LOCKING=FALSE."
)
OPEN_FOR_WRITING = (
    "is marked as open for writing: another program writes it, or was stopped while it did. Close it there; if nobody does, run "
    "`h5clear -s` on a copy, and check what it holds."
)


def say_of_file(path: Path, error: OSError) -> str:
    """Say why a file cannot be opened as HDF5, and what to do.

    Parameters
    ----------
    path
        A plain file.
    error
        What HDF5 said.

    Returns
    -------
    str
        One message.
    """
    text = str(error)
    if "unable to lock file" in text or error.errno in (11, 35):
        return f"{path} {LOCKED}"
    if "already open for write" in text or "already open for SWMR" in text or "already open" in text:
        return f"{path} {OPEN_FOR_WRITING}"
    try:
        n_bytes = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as wrong:
        return f"{path} cannot be read: {wrong.strerror}; ask its owner for the right to read it, or name another file."
    return say_of_head(path, head, n_bytes, text)


def say_of_head(path: Path | BucketPlace, head: bytes, n_bytes: int, text: str) -> str:
    """Say why something that begins so cannot be opened as HDF5; `text` is what HDF5 said."""
    if not n_bytes:
        return f"{path} is empty: it was never written, or never arrived; copy or write it again."
    kind = _kind_of_file(path, head)
    if kind is None:
        return (
            f"{path} cannot be opened as HDF5 ({' '.join(text.split())}); expected a complete .h5ad or 10x .h5 file. "
            "Copy or write it again."
        )
    return f"{path} cannot be opened as HDF5 because it is {kind}; expected a complete .h5ad or 10x .h5 file."


def _kind_of_file(path: Path | BucketPlace, head: bytes) -> str | None:
    if head.startswith(b"\x89HDF"):
        return None  # damaged or truncated
    for start, kind in MAGIC.items():
        if head.startswith(start):
            by_name = SUFFIXES.get(path.suffix.lower())
            return by_name if by_name == _R and start in (b"\x1f\x8b", b"BZh", b"\xfd7zXZ") else kind
    if head[257:262] == b"ustar":
        return "a tar archive: tar -xf it first"
    start = head.lstrip(b"\xef\xbb\xbf \r\n\t").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "a web page (HTML), such as of an error or a login, saved in place of the data: download it again"
    if start.startswith((b"<?xml", b"<error", b'{"')):
        return "a message of a server (XML or JSON) saved in place of the data, or no matrix at all: look into it, download it again"
    by_name = SUFFIXES.get(path.suffix.lower())
    if by_name is None and b"\0" not in head and _is_text(head):
        return "text: if it is a table, read it with anndata.io.read_csv or read_text, and write an .h5ad"
    return by_name


def _is_text(head: bytes) -> bool:
    try:
        head[: HEAD_BYTES - 4].decode()
    except UnicodeDecodeError:
        return False
    return True


def say_of_hdf5(file: Group) -> str | None:
    """Name an HDF5 or zarr of another kind, and what to do; None for one that may be read.

    Parameters
    ----------
    file
        Its root.

    Returns
    -------
    str or None
        To stand behind "is".
    """
    keys = set(file)
    if {"obs", "var"} <= keys and "mod" not in keys:
        return None
    kind = dict(file.attrs).get("encoding-type", b"")
    if "mod" in keys or kind in ("MuData", b"MuData"):
        held = ", ".join(sorted(file["mod"])[:5]) if "mod" in keys and hasattr(file["mod"], "keys") else "rna"
        return (
            f"a MuData (h5mu) of several modalities ({held}): write one of them, "
            "mudata.read(...).mod['rna'].write_h5ad('rna.h5ad'), and give that file"
        )
    if {"barcode_idx", "umi"} <= keys or {"barcode_idx", "feature_idx"} <= keys or "molecule_idx" in keys:
        return "a molecule_info.h5 of Cell Ranger, which lists molecules: give filtered_feature_bc_matrix.h5, from the same folder"
    if "assays" in keys or "cell.names" in keys:
        return f"an h5Seurat file, {_R.partition(', which')[0]}: SeuratDisk::Convert(..., dest = 'h5ad') converts it"
    if keys & {"tables", "table"} and keys & {"images", "labels", "points", "shapes"}:
        return "a SpatialData folder: give the table in it, such as tables/table"
    return None


def say_of_folder(path: Path) -> str:
    """Say what a folder that is no zarr holds that could be read, or is the wrong thing; empty where there is nothing known.

    Parameters
    ----------
    path
        The folder.

    Returns
    -------
    str
        Sentences that begin with a space.
    """
    found = list(entries_below(path))
    for name in found:
        if name.name.endswith("feature_bc_matrix.h5") and not name.name.startswith("raw"):
            return f" It holds {name}, which can be read: give that file."
    for name in found:
        if name.suffix in (".h5ad", ".h5", ".zarr"):
            return f" It holds {name}: give that."
    return ""


def entries_below(path: Path) -> Iterable[Path]:
    """Files in a folder and some below, not more than a glance; paths below the folder, the nearest first."""
    waiting, n_left = [path], MOST_ENTRIES
    while waiting:
        folder = waiting.pop(0)
        try:
            inside = sorted(folder.iterdir())
        except OSError:
            continue
        for entry in inside[:n_left]:
            n_left -= 1
            below = entry.relative_to(path)
            if entry.is_dir() and not entry.is_symlink() and entry.suffix != ".zarr" and len(below.parts) < DEPTH:
                waiting.append(entry)
            elif entry.is_file() or entry.suffix == ".zarr":
                yield below
