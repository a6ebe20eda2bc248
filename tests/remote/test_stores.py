"""A training store in a bucket is read as on a disk, through copies of its shards that are bounded and checked."""

from __future__ import annotations

import os
import stat
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scamac_scale.config import IngestConfig, LoaderConfig
from scamac_scale.errors import ConfigError, StoreError
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.cache import FileCache, cache_folder
from scamac_scale.remote.place import parse
from scamac_scale.sources import cells_digest, open_source
from scamac_scale.store import layout
from scamac_scale.store.reader import StoreReader
from scamac_scale.store.record import is_store
from tests.support.bucket import upload

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of many shards."""
    patch = pytest.MonkeyPatch()
    patch.setattr(layout, "CHUNK_VALUES", 256)
    patch.setattr(layout, "SHARD_VALUES", 2048)
    path = ingest(tiny_atlas, tmp_path_factory.mktemp("store") / "tiny.store.zarr", IngestConfig(n_genes=100))
    patch.undo()
    return path


@pytest.fixture
def url(store: Path, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SCAMAC_CACHE_DIR", str(tmp_path / "cache"))
    return upload(store, f"{bucket}/some/tiny.store.zarr")


def copies() -> list[Path]:
    return [path for path in cache_folder().iterdir() if path.suffix != ".lock"]


def test_a_store_in_a_bucket_reads_as_on_a_disk(store: Path, url: str) -> None:
    rows = np.random.default_rng(0).permutation(300)
    with StoreReader(store) as there, StoreReader(url) as here:
        assert str(here.path) == url
        for wanted in (rows, np.arange(300), rows[:3], rows[:0]):
            found, expected = here.read(wanted), there.read(wanted)
            assert np.array_equal(found.indptr, expected.indptr)
            assert np.array_equal(found.indices, expected.indices)
            assert np.array_equal(found.data, expected.data)
        assert here.obs.equals(there.obs)
        assert here.gene_space == there.gene_space
        assert np.array_equal(here.source_rows, there.source_rows)
        here.verify()
        assert cells_digest(here) == cells_digest(there)
    assert len(copies()) == sum(
        (store / "X" / name / "c" / str(n)).exists() for name in ("data", "indices") for n in range(99)
    )
    folder = cache_folder()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with open_source(url, loader=LoaderConfig(cache="none")) as source:
        assert source.n_cells == 300


def test_copies_are_made_once_and_outlive_the_reader(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    real = Bucket.fetch

    def count(self: Bucket, key: str, path: Path, entry: object = None) -> object:
        fetched.append(key)
        return real(self, key, path, entry)  # type: ignore[arg-type]

    monkeypatch.setattr(Bucket, "fetch", count)
    readers = [StoreReader(url) for _ in range(3)]
    threads = [threading.Thread(target=reader.read, args=(np.arange(300),)) for reader in readers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(fetched) == len(set(fetched)) == len(copies())
    with StoreReader(url) as again:
        again.read(np.arange(300))
    assert len(fetched) == len(copies())


def test_the_copies_take_no_more_room_than_they_may(store: Path, url: str) -> None:
    sizes = [path.stat().st_size for path in (store / "X").glob("*/c/*")]
    limit = 3 * max(sizes)
    with StoreReader(store) as there, StoreReader(url, cache_bytes=limit) as here:
        for start in [*range(0, 300, 20), *range(280, -1, -20)]:
            rows = np.arange(start, start + 20)
            assert np.array_equal(here.read(rows).data, there.read(rows).data)
            assert sum(path.stat().st_size for path in copies()) <= limit
    with StoreReader(store) as there, StoreReader(url, cache_bytes=1) as here:
        assert np.array_equal(here.read(np.arange(300)).data, there.read(np.arange(300)).data)
        assert len(copies()) == 1


@pytest.mark.parametrize("damage", ["flipped", "short", "index", "empty"])
@pytest.mark.slow
def test_a_damaged_copy_is_fetched_once_more(damage: str, store: Path, url: str) -> None:
    with StoreReader(url) as reader:
        expected = reader.read(np.arange(300)).data
    for path in copies():
        content = bytearray(path.read_bytes())
        if damage == "flipped":
            content[10] ^= 1
        elif damage == "index":
            content[-20] ^= 1
        path.write_bytes(content[: {"short": -5, "empty": 0}.get(damage, len(content))])
    with StoreReader(url) as reader:
        assert np.array_equal(reader.read(np.arange(300)).data, expected)


def test_a_copy_that_is_damaged_while_it_is_in_use_is_seen(url: str) -> None:
    with StoreReader(url) as reader:
        expected = reader.read(np.arange(300)).data
        for path in copies():
            content = bytearray(path.read_bytes())
            content[10] ^= 1
            path.unlink()
            path.write_bytes(content)  # another file under this name
        assert np.array_equal(reader.read(np.arange(300)).data, expected)


def test_a_shard_that_is_damaged_in_the_bucket_is_refused(url: str) -> None:
    at = Bucket(url)
    content = bytearray(at.read("X/data/c/1"))
    content[10] ^= 1
    at.put("X/data/c/1", bytes(content))
    with (
        StoreReader(url) as reader,
        pytest.raises(StoreError, match=rf"{url}/X/data/c/1 is of another store, or damaged"),
    ):
        reader.read(np.arange(300))


def test_a_store_that_is_replaced_or_removed_while_it_is_read_is_refused(url: str) -> None:
    at = Bucket(url)
    content = at.read("X/data/c/1")
    with StoreReader(url) as reader:
        at.put("X/data/c/1", content + b"x")
        with pytest.raises(StoreError, match=r"X/data/c/1 cannot be read: it was replaced"):
            reader.read(np.arange(300))
    at.put("X/data/c/1", content)
    at.delete("X/indices/c/0")
    with pytest.raises(StoreError, match=r"X/indices/c/0 is missing"):
        StoreReader(url)


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        ("zarr.json", None, "written last"),
        ("zarr.json", b"{}", "no commit record"),
        ("zarr.json", b"{", "cannot be read"),
        ("obs/zarr.json", None, "is missing"),
        ("obs/zarr.json", b"{}", "wrong SHA-256"),
        ("X/data/c/0", b"short", "bytes, not"),
    ],
)
@pytest.mark.slow
def test_an_incomplete_store_is_refused_when_it_is_opened(key: str, change: bytes | None, said: str, url: str) -> None:
    at = Bucket(url)
    if change is None:
        at.delete(key)
    else:
        at.put(key, change)
    with pytest.raises(StoreError, match=said) as caught:
        StoreReader(url)
    assert url in str(caught.value)


def test_what_is_a_store_is_told_from_what_is_none(url: str, bucket: str, tiny_atlas: Path) -> None:
    upload(tiny_atlas, f"{bucket}/a.h5ad")
    assert is_store(parse(url))
    assert not is_store(parse(f"{bucket}/a.h5ad"))
    assert not is_store(parse(bucket))
    Bucket(url).delete("zarr.json")
    assert is_store(parse(url))
    with pytest.raises(StoreError, match="There is no training store"):
        StoreReader(f"{bucket}/nothing")


def test_a_folder_for_copies_that_others_can_write_is_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    for folder in (str(tmp_path / "open"), "relative"):
        monkeypatch.setenv("SCAMAC_CACHE_DIR", folder)
        with pytest.raises(ConfigError, match="SCAMAC_CACHE_DIR"):
            StoreReader(url)
    monkeypatch.setenv("SCAMAC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("SCAMAC_CACHE_BYTES", "much")
    with pytest.raises(ConfigError, match="SCAMAC_CACHE_BYTES"):
        StoreReader(url)


def test_what_a_killed_process_has_left_is_removed_when_room_is_made(url: str, tmp_path: Path) -> None:
    folder = cache_folder()
    old, new = folder / "x.partial.1.a", folder / "x.partial.1.b"
    for path in (old, new):
        path.write_bytes(b"1")
    os.utime(old, (1, 1))
    at = Bucket(url)
    entry = at.find("X/data/c/0")
    assert entry is not None
    os.close(FileCache(folder, 2**30).file(at, entry).open())
    assert new.exists()
    assert not old.exists()


@pytest.mark.parametrize("key", ["X/data/c/0", "obs/scamac_row/c/0"])
def test_an_object_of_a_store_with_another_seed_is_refused_when_it_is_read(
    key: str, store: Path, url: str, tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names, sizes and checksums of its chunks are those of the store."""
    monkeypatch.setattr(layout, "CHUNK_VALUES", 256)
    monkeypatch.setattr(layout, "SHARD_VALUES", 2048)
    other = ingest(tiny_atlas, tmp_path / "other.zarr", IngestConfig(n_genes=100, seed=1))
    assert (other / key).stat().st_size == (store / key).stat().st_size
    Bucket(url).put(key, other / key)
    with StoreReader(url) as reader, pytest.raises(StoreError, match=f"{key} is of another store"):
        reader.read(np.arange(300)) if key.startswith("X") else reader.source_rows
    with StoreReader(url) as reader, pytest.raises(StoreError, match=f"{key} is of another store"):
        reader.verify()
    assert not any(".partial" in path.name for path in copies())


def test_a_copy_that_another_program_has_replaced_is_found_by_verify_and_fetched_again(store: Path, url: str) -> None:
    with StoreReader(url) as reader:
        reader.verify()
        first, second = (
            next(path for path in copies() if path.read_bytes() == (store / f"X/data/c/{number}").read_bytes())
            for number in (0, 1)
        )
        about = first.stat()
        first.write_bytes(second.read_bytes())  # whose chunks have checksums that are right
        os.utime(first, ns=(about.st_atime_ns, about.st_mtime_ns))
        reader.verify()
        assert first.read_bytes() == (store / "X/data/c/0").read_bytes()
