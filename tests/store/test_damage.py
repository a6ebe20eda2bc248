from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import zarr

from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError, StoreError
from scamac_scale.inspection import inspect
from scamac_scale.store import layout
from scamac_scale.store.reader import StoreReader
from scamac_scale.store.record import is_store, read_record, write_record
from tests.support.forks import in_a_fork
from tests.support.stores import Written, counts, write

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def copy(written: Written, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / "copy.zarr"))


def read_all(path: Path) -> None:
    reader = StoreReader(path)
    reader.read(np.arange(reader.n_cells))
    assert len(reader.obs) == reader.n_cells
    assert reader.source_rows.size == reader.n_cells


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
    with pytest.raises(StoreError, match=r"commit record in .* is damaged"):
        StoreReader(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"attributes": 3}', '{"attributes": {"scamac_store": 3}}'])
def test_root_metadata_that_makes_no_sense_is_refused(copy: Path, content: str) -> None:
    (copy / "zarr.json").write_text(content)
    with pytest.raises(StoreError, match=r"cannot be read|no commit record"):
        StoreReader(copy)


def forge(root: Path, **changes: Any) -> None:
    """Write the commit record anew, with a seal that is right."""
    about = json.loads((root / "zarr.json").read_text())
    about["attributes"][layout.RECORD] |= changes
    about["attributes"][layout.RECORD]["checksum"] = "0" * 64
    text = json.dumps(about)
    (root / "zarr.json").write_text(text.replace("0" * 64, sha256_of(text)))


def test_any_change_of_the_root_metadata_is_seen(copy: Path) -> None:
    text = (copy / "zarr.json").read_text()
    for changed in (text + " ", text.replace('"0.1.0"', '"0.1.1"'), text.replace("{", "{ ", 1)):
        (copy / "zarr.json").write_text(changed)
        with pytest.raises(StoreError, match=r"commit record in .*zarr.json is damaged"):
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
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} is missing"):
            StoreReader(copy)
        path.write_bytes(content)
    read_all(copy)


def test_every_missing_or_truncated_file_is_named_before_anything_is_read(copy: Path) -> None:
    files = data_files(copy)
    assert len(files) > 20
    for path in files:
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} is missing"):
            StoreReader(copy)
        path.write_bytes(content[:-1])
        with pytest.raises(StoreError, match=f"{path.relative_to(copy)} has [0-9,]+ bytes, not"):
            StoreReader(copy)
        path.write_bytes(content)
    read_all(copy)


@pytest.mark.parametrize("how", ["gone", "short", "empty"])
@pytest.mark.parametrize("array", ["data", "indices"])
def test_a_shard_that_goes_while_it_is_read_is_named(copy: Path, array: str, how: str) -> None:
    path = copy / "X" / array / "c" / "2"
    with StoreReader(copy) as reader:
        reader.read(np.arange(100))
        if how == "gone":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: 100 if how == "short" else 0])
        with pytest.raises(StoreError, match=f"X/{array}/c/2 is (missing|truncated)"):
            reader.read(np.arange(650))


def test_a_shard_that_becomes_short_is_seen_when_its_checksums_are_known(copy: Path) -> None:
    path = copy / "X" / "data" / "c" / "0"
    with StoreReader(copy) as reader:
        reader.read(np.arange(650))
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(StoreError, match=r"X/data/c/0 is truncated"):
            reader.read(np.arange(650))


def flip(path: Path, rng: np.random.Generator) -> bytes:
    """Flip one bit of a file; give back what it was."""
    content = path.read_bytes()
    flipped = bytearray(content)
    at = int(rng.integers(8 * len(flipped)))
    flipped[at // 8] ^= 1 << at % 8
    path.write_bytes(bytes(flipped))
    return content


def data_files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() and path.name != "zarr.json")


def arrays_of(root: Path) -> dict[str, list[Path]]:
    """Files of each array."""
    found: dict[str, list[Path]] = {}
    for path in data_files(root):
        array = next(parent for parent in path.parents if (parent / "zarr.json").is_file())
        found.setdefault(str(array.relative_to(root)), []).append(path)
    return found


