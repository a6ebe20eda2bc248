"""Chunks that are not there: what was lost is refused, what zarr leaves out on purpose is read."""

from __future__ import annotations

import itertools
import json
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numcodecs
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.frames import read_frame
from scamac_scale.ingestion.open import open_obsm, open_raw, read_obs
from tests.support.formats import write_zarr

if TYPE_CHECKING:
    from pathlib import Path

N, G = 60, 40


def cells(**columns: Any) -> ad.AnnData:
    """Sixty cells in three types, in order of type."""
    random = np.random.default_rng(5)
    obs = pd.DataFrame({"kind": pd.Categorical(np.repeat(["A", "B", "C"], 20)), **columns})
    obs.index = [f"cell{i}" for i in range(N)]
    values = random.poisson(2, size=(N, G)).astype(np.float32)
    adata = ad.AnnData(sparse.csr_matrix(values), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(G)]))
    adata.raw = adata.copy()
    adata.layers["twice"] = adata.X * 2
    adata.layers["dense"] = values
    adata.obsm["Z"] = random.normal(size=(N, 3))
    return adata


def rewrite(path: Path, name: str, value: Any, **options: Any) -> None:
    """Write one part anew, in chunks; and forget what was consolidated."""
    group = zarr.open_group(path, mode="a", use_consolidated=False)
    if name in group:
        del group[name]
    write_elem(group, name, value, dataset_kwargs={"shards": None} | options)
    forget(path)


def forget(path: Path) -> None:
    """Take out what the root says of its parts, which is not what is written there any more."""
    about = json.loads((path / "zarr.json").read_text())
    about.pop("consolidated_metadata", None)
    (path / "zarr.json").write_text(json.dumps(about))


def lose(path: Path, name: str, *chunk: int) -> Path:
    array: Any = zarr.open_group(path, mode="r")[name]
    file = path / name / array.metadata.encode_chunk_key(chunk or (0,) * len(array.shape))
    file.unlink()
    return file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("zarr")
    text = pd.array([f"t{i}" for i in range(N)], dtype="string")
    adata = cells(depth=np.arange(1.0, N + 1), count=pd.array(range(1, N + 1), dtype="Int64"), text=text)
    with ad.settings.override(allow_write_nullable_strings=True):
        return {form: write_zarr(adata, folder / f"{form}.zarr", form) for form in (2, 3)}


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        *((f"X/{part}", "X") for part in ("data", "indices", "indptr")),
        ("raw/X/data", "raw"),
        ("raw/var/_index", "raw"),
        ("layers/twice/indices", "twice"),
        ("layers/dense", "dense"),
        ("var/_index", "X"),
        ("obs/_index", "X"),
        ("obs/kind/codes", "X"),
        ("obs/kind/categories", "X"),
        ("obs/text/values", "X"),
    ],
)
def test_a_lost_file_of_any_array_is_named(
    written: dict[int, Path], form: int, name: str, matrix: str, tmp_path: Path
) -> None:
    path = shutil.copytree(written[form], tmp_path / "a.zarr")
    file = lose(path, name)
    with pytest.raises(InputError, match=r"1 of 1 chunks of .* is missing, such as ") as raised:
        open_raw(path, matrix)
    assert str(file) in str(raised.value)
    assert name.replace("/", "") in str(raised.value).replace(": ", "").replace("/", "").replace("layers", "") or (
        name.split("/")[-1] in str(raised.value)
    )
    assert "copy the folder again" in str(raised.value)


def test_a_folder_that_is_lost_is_named(written: dict[int, Path], tmp_path: Path) -> None:
    path = shutil.copytree(written[3], tmp_path / "a.zarr")
    shutil.rmtree(path / "var")  # what is consolidated still names it
    with pytest.raises(InputError, match=r"1 of 1 chunks of .*var/_index is missing"):
        open_raw(path)


@pytest.mark.parametrize("consolidated", [True, False])
@pytest.mark.parametrize("options", [{"chunks": (100,)}, {"chunks": (50,), "shards": (500,)}])
def test_one_file_of_many_is_found(options: dict[str, Any], consolidated: bool, tmp_path: Path) -> None:
    adata = cells()
    path = write_zarr(adata, tmp_path / "a.zarr")
    rewrite(path, "X", adata.X, **options)
    if consolidated:
        with warnings.catch_warnings(action="ignore"):
            zarr.consolidate_metadata(str(path))
    file = lose(path, "X/data", 2)
    with pytest.raises(InputError, match=r"X/data (is|are) missing") as raised:
        open_raw(path)
    assert str(file) in str(raised.value)


