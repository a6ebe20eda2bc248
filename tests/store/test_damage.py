from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from scamac_scale.errors import StoreError
from scamac_scale.store import layout
from scamac_scale.store.reader import StoreReader
from tests.store.conftest import Written, counts, write


@pytest.fixture
def copy(written: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / "copy.zarr"))


def read_all(path: Path) -> None:
    reader = StoreReader(path)
    reader.read(np.arange(reader.n_cells))
    assert len(reader.obs) == reader.n_cells
    assert reader.source_rows.size == reader.n_cells


def chunk_files(root: Path, *arrays: str) -> list[Path]:
    return sorted(
        path for name in arrays for path in (root / name).rglob("*") if path.is_file() and path.name != "zarr.json"
    )


READ_ARRAYS = ("X/data", "X/indices", "X/indptr", "obs", "uns")


def test_no_store_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(
        StoreError, match=r"There is no training store at .*nowhere; write it with `scamac-scale ingest`"
    ):
        StoreReader(tmp_path / "nowhere")


def test_folder_or_file_that_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(StoreError, match=r"is not a training store \(it has no zarr.json\)"):
            StoreReader(path)


def test_plain_anndata_zarr_is_no_store(tmp_path: Path, copy: Path) -> None:
    root = json.loads((copy / "zarr.json").read_text())
    del root["attributes"][layout.RECORD]
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(
        StoreError, match="has no commit record: it is not a training store, or writing it did not finish"
    ):
        StoreReader(copy)


def test_other_version_is_refused(copy: Path) -> None:
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"][layout.RECORD]["version"] = 7
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match=f"of version 7; this program reads version {layout.VERSION}"):
        StoreReader(copy)


def test_changed_commit_record_is_refused(copy: Path) -> None:
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"][layout.RECORD]["n_cells"] = 649
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match=r"commit record of .* is damaged"):
        StoreReader(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"attributes": 3}', '{"attributes": {"scamac_store": 3}}'])
def test_root_metadata_that_makes_no_sense_is_refused(copy: Path, content: str) -> None:
    (copy / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"cannot be read|no commit record"):
        StoreReader(copy)


def test_every_metadata_file_is_guarded(copy: Path) -> None:
    files = [path for path in copy.rglob("zarr.json") if path.parent != copy]
    assert len(files) > 10
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content.replace(b"1", b"2", 1) if b"1" in content else content + b" ")
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} is not what was written"):
            StoreReader(copy)
        path.unlink()
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} cannot be read"):
            StoreReader(copy)
        path.write_bytes(content)
    read_all(copy)


def test_every_missing_chunk_is_an_error_that_names_the_file(copy: Path) -> None:
    files = chunk_files(copy, *READ_ARRAYS)
    assert len(files) > 50
    for path in files[:: max(1, len(files) // 20)] + chunk_files(copy, "X/indptr", "obs"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} is missing"):
            read_all(copy)
        path.write_bytes(content)
    read_all(copy)


def test_every_flipped_bit_is_an_error(copy: Path) -> None:
    rng = np.random.default_rng(0)
    files = chunk_files(copy, *READ_ARRAYS)
    for path in rng.choice(np.array(files, dtype=object), 25):
        content = path.read_bytes()
        flipped = bytearray(content)
        at = int(rng.integers(8 * len(flipped)))
        flipped[at // 8] ^= 1 << at % 8
        path.write_bytes(bytes(flipped))
        with pytest.raises(StoreError, match=r"checksum|damaged"):
            read_all(copy)
        path.write_bytes(content)
    read_all(copy)


@pytest.mark.parametrize("keep", [0, 3, 40])
def test_truncated_chunk_is_an_error(copy: Path, keep: int) -> None:
    path = chunk_files(copy, "X/data")[3]
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreError, match="X/data or X/indices, chunks"):
        read_all(copy)


def test_store_that_says_more_genes_than_it_names_is_refused(tmp_path: Path) -> None:
    raw = counts(20, 8)
    stored = write(tmp_path / "a.zarr", raw)
    root = json.loads((stored.path / "zarr.json").read_text())
    record = layout.read_record(stored.path)
    forged = layout.CommitRecord(
        version=record.version, n_cells=20, n_genes=9, n_values=record.n_values, metadata=record.metadata
    )
    root["attributes"][layout.RECORD] = forged.to_attribute()
    (stored.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="names 8 genes but holds 9"):
        StoreReader(stored.path)


def test_record_does_not_lead_out_of_the_store(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.zarr", counts(20, 8))
    root = json.loads((stored.path / "zarr.json").read_text())
    record = layout.read_record(stored.path)
    forged = layout.CommitRecord(
        version=record.version,
        n_cells=20,
        n_genes=8,
        n_values=record.n_values,
        metadata={"../../etc/passwd": "0"},
    )
    root["attributes"][layout.RECORD] = forged.to_attribute()
    (stored.path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="leads out of it"):
        StoreReader(stored.path)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("X/indices", 40, "X/indices holds a gene beyond 39"),
        ("X/indptr", 10**6, "X/indptr does not describe rows"),
    ],
)
def test_sound_chunk_with_values_out_of_range_is_refused(copy: Path, array: str, value: int, message: str) -> None:
    opened = zarr.open_group(copy, mode="r+")[array]
    assert isinstance(opened, zarr.Array)
    opened[100] = value  # with a checksum that is right
    with pytest.raises(StoreError, match=message):
        read_all(copy)


def test_arrays_that_are_not_as_long_as_the_record_says_are_refused(copy: Path) -> None:
    record = layout.read_record(copy)
    root = json.loads((copy / "zarr.json").read_text())
    forged = layout.CommitRecord(
        version=record.version, n_cells=10**12, n_genes=40, n_values=record.n_values, metadata=record.metadata
    )
    root["attributes"][layout.RECORD] = forged.to_attribute()
    (copy / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(StoreError, match="X/indptr is not the array of 1000000000001"):
        StoreReader(copy)
