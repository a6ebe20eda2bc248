from __future__ import annotations

import os
import pickle
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError, PlanError
from scamac_scale.ingestion import rows as rows_module
from scamac_scale.ingestion.open import open_raw, read_obs
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import read_blocks
from tests.support.formats import write_loom, write_mtx, write_tenx, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable

    from scamac_scale.ingestion.raw import RawMatrix


def dense(raw: RawMatrix, block_cells: int = 64) -> np.ndarray[Any, Any]:
    return np.vstack([block.toarray() for _, block in read_blocks(raw, block_cells, "reading")])


def as_h5ad(adata: ad.AnnData, folder: Path) -> Path:
    adata.write_h5ad(folder / "a.h5ad")
    return folder / "a.h5ad"


def as_dense_h5ad(adata: ad.AnnData, folder: Path) -> Path:
    adata.X = adata.X.toarray()
    adata.write_h5ad(folder / "a.h5ad", compression="gzip")
    return folder / "a.h5ad"


def as_dense_memory(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    adata.X = adata.X.toarray()
    return adata


def as_csc_memory(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    adata.X = adata.X.tocsc()
    return adata


def as_csr_array(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    adata.X = sparse.csr_array(adata.X)
    return adata


def as_view(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    twice = ad.concat([adata, adata], index_unique="-", merge="same", uns_merge="same")
    twice.obs_names = [*(f"other{i}" for i in range(adata.n_obs)), *adata.obs_names]
    return twice[adata.n_obs :]


FORMATS: dict[str, Callable[[ad.AnnData, Path], Any]] = {
    "h5ad": as_h5ad,
    "dense h5ad": as_dense_h5ad,
    "zarr v2": lambda adata, folder: write_zarr(adata, folder / "a.zarr", 2),
    "zarr v3": lambda adata, folder: write_zarr(adata, folder / "a.zarr", 3),
    "dense zarr": lambda adata, folder: write_zarr(as_dense_memory(adata, folder), folder / "a.zarr"),
    "csc h5ad": lambda adata, folder: as_h5ad(as_csc_memory(adata, folder), folder),
    "csc zarr": lambda adata, folder: write_zarr(as_csc_memory(adata, folder), folder / "a.zarr"),
    "10x v3": lambda adata, folder: write_tenx(adata, folder / "a.h5"),
    "10x v2": lambda adata, folder: write_tenx(adata, folder / "a.h5", 2),
    "memory": lambda adata, folder: adata,
    "dense memory": as_dense_memory,
    "csc memory": as_csc_memory,
    "csr array": as_csr_array,
    "view": as_view,
    "backed": lambda adata, folder: ad.read_h5ad(as_h5ad(adata, folder), backed="r"),
    "csc backed": lambda adata, folder: ad.read_h5ad(as_h5ad(as_csc_memory(adata, folder), folder), backed="r"),
    "dense backed": lambda adata, folder: ad.read_h5ad(as_dense_h5ad(adata, folder), backed="r"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_cells(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    expected = tiny_adata.X.toarray()
    names, genes = list(tiny_adata.obs_names), tuple(tiny_adata.var_names)
    data = FORMATS[name](tiny_adata.copy(), tmp_path)
    with open_raw(data) as raw:
        assert (raw.n_cells, raw.n_genes, raw.gene_names) == (300, 200, genes)
        np.testing.assert_array_equal(dense(raw), expected)  # 64 does not divide 300
        block = raw.read_block(17, 18)
        np.testing.assert_array_equal(block.toarray(), expected[17:18])
        assert block.has_canonical_format
        assert block.dtype == raw.dtype
        assert list(raw.obs.index) == names
        if "10x" not in name:
            assert list(raw.obs["cell_type"]) == list(tiny_adata.obs["cell_type"])


@pytest.mark.filterwarnings("ignore")  # of writers, about what is empty
@pytest.mark.parametrize("name", [*FORMATS, "loom", "mtx", "dask"])
def test_an_input_without_genes_is_refused_when_it_is_opened(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    more: dict[str, Callable[[ad.AnnData, Path], Any]] = {
        "loom": lambda adata, folder: write_loom(adata, folder / "a.loom"),
        "mtx": lambda adata, folder: write_mtx(adata, folder / "m"),
        "dask": lambda adata, folder: in_dask(adata),
    }
    data = (FORMATS | more)[name](tiny_adata[:20, :0].copy(), tmp_path)
    with pytest.raises(InputError, match=r"has no genes"):
        open_raw(data)


def in_dask(adata: ad.AnnData) -> ad.AnnData:
    array = pytest.importorskip("dask.array")
    adata.X = array.from_array(adata.X.toarray(), chunks=(10, -1))
    return adata


@settings(max_examples=25)
@given(bounds=st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted))
@pytest.mark.slow
def test_any_run_of_cells_is_that_slice(tiny_atlas: Path, bounds: list[int]) -> None:
    start, stop = bounds
    with open_raw(tiny_atlas) as raw:
        expected = ad.read_h5ad(tiny_atlas).X[start:stop].toarray()
        np.testing.assert_array_equal(raw.read_block(start, stop).toarray(), expected)


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (0, 301), (5, 4)])
def test_cells_that_do_not_exist_are_refused(tiny_atlas: Path, start: int, stop: int) -> None:
    with open_raw(tiny_atlas) as raw, pytest.raises(PlanError, match=f"cells {start} to {stop} of .* it has 300"):
        raw.read_block(start, stop)


def test_dense_blocks_larger_than_a_slab_are_put_together(
    tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = tiny_adata.X.toarray()
    tiny_adata.X = expected.copy()
    monkeypatch.setattr(rows_module, "DENSE_SLAB_VALUES", 7 * 200 + 3)
    np.testing.assert_array_equal(open_raw(tiny_adata).read_block(3, 100).toarray(), expected[3:100])
    assert open_raw(tiny_adata).read_block(3, 3).shape == (0, 200)


@pytest.mark.parametrize("name", ["h5ad", "zarr v3", "memory"])
def test_raw_and_layers_are_found(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    counts = tiny_adata.X.copy()
    tiny_adata.raw = tiny_adata.copy()
    subset = tiny_adata[:, 50:].copy()
    subset.layers["twice"] = subset.X * 2
    subset.X = subset.X * 3
    data = FORMATS[name](subset, tmp_path)
    with open_raw(data, "raw") as raw:
        assert raw.n_genes == 200
        np.testing.assert_array_equal(dense(raw), counts.toarray())
    with open_raw(data, "twice") as raw:
        assert raw.gene_names == tuple(subset.var_names)
        np.testing.assert_array_equal(dense(raw), counts[:, 50:].toarray() * 2)


@pytest.mark.parametrize("name", ["h5ad", "zarr v3", "memory"])
def test_without_x_the_message_lists_what_there_is(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    adata = ad.AnnData(obs=tiny_adata.obs, var=tiny_adata.var, layers={"spliced": tiny_adata.X, "counts": tiny_adata.X})
    data = FORMATS[name](adata, tmp_path)
    with pytest.raises(InputError, match=r"has no X; say where the values lie with ingest\.matrix: counts, spliced\.$"):
        open_raw(data)
    with open_raw(data, "counts") as raw:
        assert raw.n_cells == 300


@pytest.mark.parametrize("name", ["h5ad", "zarr v3", "memory"])
def test_without_any_matrix_the_message_says_so(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    data = FORMATS[name](ad.AnnData(obs=tiny_adata.obs, var=tiny_adata.var), tmp_path)
    with pytest.raises(InputError, match=r"has no X; it holds no matrix at all\.$"):
        open_raw(data)


@pytest.mark.parametrize("name", ["h5ad", "zarr v3", "memory"])
def test_a_missing_layer_lists_the_known_ones(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.layers["counts"] = tiny_adata.X
    data = FORMATS[name](tiny_adata, tmp_path)
    with pytest.raises(InputError, match=r"has no layer 'count' \(ingest\.matrix\); known are X, counts\.$"):
        open_raw(data, "count")
    with pytest.raises(InputError, match=r"has no raw \(ingest\.matrix\); known are X, counts\.$"):
        open_raw(data, "raw")


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
@pytest.mark.parametrize("name", ["h5ad", "zarr v3", "memory"])
def test_duplicate_genes_are_named(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.var_names = ["MALAT1", "ACTB", "MALAT1", "ACTB", "ACTB", *tiny_adata.var_names[5:]]
    data = FORMATS[name](tiny_adata, tmp_path)
    with pytest.raises(InputError, match=r"gene names must be unique, these are not: MALAT1, ACTB; call"):
        open_raw(data)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("uint16", "uint16"), ("int64", "int64"), ("float64", "float64"), (">f4", "float32")],
)
def test_values_keep_their_type(dtype: str, expected: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    wanted = tiny_adata.X.toarray().astype(dtype)
    tiny_adata.X = wanted
    tiny_adata.write_h5ad(tmp_path / "a.h5ad")
    with open_raw(tmp_path / "a.h5ad") as raw:
        assert raw.dtype == np.dtype(expected)
        assert raw.read_block(0, 9).dtype == np.dtype(expected)
        np.testing.assert_array_equal(dense(raw), wanted)


def test_half_floats_are_widened() -> None:
    adata = ad.AnnData(np.arange(12, dtype=np.float16).reshape(3, 4))
    assert open_raw(adata).read_block(0, 3).dtype == np.float32


def test_what_is_no_number_is_refused(tiny_adata: ad.AnnData) -> None:
    tiny_adata.layers["phase"] = tiny_adata.X.toarray().astype(np.complex64)
    with pytest.raises(InputError, match="phase holds values of type complex64; expected real numbers"):
        open_raw(tiny_adata, "phase")


@pytest.mark.parametrize("data", [3, np.zeros((3, 4)), pd.DataFrame({"a": [1]})])
def test_other_objects_are_refused(data: Any) -> None:
    with pytest.raises(
        InputError, match=f"cannot read cells from a {type(data).__name__}; expected a path or an AnnData"
    ):
        open_raw(data)


def test_an_unsorted_block_comes_sorted_and_leaves_the_input_alone() -> None:
    matrix = sparse.csr_matrix(
        (np.array([1, 2, 3], np.float32), np.array([2, 0, 1], np.int32), np.array([0, 2, 3], np.int32)), shape=(2, 3)
    )
    block = open_raw(ad.AnnData(matrix)).read_block(0, 2)
    assert block.has_canonical_format
    assert block.indices.tolist() == [0, 2, 1]
    np.testing.assert_array_equal(block.toarray(), [[2, 0, 1], [0, 3, 0]])
    assert matrix.indices.tolist() == [2, 0, 1]


def test_threads_read_what_one_reader_reads(tiny_atlas: Path) -> None:
    expected = ad.read_h5ad(tiny_atlas).X.toarray()
    wrong: list[int] = []
    with open_raw(tiny_atlas) as raw:

        def read(first: int) -> None:
            for start in range(first, 300, 4):
                if not np.array_equal(raw.read_block(start, start + 1).toarray(), expected[start : start + 1]):
                    wrong.append(start)

        threads = [threading.Thread(target=read, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_values_are_read_when_they_are_asked_for(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.write_h5ad(tmp_path / "a.h5ad")
    raw = open_raw(tmp_path / "a.h5ad")
    raw.close()
    with pytest.raises(InputError, match="cells 0 to 1 cannot be read"):
        raw.read_block(0, 1)
    assert list(raw.obs.index) == list(tiny_adata.obs_names)


@pytest.mark.parametrize("name", ["h5ad", "zarr v3"])
def test_obs_is_read_without_a_matrix(name: str, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = FORMATS[name](ad.AnnData(obs=tiny_adata.obs), tmp_path)
    pd.testing.assert_frame_equal(read_obs(path), tiny_adata.obs, check_names=False)


@pytest.mark.parametrize("write", ["memory", "h5ad", "zarr v3"])
@pytest.mark.parametrize("name", ["X", "raw"])
def test_a_layer_may_have_the_name_of_another_matrix(
    tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, write: str
) -> None:
    expected = tiny_adata.X.toarray()
    tiny_adata.layers[name] = tiny_adata.X * 2
    if name == "raw":
        tiny_adata.raw = tiny_adata.copy()
    both = FORMATS[write](tiny_adata.copy(), tmp_path)
    with open_raw(both, name) as raw:
        np.testing.assert_array_equal(dense(raw), expected)
    assert f"there is a layer {name!r}, too; adata.{'raw.X' if name == 'raw' else 'X'} is read" in caplog.text
    caplog.clear()
    if name == "raw":
        tiny_adata.raw = None
    else:
        tiny_adata.X = None
    (tmp_path / "alone").mkdir()
    alone = FORMATS[write](tiny_adata, tmp_path / "alone")
    with open_raw(alone, name) as raw:
        np.testing.assert_array_equal(dense(raw), 2 * expected)
        assert raw.n_genes == 200
    assert caplog.text == ""


def test_names_and_columns_that_were_written_as_bytes_are_text(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = as_h5ad(tiny_adata, tmp_path)
    with h5py.File(path, "r+") as file:
        for place in ("obs/_index", "obs/depth", "var/_index"):
            n = len(file[place])
            del file[place]
            file[place] = np.array([f"n{at}" for at in range(n)], dtype="S8")
            file[place].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    ingest(path, tmp_path / "store", IngestConfig(n_genes=30, shuffle=False))
    found = ad.read_zarr(tmp_path / "store")
    assert list(found.obs_names) == list(found.obs["depth"]) == [f"n{at}" for at in range(300)]
    assert set(found.var_names) <= {f"n{at}" for at in range(200)}


def test_a_recipe_opens_the_same_input_in_another_process(tiny_atlas: Path) -> None:
    with open_raw(tiny_atlas) as raw:
        assert raw.recipe is not None
        recipe = pickle.loads(pickle.dumps(raw.recipe.stamped()))
        with recipe.open() as again:
            assert again.gene_names == raw.gene_names
            assert (again.read_block(3, 9) != raw.read_block(3, 9)).nnz == 0


def test_values_in_memory_have_no_recipe(tiny_adata: ad.AnnData) -> None:
    assert open_raw(tiny_adata).recipe is None


@pytest.mark.parametrize("change", ["touched", "longer", "gone"])
def test_a_recipe_refuses_a_file_that_was_changed(tiny_atlas: Path, tmp_path: Path, change: str) -> None:
    path = Path(shutil.copy(tiny_atlas, tmp_path / "a.h5ad"))
    with open_raw(path) as raw:
        assert raw.recipe is not None
        recipe = raw.recipe.stamped()
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "longer":
        before = path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=(before, before))
    else:
        path.unlink()
    with pytest.raises(InputError, match=r"a\.h5ad (was changed|cannot be seen)"):
        recipe.open()


def test_a_recipe_sees_a_changed_file_inside_a_folder(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_zarr(tiny_adata, path)
    with open_raw(path) as raw:
        assert raw.recipe is not None
        recipe = raw.recipe.stamped()
    recipe.open().close()
    os.utime(next(file for file in path.rglob("*") if file.is_file()), ns=(1, 1))
    with pytest.raises(InputError, match="was changed"):
        recipe.open()