def test_a_chunk_that_a_shard_lacks_is_found(tmp_path: Path) -> None:
    path = write_zarr(cells(), tmp_path / "a.zarr")
    rewrite(path, "X", cells().X, chunks=(50,), shards=(500,))
    array: Any = zarr.open_group(path, mode="r+")["X/data"]
    with zarr.config.set({"array.write_empty_chunks": False}):
        array[100:150] = 0
    with pytest.raises(InputError, match=r"1 of \d+ chunks of .*X/data is missing, such as chunk 2, within its shard"):
        open_raw(path)


def test_what_anndata_leaves_out_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One type, nothing but False, zeros, empty texts: zarr writes no file for any of these."""
    columns = {
        "one": pd.Categorical(["a"] * N),
        "flag": np.zeros(N, bool),
        "zero": np.zeros(N),
        "int": pd.array([0] * N, dtype="Int64"),
        "bool": pd.array([False] * N, dtype="boolean"),
        "blank": pd.Categorical([""] * N),
        "number": pd.Categorical([0] * N),
    }
    adata = cells(**columns)
    path = write_zarr(adata, tmp_path / "a.zarr")
    assert not (path / "obs/flag/c").exists()
    with open_raw(path) as raw:
        pd.testing.assert_frame_equal(raw.obs, adata.obs, check_names=False)
    assert "files of 7 columns are not there (one, flag, zero, int, bool, ...)" in caplog.text


def test_a_matrix_without_values_has_no_files(tmp_path: Path) -> None:
    adata = cells()
    adata.X = sparse.csr_matrix((N, G), dtype=np.float32)
    with open_raw(write_zarr(adata, tmp_path / "a.zarr")) as raw:
        assert raw.read_block(0, N).nnz == 0


@pytest.mark.parametrize(
    ("values", "lost", "is_meant"),
    [
        (np.repeat([0, 1, 2], 20), 0, True),  # in order: cells of the first type on both sides, or the end
        (np.repeat([0, 1, 2], 20), 2, False),
        (np.repeat([1, 0, 2], 20), 3, False),  # the values beside it are of the first type on one side only
        (np.tile([0, 1, 2], 20), 2, False),
    ],
)
def test_codes_in_order_tell_from_codes_that_were_lost(
    values: np.ndarray[Any, Any], lost: int, is_meant: bool, tmp_path: Path
) -> None:
    adata = cells(kind=pd.Categorical.from_codes(values, ["A", "B", "C"]))
    path = write_zarr(adata, tmp_path / "a.zarr")
    rewrite(path, "obs/kind/codes", values.astype(np.int8), chunks=(7 if is_meant else 12,))
    if not is_meant or (path / f"obs/kind/codes/c/{lost}").exists():
        lose(path, "obs/kind/codes", lost)
    if is_meant:
        assert list(read_obs(path)["kind"]) == list(adata.obs["kind"])
        return
    with pytest.raises(
        InputError, match=r"chunks of .*obs/kind/codes (is|are) missing.*If such values are meant there"
    ):
        read_obs(path)


def test_the_line_that_is_offered_writes_them(tmp_path: Path) -> None:
    adata = cells()
    adata.obs["kind"] = pd.Categorical(["A"] * N, categories=["A", "B"])  # nobody is B
    path = write_zarr(adata, tmp_path / "a.zarr")
    with pytest.raises(InputError, match=r"python -c '.*'$") as raised:
        read_obs(path)
    code = str(raised.value).partition("python -c '")[2].removesuffix("'")
    with zarr.config.set({"array.write_empty_chunks": False}):
        exec(code, {})
    assert list(read_obs(path)["kind"]) == ["A"] * N


def test_a_number_column_of_which_some_is_lost_is_refused(tmp_path: Path) -> None:
    path = write_zarr(cells(depth=np.arange(1.0, N + 1)), tmp_path / "a.zarr")
    rewrite(path, "obs/depth", np.arange(1.0, N + 1), chunks=(10,))
    lose(path, "obs/depth", 3)
    with pytest.raises(InputError, match=r"1 of 6 chunks of .*obs/depth is missing"):
        read_obs(path)


def test_a_writer_that_writes_zeros_too_left_nothing_out(tmp_path: Path) -> None:
    adata = cells(flag=np.zeros(N, bool), other=np.zeros(N))
    with zarr.config.set({"array.write_empty_chunks": True}):
        path = write_zarr(adata, tmp_path / "a.zarr")
    assert (path / "obs/flag/c/0").exists()
    assert not read_obs(path)["flag"].any()
    lose(path, "obs/flag")
    with pytest.raises(InputError, match=r"1 of 1 chunks of .*obs/flag is missing"):
        read_obs(path)


@pytest.mark.parametrize("form", [2, 3])
def test_columns_of_a_later_writer_are_read(form: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One that left nothing out wrote the file; one that leaves out fill values added a column, which no other column can tell."""
    with zarr.config.set({"array.write_empty_chunks": True}):
        path = write_zarr(cells(flag=np.zeros(N, bool)), tmp_path / "a.zarr", form)
    added = {"late": np.zeros(N, bool), "number": np.zeros(N), "one": pd.Categorical(["a"] * N)}
    with zarr.config.set({"array.write_empty_chunks": False}):
        for name, values in added.items():
            rewrite_later(path, name, values)
    obs = read_obs(path)
    assert not obs["late"].any()
    assert set(obs["one"]) == {"a"}
    assert "files of 3 columns are not there (late, number, one)" in caplog.text
    with zarr.config.set({"array.write_empty_chunks": False}):
        rewrite_later(path, "sorted", np.repeat([0, 1], [35, 25]), chunks=(10,))
    with pytest.raises(InputError, match=r"obs/sorted are missing.*If such values are meant there, write them"):
        read_obs(path)