def check_flips(root: Path, n_flips: int) -> None:
    rng = np.random.default_rng(0)
    arrays = arrays_of(root)
    assert {"X/data", "X/indices", "X/indptr", "obs/scamac_row", "var/n_cells", "uns/scamac/inputs"} < arrays.keys()
    for files in arrays.values():
        for _ in range(n_flips):
            path = files[int(rng.integers(len(files)))]
            content = flip(path, rng)
            with pytest.raises(StoreError, match=r"checksum|damaged|crc32c"):
                inspect(root, verify=True)
            path.write_bytes(content)
    for path in root.rglob("zarr.json"):
        content = flip(path, rng)
        with pytest.raises(StoreError, match=r"not what was written|damaged|cannot be read|no commit record|version"):
            inspect(root, verify=True)
        path.write_bytes(content)
    assert "verified" in inspect(root, verify=True)


def test_a_flipped_bit_in_any_array_is_found_by_verify(copy: Path) -> None:
    check_flips(copy, 2)


@pytest.mark.slow
def test_sixty_flipped_bits_in_every_array_are_found_by_verify(copy: Path) -> None:
    check_flips(copy, 60)


def test_a_flipped_bit_of_a_cell_is_an_error_when_the_cell_is_read(copy: Path) -> None:
    rng = np.random.default_rng(1)
    files = [*(copy / "X" / "data" / "c").iterdir(), *(copy / "X" / "indices" / "c").iterdir()]
    for path in files:
        content = flip(path, rng)
        with pytest.raises(StoreError, match=rf"X/{path.parent.parent.name}/c/{path.name}.*(damaged|truncated)"):
            read_all(copy)
        path.write_bytes(content)


