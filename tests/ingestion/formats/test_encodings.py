"""Tables and values in all the ways in which anndata 0.7 to 0.12 wrote them, and what no table or matrix should hold."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.open import open_raw, read_obs
from tests.support.formats import write_zarr

if TYPE_CHECKING:
    from pathlib import Path

N, G = 12, 7
VALUES = sparse.csr_matrix(np.random.default_rng(0).poisson(1, (N, G)).astype(np.float32))
NAMES = [f"c{i}" for i in range(N)]
COLUMNS: dict[str, Any] = {
    "text": np.array([f"t{i}" for i in range(N)], dtype=object),
    "kind": pd.Categorical(["a", "b", None] * 4),
    "order": pd.Categorical(["low", "high"] * 6, categories=["low", "high"], ordered=True),
    "years": pd.Categorical([2001, 2002] * 6),
    "int": np.arange(N),
    "flag": np.arange(N) % 2 == 0,
    "float": np.linspace(0, 1, N).astype(np.float32),
    "nullable int": pd.array([1, None] * 6, dtype="Int32"),
    "nullable flag": pd.array([True, None] * 6, dtype="boolean"),
    "nullable text": pd.array(["x", None] * 6, dtype="string"),
}


def adata(**columns: Any) -> ad.AnnData:
    return ad.AnnData(VALUES, pd.DataFrame(columns, index=NAMES), pd.DataFrame(index=[f"g{i}" for i in range(G)]))


@pytest.mark.parametrize("form", ["h5ad", "zarr v2", "zarr v3"])
def test_every_kind_of_column_is_what_anndata_reads(form: str, tmp_path: Path) -> None:
    data = adata(**COLUMNS)
    with ad.settings.override(allow_write_nullable_strings=True):
        if form == "h5ad":
            path = tmp_path / "a.h5ad"
            data.write_h5ad(path)
            expected = ad.read_h5ad(path).obs
        else:
            path = write_zarr(data, tmp_path / "a.zarr", int(form[-1]))
            expected = ad.read_zarr(path).obs
    pd.testing.assert_frame_equal(read_obs(path), expected, check_names=False)


def write_seven(path: Path) -> None:
    """As anndata 0.7 wrote it: codes in place, categories in a group of their own, named by a reference."""
    text = h5py.string_dtype()
    with h5py.File(path, "w") as file:
        x = file.create_group("X")
        x.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": VALUES.shape})
        x["data"], x["indices"], x["indptr"] = VALUES.data, VALUES.indices, VALUES.indptr
        for name, labels in (("obs", NAMES), ("var", [f"g{i}" for i in range(G)])):
            table = file.create_group(name)
            order = np.array(["kind", "level", "text", "int"] if name == "obs" else [], dtype=text)
            table.attrs.update({"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "_index"})
            table.attrs["column-order"] = order if len(order) else np.zeros(0)
            table["_index"] = np.array(labels, dtype=text)
        obs = file["obs"]
        obs["int"], obs["text"] = np.arange(N), np.array(COLUMNS["text"], dtype=text)
        for name, codes, categories in (
            ("kind", np.array([0, 1, -1] * 4, np.int8), np.array(["a", "b"], dtype=text)),
            ("level", np.array([1, 0] * 6, np.int8), np.array([10, 20])),
        ):
            obs[name], obs[f"__categories/{name}"] = codes, categories
            obs[f"__categories/{name}"].attrs["ordered"] = name == "level"
            obs[name].attrs["categories"] = obs[f"__categories/{name}"].ref


def test_a_file_of_anndata_seven(tmp_path: Path) -> None:
    write_seven(tmp_path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = ad.read_h5ad(tmp_path / "a.h5ad")
    with open_raw(tmp_path / "a.h5ad") as raw:
        assert list(raw.obs.columns) == ["kind", "level", "text", "int"]
        for column in raw.obs:
            assert list(raw.obs[column].astype(str)) == list(expected.obs[column].astype(str))
        assert raw.obs["level"].cat.ordered
        np.testing.assert_array_equal(raw.read_block(0, N).toarray(), VALUES.toarray())


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_what_is_no_column_is_left_out_with_a_word(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = adata(kind=COLUMNS["kind"], number=np.arange(N))
    path = tmp_path / f"a.{form}"
    data.write_h5ad(path) if form == "h5ad" else write_zarr(data, path)
    group = h5py.File(path, "r+") if form == "h5ad" else zarr.open_group(str(path), mode="r+", use_consolidated=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_elem(group["obs"], "pair", np.zeros((N, 2)))
        write_elem(group["obs"], "counts", sparse.csr_matrix((N, 3)))
        write_elem(group["obs"], "table", pd.DataFrame({"x": np.arange(N)}, index=NAMES))
    group["obs"].attrs["column-order"] = ["kind", "pair", "number", "counts", "table"]
    if form == "h5ad":
        group.close()
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(str(path))
    found = read_obs(path)
    assert list(found.columns) == ["kind", "number"]
    assert list(found["number"]) == list(range(N))
    said = "3 columns are left out, they hold no value for each row: pair (2 dimensions), counts (csr_matrix), table (dataframe)"
    assert said in caplog.text


REFUSED = {
    "bool": (np.ones((N, G), bool), "values of type bool, which tell where genes were found, not how much"),
    "text": (np.full((N, G), "1", dtype="S1"), r"values of type \|S1; expected real numbers"),
    "complex": (np.ones((N, G), np.complex64), "values of type complex64; expected real numbers"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("is_sparse", [False, True])
def test_values_that_are_no_amounts_are_refused(kind: str, is_sparse: bool, tmp_path: Path) -> None:
    values, said = REFUSED[kind]
    adata().write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        if is_sparse:
            n_stored = len(file["X/data"])
            del file["X/data"]
            file["X/data"] = np.resize(values, n_stored)
        else:
            del file["X"]
            file["X"] = values
    with pytest.raises(InputError, match=said):
        open_raw(tmp_path / "a.h5ad")


@pytest.mark.parametrize("kind", ["M8[s]", "m8[s]", "O"])
def test_times_and_objects_in_memory_are_refused(kind: str) -> None:
    data = adata()
    data.layers["odd"] = np.ones((N, G), "i8").astype(kind)
    with pytest.raises(InputError, match=r"odd holds values of type .*; expected real numbers"):
        open_raw(data, "odd")


@pytest.mark.parametrize("dtype", ["i8", "u8", "f8", "f2", ">i4", "i1"])
def test_wide_and_narrow_numbers_are_exact(dtype: str, tmp_path: Path) -> None:
    wanted = VALUES.toarray().astype(dtype)
    wanted[3, 3] = 100 if np.dtype(dtype).itemsize < 4 else 2**31 - 7
    for name, matrix in (("dense", wanted), ("csc", sparse.csc_matrix(wanted.astype("f8")))):
        path = tmp_path / f"{name}.h5ad"
        data = adata()
        data.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            del file["X"]
            if name == "dense":
                file["X"] = wanted
            else:
                write_elem(file, "X", matrix)
                del file["X/data"]
                file["X/data"] = matrix.data.astype(dtype)
        with open_raw(path) as raw:
            np.testing.assert_array_equal(raw.read_block(0, N).toarray().astype("f8"), wanted.astype("f8"))