def rewrite_later(path: Path, name: str, values: Any, **options: Any) -> None:
    group: Any = zarr.open_group(path, mode="a", use_consolidated=False)
    write_elem(group, f"obs/{name}", values, dataset_kwargs={"shards": None} | options)
    group["obs"].attrs["column-order"] = [*group["obs"].attrs["column-order"], name]
    if group.metadata.zarr_format == 2:
        (path / ".zmetadata").unlink(missing_ok=True)
    else:
        forget(path)


def test_the_writer_is_looked_up_once_and_only_where_it_matters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    monkeypatch.setattr("scamac_scale.ingestion.chunks._some_fill_is_written", looks.append)
    columns = {f"zero{i}": np.zeros(N) for i in range(5)}
    path = write_zarr(cells(**columns), tmp_path / "a.zarr")
    read_obs(path)
    assert not looks
    for name in columns:
        rewrite(path, f"obs/{name}", np.repeat([0.0, 1.0], [35, 25]), chunks=(10,))
    monkeypatch.setattr("scamac_scale.ingestion.chunks._some_fill_is_written", lambda root: looks.append(root) or False)
    read_obs(path)
    assert len(looks) == 1


def test_codes_without_any_file_say_what_to_do_where_they_are_sound(written: dict[int, Path], tmp_path: Path) -> None:
    path = shutil.copytree(written[2], tmp_path / "a.zarr")
    lose(path, "obs/kind/codes")
    with pytest.raises(InputError, match=r"obs/kind/codes is missing.*remove_unused_categories\(\).*python -c"):
        read_obs(path)