def test_store_that_says_more_genes_than_it_names_is_refused(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.zarr", counts(20, 8))
    forge(stored.path, n_genes=9)
    with pytest.raises(StoreError, match="names 8 genes but holds 9"):
        StoreReader(stored.path)


def test_record_does_not_lead_out_of_the_store(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.zarr", counts(20, 8))
    forge(stored.path, files={"../../etc/passwd": 0})
    with pytest.raises(StoreError, match="leads out of it"):
        StoreReader(stored.path)


def test_store_from_before_there_were_shards_is_refused_with_the_reason(copy: Path) -> None:
    about = json.loads((copy / "zarr.json").read_text())
    for key in ("files", "profile"):
        del about["attributes"][layout.RECORD][key]
    (copy / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(StoreError, match="of version before 1; this program reads version 1"):
        StoreReader(copy)


@pytest.mark.parametrize(
    ("array", "value", "message"),
    [
        ("X/indices", 40, r"X/indices/c/0: chunk 1 holds a value beyond 39"),
        ("X/indptr", 10**6, "X/indptr does not describe rows"),
    ],
)
def test_sound_chunk_with_values_out_of_range_is_refused(copy: Path, array: str, value: int, message: str) -> None:
    opened = zarr.open_group(copy, mode="r+")[array]
    assert isinstance(opened, zarr.Array)
    opened[100] = value  # with a checksum that is right
    commit_again(copy)
    with pytest.raises(StoreError, match=message):
        read_all(copy)


def commit_again(root: Path) -> None:
    """Make a changed store a sound one."""
    found = json.loads((root / "zarr.json").read_text())["attributes"][layout.RECORD]
    write_record(root, **{key: found[key] for key in ("profile", "n_cells", "n_genes", "n_values")})


def test_arrays_that_are_not_as_long_as_the_record_says_are_refused(copy: Path) -> None:
    forge(copy, n_cells=10**12)
    with pytest.raises(StoreError, match="X/indptr is not the array of 1000000000001"):
        StoreReader(copy)


def test_values_of_another_number_are_refused(copy: Path) -> None:
    forge(copy, n_values=7)
    with pytest.raises(StoreError, match="X/data is not the array of 7 that the commit record names"):
        StoreReader(copy)


def test_array_that_another_program_wrote_is_refused(copy: Path) -> None:
    path = copy / "X" / "data" / "zarr.json"
    path.write_text(path.read_text().replace('"index_location": "end"', '"index_location": "start"'))
    commit_again(copy)
    with pytest.raises(StoreError, match=r"X/data is not the array .* or another program wrote it"):
        StoreReader(copy)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_is_refused_with_the_reason(written: Written) -> None:
    with StoreReader(written.path) as reader:
        said = in_a_fork(lambda: reader.read(np.arange(3)))
    assert "forked off" in said
    assert "no worker processes" in said


def test_what_leads_out_of_a_store_is_refused_unopened(tmp_path: Path) -> None:
    """A pipe in place of a file would be waited for; a link gives the bytes of another file."""
    path = tmp_path / "s.zarr"
    (path / "X" / "data").mkdir(parents=True)
    os.mkfifo(path / "zarr.json")
    os.mkfifo(path / "X" / "data" / "zarr.json")
    assert not is_store(path)
    with pytest.raises(StoreError, match=r"s\.zarr/.*zarr\.json is a named pipe \(FIFO\), which is not followed"):
        StoreReader(path)


# ---------------------------------------------------------------------- changed, and sealed again


def put(root: Path, array: str, change: Callable[[np.ndarray], Any]) -> None:
    """Change an array in place, with checksums and a record that are right."""
    opened = zarr.open_group(root, mode="r+")[array]
    assert isinstance(opened, zarr.Array)
    values = np.asarray(opened[...])
    change(values)
    opened[...] = values
    commit_again(root)


def at(index: int, value: float) -> Callable[[np.ndarray], Any]:
    return lambda values: values.__setitem__(index, value)


@pytest.mark.parametrize(
    ("array", "change", "message"),
    [
        ("obs/scamac_total", at(3, np.nan), "totals that are no positive numbers"),
        ("obs/scamac_total", at(3, np.inf), "totals that are no positive numbers"),
        ("obs/scamac_total", at(3, -5), "totals that are no positive numbers"),
        ("obs/scamac_total", at(3, 0), "totals of 0 for cells that have values"),
        ("obs/scamac_row", at(3, 4), "does not name every row of the input once"),
        ("obs/scamac_row", at(3, -1), "does not name every row of the input once"),
        ("obs/scamac_row", at(3, 10**12), "does not name every row of the input once"),
        (
            "X/indices",
            lambda genes: genes[:2].__setitem__(slice(None), genes[:2][::-1].copy()),
            "genes of a cell that do not ascend",
        ),
        ("X/indices", lambda genes: at(1, genes[0])(genes), "genes of a cell that do not ascend"),
        ("X/indptr", at(1, 10**6), "does not describe rows"),
        ("X/indptr", at(0, -1), "does not describe rows"),
    ],
)
def test_a_store_that_was_changed_and_sealed_again_is_refused(
    copy: Path, array: str, change: Callable[[np.ndarray], Any], message: str
) -> None:
    put(copy, array, change)
    for look in (lambda: read_all(copy), lambda: inspect(copy, verify=True)):
        with pytest.raises(StoreError, match=message):
            look()


def test_verify_finds_values_that_are_not_finite(tmp_path: Path) -> None:
    stored = write(tmp_path / "a.zarr", counts(20, 8), kind="log")
    put(stored.path, "X/data", at(0, np.nan))
    with pytest.raises(StoreError, match="values that are not finite"):
        inspect(stored.path, verify=True)


RECORDS: dict[str, Any] = {
    "version that is true": {"version": True},
    "profile that is a list": {"profile": []},
    "profile of another program": {"profile": "tiny"},
    "cells that are text": {"n_cells": "650"},
    "cells that are true": {"n_cells": True},
    "cells below none": {"n_cells": -1},
    "cells with a fraction": {"n_cells": 650.0},
    "values beyond all": {"n_values": 2**64},
    "values without end": {"n_values": 10**400},
    "metadata that is a list": {"metadata": ["X"]},
    "metadata that is a number": {"metadata": {"X/zarr.json": 3}},
    "files that are null": {"files": None},
    "a size that is text": {"files": {"X/data/c/0": "9"}},
    "a null byte": {"files": {"X\0": 0}},
    "the folder itself": {"files": {"": 0}},
    "depth": {"files": "DEPTH"},
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_of_other_types_is_refused(copy: Path, name: str) -> None:
    about = json.loads((copy / "zarr.json").read_text())
    about["attributes"][layout.RECORD] |= {**RECORDS[name], "checksum": "0" * 64}
    text = json.dumps(about).replace('"DEPTH"', "[" * 10**4 + "]" * 10**4)
    (copy / "zarr.json").write_text(text.replace("0" * 64, sha256_of(text)))
    with pytest.raises(StoreError, match=str(copy)):
        StoreReader(copy)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"\xef\xbb\xbf{}",
        b"\0",
        b"[" * 10**5,
        b'{"attributes": {}, "attributes": {}}',
        b'{"attributes": 1e400}',
        b'{"a": NaN}',
    ],
)
def test_a_record_that_is_no_json_of_ours_is_refused(copy: Path, content: bytes) -> None:
    (copy / "zarr.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"zarr\.json cannot be read"):
        StoreReader(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("chunk_shape", [0]),
        ("chunk_shape", [-5]),
        ("chunk_shape", [2**40]),
        ("chunk_shape", ["9"]),
        ("chunk_shape", []),
        ("chunk_shape", {}),
        ("codecs", 3),
    ],
)
@pytest.mark.parametrize("array", ["data", "indices"])
def test_cuts_that_no_writer_makes_are_refused(copy: Path, array: str, key: str, value: Any) -> None:
    path = copy / "X" / array / "zarr.json"
    about = json.loads(path.read_text())
    about["codecs"][0]["configuration"][key] = value
    path.write_text(json.dumps(about))
    commit_again(copy)
    with pytest.raises(StoreError, match=str(copy)):
        StoreReader(copy)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("gene_space", "[" * 10**5),
        ("gene_space", "[]"),
        ("gene_space", '{"kind": "counts", "target_sum": 1e400, "filtered": ["a"], "chosen": ["a"]}'),
        ("gene_space", '{"kind": "counts", "target_sum": 1.0, "filtered": [1], "chosen": [1]}'),
        ("config", "[]"),
        ("config", '{"batch_key": 3}'),
        ("inputs", "{}"),
        ("inputs", "[3]"),
    ],
)
def test_texts_of_a_store_that_make_no_sense_are_refused(copy: Path, key: str, text: str) -> None:
    from anndata.io import write_elem

    write_elem(zarr.open_group(copy, mode="r+"), f"uns/scamac/{key}", text)
    commit_again(copy)
    with pytest.raises(StoreError, match=str(copy)):
        StoreReader(copy)


