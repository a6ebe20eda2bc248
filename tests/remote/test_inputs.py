"""Inputs in object storage give the values of the same inputs on a disk, and their damages are told as there."""

from __future__ import annotations

import gzip
import json
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pytest
import scipy.io
import zarr
from scipy import sparse

from scamac_scale import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion.open import open_raw, read_obs
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import Stamp
from scamac_scale.remote import stream
from scamac_scale.remote.bucket import Bucket
from tests.support.bucket import upload
from tests.support.formats import write_tenx, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable


def _h5ad(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "a.h5ad", compression="gzip")
    return folder / "a.h5ad"


def _dense(adata: ad.AnnData, folder: Path) -> Path:
    adata.X = adata.X.toarray()
    return _h5ad(adata, folder)


def _sharded(adata: ad.AnnData, folder: Path) -> Path:
    path = write_zarr(adata, folder / "a.zarr")
    root = zarr.open_group(path, use_consolidated=False)
    data = root["X/data"][:]
    attributes = dict(root["X/data"].attrs)
    root["X"].create_array("data", data=data, chunks=(512,), shards=(2048,), overwrite=True, attributes=attributes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(path)
    return path


KINDS: dict[str, Callable[[ad.AnnData, Path], Path]] = {
    "h5ad": _h5ad,
    "dense": _dense,
    "zarr2": lambda adata, folder: write_zarr(adata, folder / "a.zarr", 2),
    "zarr3": lambda adata, folder: write_zarr(adata, folder / "a.zarr", 3),
    "sharded": _sharded,
    "tenx": lambda adata, folder: write_tenx(adata, folder / "a.h5"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_input_in_a_bucket_reads_as_on_a_disk(
    kind: str, tiny_adata: ad.AnnData, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "BLOCK_BYTES", 4096)  # many blocks, few of them kept
    monkeypatch.setattr(stream, "CACHE_BLOCKS", 4)
    path = KINDS[kind](tiny_adata, tmp_path)
    url = upload(path, f"{bucket}/folder/{path.name}")
    with open_raw(path) as there, open_raw(url) as here:
        assert here.gene_names == there.gene_names
        assert here.name == url
        for start, stop in ((0, 300), (17, 123), (299, 300), (5, 5)):
            assert (here.read_block(start, stop) != there.read_block(start, stop)).nnz == 0
        assert here.obs.equals(there.obs)
        with here.recipe.open() as again:
            assert (again.read_block(0, 300) != here.read_block(0, 300)).nnz == 0
    if kind != "tenx":
        assert read_obs(url).equals(read_obs(path))


def test_an_ingest_from_a_bucket_is_that_of_the_file_and_notes_its_etag(
    tiny_atlas: Path, tmp_path: Path, bucket: str
) -> None:
    url = upload(tiny_atlas, f"{bucket}/tiny.h5ad")
    here, there = tmp_path / "here.zarr", tmp_path / "there.zarr"
    ingest(url, here, IngestConfig(n_genes=100))
    ingest(tiny_atlas, there, IngestConfig(n_genes=100))
    for part in ("X/data", "X/indices"):
        files = sorted(file for file in (there / part).rglob("*") if file.is_file())
        assert files
        assert all((here / file.relative_to(there)).read_bytes() == file.read_bytes() for file in files)
    [about] = json.loads(str(zarr.open_group(here, mode="r")["uns/scamac/inputs"][()]))
    assert about["name"] == url
    assert about["etag"] == Bucket(url).find().etag.strip('"')
    assert about["bytes"] == tiny_atlas.stat().st_size
    assert ingest(url, here, IngestConfig(n_genes=100), resume=True) == here
    upload(tiny_atlas.with_name("tiny.h5ad"), url)
    Bucket(url).put("", tiny_atlas.read_bytes() + b"more")
    with pytest.raises(InputError.__mro__[1], match="another ingest"):
        ingest(url, here, IngestConfig(n_genes=100), resume=True)


def test_an_input_that_is_replaced_while_it_is_read_is_refused(tiny_atlas: Path, bucket: str) -> None:
    url = upload(tiny_atlas, f"{bucket}/tiny.h5ad")
    with open_raw(url) as raw:
        stamp = Stamp.of(url)
        stamp.check()
        Bucket(url).put("", tiny_atlas.read_bytes() + b"more")
        with pytest.raises(InputError, match="was changed"):
            stamp.check()
        raw.rows.data.file.id  # noqa: B018 - still open
    zarr_url = upload(write_zarr(ad.read_h5ad(tiny_atlas), Path(tiny_atlas.parent / "t.zarr")), f"{bucket}/t.zarr")
    with open_raw(zarr_url) as raw:
        key = next(entry.key for entry in Bucket(zarr_url).listing("X/data/c"))
        Bucket(zarr_url).put(key, b"other")
        with pytest.raises(InputError, match=r"t\.zarr/X/data/c/.* replaced while it was read"):
            raw.read_block(0, 300)


@pytest.mark.parametrize("part", ["X/indices", "X/data", "obs/_index"])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.slow
def test_a_lost_chunk_is_named(
    part: str, zarr_format: int, tiny_adata: ad.AnnData, tmp_path: Path, bucket: str
) -> None:
    url = upload(write_zarr(tiny_adata, tmp_path / "a.zarr", zarr_format), f"{bucket}/a.zarr")
    at = Bucket(url)
    lost = [entry.key for entry in at.listing(part) if not entry.key.rpartition("/")[2].startswith((".z", "zarr"))][-1]
    at.delete(lost)
    with pytest.raises(InputError, match=rf"missing, such as {url}/{part}/"):
        open_raw(url)


def test_a_lost_chunk_of_a_column_is_told_from_one_that_is_meant(
    tiny_adata: ad.AnnData, tmp_path: Path, bucket: str
) -> None:
    tiny_adata.obs["zero"] = 0.0
    at = Bucket(upload(write_zarr(tiny_adata, tmp_path / "a.zarr"), f"{bucket}/a.zarr"))
    with open_raw(f"{bucket}/a.zarr") as raw:  # zarr leaves the chunk of zeros out
        assert (raw.obs["zero"] == 0).all()
    at.delete([entry.key for entry in at.listing("obs/cell_type/codes/c")])
    with pytest.raises(InputError, match="cell_type/codes"):
        open_raw(f"{bucket}/a.zarr")


def test_a_chunk_that_was_cut_off_is_named_when_it_is_read(tiny_adata: ad.AnnData, tmp_path: Path, bucket: str) -> None:
    url = upload(write_zarr(tiny_adata, tmp_path / "a.zarr", 2), f"{bucket}/a.zarr")
    at = Bucket(url)
    key = next(entry.key for entry in at.listing("X/data") if entry.key.endswith("/0"))
    at.put(key, at.read(key)[:-7])
    with open_raw(url) as raw, pytest.raises(InputError, match=r"X/data/0|cannot be read"):
        raw.read_block(0, 300)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.h5ad", b"", "is empty"),
        ("a.h5ad", b"PK\x03\x04", "zip archive"),
        ("a.h5ad", b"\x89HDF\r\n\x1a\n" + bytes(50), "cannot be opened as HDF5"),
        ("a.rds", b"RDX3", "an R object"),
    ],
)
def test_what_is_no_input_is_told_as_on_a_disk(name: str, content: bytes, said: str, bucket: str) -> None:
    Bucket(bucket).put(name, content)
    with pytest.raises(InputError, match=said) as caught:
        open_raw(f"{bucket}/{name}")
    assert f"{bucket}/{name}" in str(caught.value)


def test_an_h5ad_that_ends_early_is_refused(tiny_atlas: Path, bucket: str) -> None:
    content = tiny_atlas.read_bytes()
    Bucket(bucket).put("a.h5ad", content[: len(content) // 2])
    with pytest.raises(InputError, match="HDF5"):
        open_raw(f"{bucket}/a.h5ad")


def test_nothing_there_and_a_folder_of_other_things_are_refused(bucket: str, tiny_atlas: Path) -> None:
    upload(tiny_atlas, f"{bucket}/folder/x.h5ad")
    with pytest.raises(InputError, match="there is no object and no folder"):
        open_raw(f"{bucket}/nothing.h5ad")
    with pytest.raises(InputError, match="not an AnnData zarr") as caught:
        open_raw(f"{bucket}/folder")
    assert str(caught.value).startswith(f"{bucket}/folder is")
    assert "ZarrObjects" not in str(caught.value)
    with pytest.raises(InputError, match="no object"):
        open_raw(bucket)


def test_links_in_an_h5ad_of_a_bucket_are_not_followed(tiny_atlas: Path, tmp_path: Path, bucket: str) -> None:
    path = tmp_path / "a.h5ad"
    path.write_bytes(tiny_atlas.read_bytes())
    with h5py.File(path, "a") as file:
        file["obs/secret"] = h5py.ExternalLink("/etc/passwd", "/x")
    with pytest.raises(InputError, match="link to another file"):
        open_raw(upload(path, f"{bucket}/a.h5ad"))


def write_market(adata: ad.AnnData, folder: Path) -> Path:
    """A folder as Cell Ranger 3 writes it."""
    folder.mkdir(parents=True)
    with gzip.open(folder / "matrix.mtx.gz", "wb") as file:
        scipy.io.mmwrite(file, sparse.csr_matrix(adata.X).T.astype(np.int64))
    genes = "".join(f"ENSG{i:011d}\t{name}\tGene Expression\n" for i, name in enumerate(adata.var_names))
    (folder / "features.tsv.gz").write_bytes(gzip.compress(genes.encode()))
    (folder / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{name}\n" for name in adata.obs_names).encode()))
    return folder


def test_matrix_market_files_are_copied_first_and_kept(
    tiny_adata: ad.AnnData,
    tmp_path: Path,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "work"))
    folder = write_market(tiny_adata, tmp_path / "outs" / "filtered_feature_bc_matrix")
    shutil.copytree(folder, tmp_path / "outs" / "raw_feature_bc_matrix")
    url = upload(tmp_path / "outs", f"{bucket}/outs")
    caplog.set_level("INFO")
    with open_raw(folder) as there:
        expected = there.read_block(0, 300)
    for place in (url, f"{url}/filtered_feature_bc_matrix", f"{url}/filtered_feature_bc_matrix/matrix.mtx.gz"):
        with open_raw(place) as here:
            assert (here.read_block(0, 300) != expected).nnz == 0
            assert here.name == place
            with here.recipe.open() as again:
                assert again.n_cells == 300
    assert "are copied to the local disk first" in caplog.text
    upload(folder, f"{bucket}/outs/other")
    with pytest.raises(InputError, match="2 folders of Matrix Market files; give one of them"):
        open_raw(url)
    Bucket(url).delete("other/barcodes.tsv.gz")
    with pytest.raises(InputError, match="barcodes"):
        open_raw(f"{url}/other")