class TestOldTable:
    """As anndata 0.7 wrote it: codes beside the other columns, categories in a group of their own."""

    def write(self, path: Path, n: int = N, categories: tuple[str, ...] = ("A", "B", "C")) -> Path:
        group: Any = zarr.open_group(path, mode="a", zarr_format=2, use_consolidated=False)
        obs = group.create_group("obs", overwrite=True)
        order = ["depth", "kind"]
        about = {"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "_index", "column-order": order}
        obs.attrs.update(about)
        names = {"_index": np.array([f"c{i}" for i in range(n)]), "__categories/kind": np.array(categories)}
        codes = (np.arange(n) % len(categories)).astype(np.int8)
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in {**names, "depth": np.arange(1.0, n + 1), "kind": codes}.items():
                array = obs.create_array(name, shape=values.shape, dtype=values.dtype, chunks=(min(10, len(values)),))
                array[:] = values
        obs["kind"].attrs["categories"] = "__categories/kind"
        (path / ".zmetadata").unlink(missing_ok=True)
        return path

    @pytest.mark.parametrize("categories", [("A",), ("A", "B", "C")])
    @pytest.mark.parametrize("n", [1, N])
    def test_it_is_read(self, n: int, categories: tuple[str, ...], tmp_path: Path) -> None:
        obs = read_obs_of(self.write(tmp_path / "a.zarr", n, categories))
        assert list(obs["kind"]) == [categories[i % len(categories)] for i in range(n)]
        assert list(obs["kind"].cat.categories) == list(categories)
        assert (obs.index[n - 1], obs["depth"].iloc[n - 1]) == (f"c{n - 1}", n)

    @pytest.mark.parametrize("name", ["depth", "kind", "_index", "__categories/kind"])
    def test_a_lost_file_is_named(self, name: str, tmp_path: Path) -> None:
        path = self.write(tmp_path / "a.zarr")
        lose(path, f"obs/{name}")
        with pytest.raises(InputError, match=rf"1 of \d chunks of .*obs/{name} is missing"):
            read_obs_of(path)


def read_obs_of(path: Path) -> pd.DataFrame:
    return read_frame(zarr.open_group(path, mode="r")["obs"], f"{path}: obs")


def test_links_to_folders_do_not_multiply(tmp_path: Path) -> None:
    path = write_zarr(cells(), tmp_path / "a.zarr")
    folders = [path / "X/data" / f"d{i}" for i in range(40)]
    for folder in folders:
        folder.mkdir()
    for folder, below in itertools.pairwise(folders):
        for name in ("left", "right"):
            (folder / name).symlink_to(below)
    with open_raw(path) as raw:  # 2**40 ways, were they all walked
        assert raw.n_cells == N


class TestDense:
    @pytest.fixture
    def rare(self, tmp_path: Path) -> Path:
        """Genes 20 to 40 are found in two cells."""
        values = cells().layers["dense"].copy()
        values[:, 20:] = 0
        values[[3, 50], 25] = 1
        path = write_zarr(cells(), tmp_path / "a.zarr")
        rewrite(path, "X", values, chunks=(10, 20))
        return path

    def test_genes_that_are_hardly_found_have_no_file(self, rare: Path, caplog: pytest.LogCaptureFixture) -> None:
        assert not (rare / "X/c/1/1").exists()
        with open_raw(rare) as raw:
            assert raw.read_block(0, N)[:, 20:].nnz == 2
        assert "X: files of chunks are not there; they fit genes that are hardly found" in caplog.text

    def test_genes_that_others_have_were_lost(self, rare: Path) -> None:
        lose(rare, "X", 2, 0)
        with pytest.raises(InputError, match=r"5 of 12 chunks of .*X are missing.*If such values are meant there"):
            open_raw(rare)

    def test_cells_without_any_value_were_lost(self, tmp_path: Path) -> None:
        path = write_zarr(cells(), tmp_path / "a.zarr")
        rewrite(path, "X", cells().layers["dense"], chunks=(10, G))
        lose(path, "X", 3, 0)
        with pytest.raises(InputError, match=r"1 of 6 chunks of .*X is missing"):
            open_raw(path)

    def test_coordinates_were_lost(self, tmp_path: Path) -> None:
        path = write_zarr(cells(), tmp_path / "a.zarr")
        lose(path, "obsm/Z")
        with pytest.raises(InputError, match=r"1 of 1 chunks of .*obsm"):
            open_obsm(path, "Z")


@pytest.mark.parametrize("name", ["X/data", "X/indptr", "obs/_index", "obs/kind/codes", "obs/depth", "var/_index"])
@pytest.mark.parametrize("chunks", [None, (7,)])
def test_an_hdf5_array_that_was_never_written_is_refused(name: str, chunks: tuple[int] | None, tmp_path: Path) -> None:
    cells(depth=np.arange(1.0, N + 1)).write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        old = file[name]
        shape, dtype, noted = old.shape, old.dtype, dict(old.attrs)
        del file[name]
        new = file.create_dataset(name, shape, dtype, chunks=chunks)
        new.attrs.update(noted)
    with pytest.raises(InputError, match=rf"chunks? of .*{name} (is|are) missing: .*write the file again"):
        open_raw(tmp_path / "a.h5ad")


def test_an_array_that_promises_more_chunks_than_there_are_is_refused_at_once(tmp_path: Path) -> None:
    path = write_zarr(cells(), tmp_path / "a.zarr")
    for part in ("data", "indices"):
        about = json.loads((path / f"X/{part}/zarr.json").read_text())
        about["shape"], about["chunk_grid"]["configuration"]["chunk_shape"] = [2**45], [2**15]
        (path / f"X/{part}/zarr.json").write_text(json.dumps(about))
    forget(path)
    with pytest.raises(InputError, match=r"X/(data|indices|indptr)|is not|promises") as raised:
        open_raw(path)
    assert "missing" in str(raised.value) or "chunks" in str(raised.value)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_chunk_that_promises_billions_of_texts_is_refused(
    tiny_adata: ad.AnnData, tmp_path: Path, zarr_format: int
) -> None:
    path = write_zarr(tiny_adata, tmp_path / "a.zarr", zarr_format)
    array = zarr.open_array(path / "obs" / "cell_type" / "categories")
    chunk = path / "obs" / "cell_type" / "categories" / array.metadata.encode_chunk_key((0,))
    codec = numcodecs.Zstd() if zarr_format == 3 else array.metadata.compressor
    content = bytearray(codec.decode(chunk.read_bytes()))
    content[3] = 0x80
    chunk.write_bytes(codec.encode(bytes(content)))
    with pytest.raises(InputError, match=r"obs/cell_type/categories: .* holds 2,147,483,652 texts, and a chunk has 4"):
        open_raw(path)


def test_a_chunk_of_blosc_that_was_cut_off_is_refused(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = write_zarr(tiny_adata, tmp_path / "a.zarr", 2)
    chunk = path / "obs" / "depth" / "0"
    chunk.write_bytes(chunk.read_bytes()[:40])
    with pytest.raises(
        InputError, match=r"obs/depth: .*depth/0 has 40 bytes and says that it has [\d,]+; it was cut off"
    ):
        open_raw(path)