@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("name", ["zarr.json", "X/data/c/0", "X/indptr/zarr.json", "obs/scamac_row/c/0", ".zgroup"])
def test_no_pipe_of_a_store_is_opened_and_no_link_followed(copy: Path, kind: str, name: str) -> None:
    path = copy / name
    if path.exists():
        path.rename(copy.parent / "outside")
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(copy.parent / "outside")
    for look in (lambda: StoreReader(copy), lambda: inspect(copy)):
        with pytest.raises((StoreError, InputError), match=rf"{name} is a|cannot be read \(it is a|none of"):
            look()


@pytest.fixture(scope="module")
def of_two_seeds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores of the same cells in another order: all their files have the same names and sizes."""
    home, raw = tmp_path_factory.mktemp("seeds"), counts(400, 30)
    return tuple(write(home / f"{seed}.zarr", raw, chunk_values=128, seed=seed).path for seed in (0, 1))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["X/data/c/0", "X/indices/c/1", "X/indptr/c/0", "obs/scamac_row/c/0"])
def test_a_file_of_another_store_is_found_though_all_its_checksums_are_right(
    of_two_seeds: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    one, other = of_two_seeds
    records = [read_record(store) for store in of_two_seeds]
    assert records[0].files == records[1].files
    assert (one / "zarr.json").read_bytes() != (other / "zarr.json").read_bytes()
    mixed = tmp_path / "mixed.zarr"
    shutil.copytree(one, mixed)
    inspect(mixed, verify=True)
    shutil.copyfile(other / name, mixed / name)
    with pytest.raises(StoreError, match=f"{name} is of another store"):
        inspect(mixed, verify=True)


def test_the_record_tells_the_sha256_of_every_file(of_two_seeds: tuple[Path, Path]) -> None:
    store = of_two_seeds[0]
    found = read_record(store)
    assert found.digests == {name: sha256_of((store / name).read_bytes()) for name in found.files}


@pytest.mark.parametrize("digests", [{}, {"X/data/c/0": "0" * 64}, 3, {"X/data/c/0": 3}])
def test_digests_of_other_files_than_there_are_make_a_damaged_record(copy: Path, digests: Any) -> None:
    forge(copy, digests=digests)
    with pytest.raises(StoreError, match="commit record"):
        read_record(copy)
