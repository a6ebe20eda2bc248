"""Files of other kinds, and headers that promise what cannot be: one sentence that helps, no crash, no memory."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scamac_scale.errors import InputError
from scamac_scale.ingestion.open import open_raw, read_obs
from scamac_scale.ingestion.orientation import warn_of_droplets
from scamac_scale.inspection import inspect
from tests.support.formats import write_tenx, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def cells() -> ad.AnnData:
    values = sparse.csr_matrix(np.random.default_rng(1).poisson(1, size=(30, 20)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical(["A", "B"] * 15), "depth": range(30)}, index=[f"c{i}" for i in range(30)]
    )
    return ad.AnnData(values, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(20)]))


@pytest.fixture
def path(cells: ad.AnnData, tmp_path: Path) -> Path:
    cells.write_h5ad(tmp_path / "a.h5ad")
    return tmp_path / "a.h5ad"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.h5ad", b"", "is empty: it was never written, or never arrived"),
        ("a.h5ad", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of git-lfs.*git lfs pull"),
        ("a.h5ad", b"\n <!DOCTYPE html><html><body>Sign in</body></html>", "a web page .*download it again"),
        ("a.h5ad", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a message of a server"),
        ("a.h5ad.gz", gzip.compress(b"x", mtime=0), "compressed with gzip: gunzip it first"),
        ("a.zarr.zip", b"PK\x03\x04rest", "a zip archive: unpack it first"),
        ("a.rds", gzip.compress(b"RDX3", mtime=0), "an R object.*convert it there to .h5ad"),
        ("a.csv", b"cell,g1,g2\nc1,0,1\n", "a table of text: read it with anndata.io.read_csv"),
        ("a.h5ad", b"cell,g1,g2\nc1,0,1\n", "text: if it is a table"),
        (
            "a.h5ad",
            b"%%MatrixMarket matrix coordinate integer general\n",
            "a Matrix Market file: name it .mtx, with its names",
        ),
        ("a.tar", b"a" * 257 + b"ustar", "a tar archive"),
        ("a.pkl", b"\x80\x04\x95\0\0", "a pickle of Python, which can run code"),
        ("a.h5ad", b"\x89HDF\r\n\x1a\n" + bytes(90), "cannot be opened as HDF5 .*Copy or write it again"),
    ],
)
def test_a_file_of_another_kind_is_named(name: str, content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for look in (open_raw, read_obs, inspect):
        with pytest.raises(InputError, match=said):
            look(tmp_path / name)


def in_hdf5(*names: str) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        for name in names:
            file[name] = np.zeros(3)

    return fill


@pytest.mark.parametrize(
    ("fill", "said"),
    [
        (in_hdf5("mod/rna/X", "mod/adt/X", "obs/_index", "var/_index"), r"a MuData .*\(adt, rna\): write one"),
        (in_hdf5("barcode_idx", "feature_idx", "umi", "count"), "molecule_info.h5.*filtered_feature_bc_matrix.h5"),
        (in_hdf5("assays/RNA/counts", "cell.names"), "an h5Seurat file.*Convert"),
    ],
)
def test_hdf5_of_another_kind_is_named(fill: Callable[[Any], None], said: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        fill(file)
    with pytest.raises(InputError, match=said):
        open_raw(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["GSM1_x_matrix.mtx.gz", "GSM1_x_barcodes.tsv.gz"], r"GSM1_x_matrix\.mtx\.gz has no names of its genes"),
        (["matrix.mtx", "genes.tsv"], r"matrix\.mtx has no names of its cells"),
        (["matrix.mtx", "genes.tsv", "barcodes.tsv"], r"matrix\.mtx does not begin as a Matrix Market file"),
        (
            ["Gene/raw/matrix.mtx", "GeneFull/raw/matrix.mtx"],
            "holds 2 folders of Matrix Market files; give one of them",
        ),
        (
            ["raw_feature_bc_matrix.h5", "filtered_feature_bc_matrix.h5"],
            "It holds filtered_feature_bc_matrix.h5, which",
        ),
        (["one.h5ad"], "It holds one.h5ad: give that"),
    ],
)
def test_a_folder_of_other_files_gets_a_hint(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "log").symlink_to("/nowhere")  # of any folder nothing is asked
    with pytest.raises(InputError, match=said):
        open_raw(tmp_path)


def test_a_file_that_another_program_writes_says_so(path: Path) -> None:
    code = f"import h5py, sys; f = h5py.File({str(path)!r}, 'a'); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match=r"another program has it open for writing.*HDF5_USE_FILE_LOCKING=FALSE"):
            open_raw(path)
        assert holder.stdin is not None
        holder.stdin.close()


def test_a_filter_that_is_not_installed_is_named(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        values = file["X/data"][:]
        del file["X/data"]
        settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        settings.set_chunk((values.size,))
        settings.set_filter(32026, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple(values.shape)
        made = h5py.h5d.create(file["X"].id, b"data", h5py.h5t.py_create(values.dtype), space, settings)
        made.write_direct_chunk((0,), b"packed elsewhere", 0)
    with pytest.raises(
        InputError, match=r"X/data is compressed with HDF5 filter 32026 \(blosc2\).*pip install hdf5plugin"
    ):
        open_raw(path)


def test_pipes_and_links_are_refused_before_anything_is_opened(cells: ad.AnnData, tmp_path: Path) -> None:
    path = write_zarr(cells, tmp_path / "a.zarr")
    (path / "zarr.json").rename(tmp_path / "elsewhere.json")
    os.mkfifo(path / "zarr.json")
    for look in (open_raw, read_obs, inspect):
        with pytest.raises(InputError, match=r"named pipe|none of"):
            look(path)
    (path / "zarr.json").unlink()
    (path / "zarr.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(InputError, match=r"zarr\.json is a link that leads out of the folder"):
        open_raw(path)
    os.mkfifo(tmp_path / "b.h5ad")
    for look in (open_raw, read_obs, inspect):
        with pytest.raises(InputError, match=r"b\.h5ad is a named pipe \(FIFO\), which is not opened"):
            look(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match="is a device, which is not opened"):
        open_raw("/dev/zero")


def change(file: Any, name: str, value: Any) -> None:
    noted = dict(file[name].attrs) if name in file else {}
    if name in file:
        del file[name]
    file[name] = value
    if not isinstance(value, h5py.SoftLink) and hasattr(file[name], "attrs"):
        file[name].attrs.update(noted)


def note(where: str, key: str, value: Any) -> Callable[[Any], None]:
    return lambda file: file[where].attrs.__setitem__(key, value)


def part(name: str, value: Any) -> Callable[[Any], None]:
    return lambda file: change(file, name, value)


def group(name: str) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        del file[name]
        file.create_group(name)

    return make


WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "later table": (note("obs", "encoding-version", "9.9"), r"obs is of an encoding that is not known here"),
    "other table": (note("obs", "encoding-type", "dict"), "obs is dict, expected a table"),
    "later column": (note("obs/kind", "encoding-version", "9.9"), "obs/kind is of an encoding that is not known"),
    "unknown column": (note("obs/kind", "encoding-type", "cube"), "obs/kind is of an encoding that is not known"),
    "later matrix": (note("X", "encoding-version", "99.0"), "X is of an encoding that is not known here"),
    "kind of the matrix as numbers": (note("X", "encoding-type", [1, 2]), "X is stored as"),
    "group for values": (group("X/data"), "X/data is a group where an array is expected"),
    "group for names": (group("var/_index"), "var/_index is a group where an array is expected"),
    "array for a group": (part("X", np.zeros(3)), "X is of an encoding that is not known here"),
    "type for a column": (part("obs/depth", np.dtype("f8")), "obs/depth is a named type"),
    "type for the table": (part("obs", np.dtype("f8")), "obs is a named type"),
    "type for the matrix": (part("X", np.dtype("f8")), "X is a named type"),
    "type for values": (part("X/data", np.dtype("f8")), "X/data is a named type where an array is expected"),
    "circle of links": (part("obs/depth", h5py.SoftLink("/obs/depth")), "obs"),
    "link to nothing": (part("X/data", h5py.SoftLink("/nowhere")), "X"),
    "negative shape": (note("X", "shape", [-1, -1]), "X has no shape of two numbers"),
    "shape of text": (note("X", "shape", ["30", "20"]), "X has no shape of two numbers"),
    "shape of NaN": (note("X", "shape", [np.nan, np.nan]), "X has no shape of two numbers"),
    "shape of three": (note("X", "shape", [30, 20, 1]), "X has no shape of two numbers"),
    "cells without end": (note("X", "shape", np.array([2**60, 20])), r"indptr has shape \(31,\)"),
    "genes without end": (note("X", "shape", np.array([30, 2**60])), "X has .* columns, but 20 genes are named"),
    "names of columns": (note("obs", "column-order", ["kind", "gone"]), "names a column 'gone' that is not there"),
    "column twice": (note("obs", "column-order", ["kind", "kind"]), "names the column 'kind' twice"),
    "no name of the names": (note("obs", "_index", 7), "obs does not say which of its parts are the names"),
    "codes beyond": (part("obs/kind/codes", np.full(30, 9, np.int8)), "obs/kind"),
    "short column": (part("obs/depth", np.arange(29)), r"obs/depth has shape \(29,\) for 30 names"),
    "cube of a column": (part("obs/depth", np.zeros((30, 2, 2))), r"obs/depth has shape \(30, 2, 2\) for 30 names"),
    "names in two columns": (part("var/_index", np.full((20, 2), b"a")), r"var/_index has shape \(20, 2\)"),
    "empty space": (part("X/data", h5py.Empty("f4")), "X"),
    "records": (part("X/data", np.zeros(30, dtype=[("a", "f4")])), "X"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_in_the_wrong_place_is_one_message(name: str, path: Path) -> None:
    do, said = WRONG[name]
    with h5py.File(path, "r+") as file:
        do(file)
    with pytest.raises(InputError, match=said):
        open_raw(path)


def test_hdf5_arrays_without_end_take_no_memory(path: Path) -> None:
    def endless(file: Any, name: str, shape: tuple[int, ...], kind: Any = "f4") -> None:
        noted = dict(file[name].attrs)
        del file[name]
        file.create_dataset(name, shape, kind, chunks=(2**16,) * len(shape)).attrs.update(noted)

    for name, kind in (("X/indptr", "i8"), ("X/data", "f4"), ("obs/_index", h5py.string_dtype()), ("obs/depth", "f8")):
        copy = path.with_name("b.h5ad")
        copy.write_bytes(path.read_bytes())
        with h5py.File(copy, "r+") as file:
            endless(file, name, (2**40 + 1,), kind)
            if name == "X/indptr":
                file["X"].attrs["shape"] = np.array([2**40, 20])
        with pytest.raises(InputError, match=r"b\.h5ad: "):
            open_raw(copy)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_dataset("X", (30, 2**40), "f4", chunks=(1, 2**16))
    with pytest.raises(InputError, match=r"columns, but 20 genes are named|chunks"):
        open_raw(path)


@pytest.mark.parametrize("shape", [[10**30, 20], [-5, 20], ["a", "b"], [float("nan"), 20], {"a": 1}, None, [[1, 2]]])
def test_a_zarr_header_may_hold_anything(shape: Any, cells: ad.AnnData, tmp_path: Path) -> None:
    path = write_zarr(cells, tmp_path / "a.zarr")
    for name in ("X/zarr.json", "zarr.json"):
        about = json.loads((path / name).read_text())
        about.pop("consolidated_metadata", None)
        if name == "X/zarr.json":
            about["attributes"]["shape"] = shape
        (path / name).write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"a\.zarr: X"):
        open_raw(path)


def test_text_that_unpacks_to_gigabytes_is_not_unpacked(cells: ad.AnnData, tmp_path: Path) -> None:
    path = write_zarr(cells, tmp_path / "a.zarr")
    chunk = path / "var/_index/c/0"
    chunk.write_bytes(b"\x28\xb5\x2f\xfd" + bytes([0b11100000]) + (3 * 2**30).to_bytes(8, "little") + bytes(20))
    with pytest.raises(InputError, match=r"var/_index promises 3,221,225,472 bytes of text for 20 names"):
        open_raw(path)


def test_a_table_of_before_anndata_0_7_is_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("obs", "var"):
            del file[name]
        obs = np.zeros(30, dtype=[("index", "S4"), ("kind", "i1"), ("depth", "f4")])
        obs["index"], obs["kind"], obs["depth"] = [f"c{i}" for i in range(30)], [0, 1] * 15, range(30)
        file["obs"] = obs
        file["var"] = np.array([(f"g{i}",) for i in range(20)], dtype=[("index", "S4")])
        file["uns/kind_categories"] = np.array([b"A", b"B"])
    with open_raw(path) as raw:
        assert list(raw.obs["kind"]) == ["A", "B"] * 15
        assert (raw.obs.index[29], raw.gene_names[19]) == ("c29", "g19")


def test_a_table_of_anndata_0_7_may_have_one_category_and_one_cell(tmp_path: Path) -> None:
    text = h5py.string_dtype()
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        obs = file.create_group("obs")
        order = np.array(["kind", "depth"], dtype=text)
        obs.attrs.update(
            {"encoding-type": "dataframe", "encoding-version": "0.1.0", "_index": "_index", "column-order": order}
        )
        obs["_index"], obs["__categories/kind"] = np.array(["c0"], dtype=text), np.array([b"A"])
        obs["kind"], obs["depth"] = np.zeros(1, np.int8), np.array([3.0])
        obs["kind"].attrs["categories"] = obs["__categories/kind"].ref
        file.create_group("var")
    found = read_obs(tmp_path / "a.h5ad")
    assert (list(found.index), list(found["kind"]), list(found["depth"])) == (["c0"], ["A"], [3.0])


def test_raw_of_before_anndata_0_7_is_read(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.copy("X", "raw.X")
        file["raw.var"] = np.array([(f"r{i}",) for i in range(20)], dtype=[("index", "S4")])
    with open_raw(path, "raw") as raw:
        assert (raw.n_cells, raw.gene_names[19]) == (30, "r19")


def test_attributes_of_fixed_length_are_read(path: Path) -> None:
    """As Julia's HDF5.jl writes text."""

    def fix(_: str, element: Any) -> None:
        for key, value in dict(element.attrs).items():
            if isinstance(value, str):
                element.attrs[key] = np.bytes_(value)
            elif key == "column-order" and len(value):
                element.attrs[key] = np.array(value, dtype="S")

    expected = read_obs(path)
    with h5py.File(path, "r+") as file:
        fix("", file)
        file.visititems(fix)
    pd.testing.assert_frame_equal(read_obs(path), expected)
    with open_raw(path) as raw:
        assert raw.gene_names[19] == "g19"


def test_genes_in_rows_are_refused(cells: ad.AnnData, tmp_path: Path) -> None:
    barcodes = ["".join(row) + "-1" for row in np.random.default_rng(2).choice(list("ACGT"), (30, 16))]
    symbols = ["ACTB", "MT-CO1", "RPL3", "RPS27A", "MALAT1", "B2M", *(f"AC{i}.1" for i in range(14))]
    for rows in ([f"ENSG{i:011d}" for i in range(20)], [f"ENSMUSG{i:011d}.2" for i in range(20)], symbols):
        turned = cells.T.copy()
        turned.obs_names, turned.var_names = rows, barcodes
        with pytest.raises(InputError, match=r"genes seem to be in rows: its 20 cells have names like .*adata\.T"):
            _ = open_raw(turned).obs
        as_is = turned.T.copy()
        assert len(open_raw(as_is).obs) == 30
    named_alike = cells.copy()  # one knock-out a cell, named by its gene
    named_alike.obs_names = [f"ENSG{i:011d}" for i in range(30)]
    named_alike.var_names = [f"ENSG{i:011d}" for i in range(20)]
    assert len(open_raw(named_alike).obs) == 30


def named(rows: list[str], columns: list[str]) -> ad.AnnData:
    return ad.AnnData(
        np.ones((len(rows), len(columns)), np.float32), pd.DataFrame(index=rows), pd.DataFrame(index=columns)
    )


LETTERS = np.random.default_rng(3).choice(list("ACGT"), (40, 20))
BARCODES, GUIDES = ["".join(row[:16]) + "-1" for row in LETTERS], ["".join(row) for row in LETTERS]
PERTURBED = ["RPL3", "RPS27A", "EEF2", "HSPA5", "HSPA8", "GATA1", "KLF1", "MYC", "BRCA1", "TP53", "HLA-DRA", "ZNF71"]
ENTREZ = [str(7 * i * i + 90) for i in range(40)]


@pytest.mark.parametrize(
    ("rows", "columns", "outcome"),
    [
        ([f"ENSG{i:011d}" for i in range(40)], BARCODES, "refused"),
        ([f"ENSG{i:011d}" for i in range(40)], [f"c{i}" for i in range(30)], "refused"),
        ([f"ENSG{i:011d}" for i in range(40)], [str(i) for i in range(30)], "refused"),
        (PERTURBED, BARCODES, "refused"),
        (PERTURBED[5:], BARCODES, "refused"),  # none that every table has
        (PERTURBED, [f"c{i}" for i in range(30)], "refused"),
        ([f"cell{i}" for i in range(30)], GUIDES, "told"),
        ([f"P{i % 4}{'ABCDEFGH'[i % 8]}{i}" for i in range(96)], GUIDES, "told"),
        (PERTURBED, ENTREZ, "told"),
        ([f"ENSG{i:011d}" for i in range(40)], ENTREZ, "told"),
        ([*PERTURBED[:6], *(f"donor_{i}_of_many" for i in range(30))], [f"p{i}" for i in range(9)], ""),
        (PERTURBED, ["GATA2", "MYCN", "KLF4", "SOX2", "NANOG", "LIN28A"], ""),
        (BARCODES, GUIDES, ""),
        (BARCODES, PERTURBED, ""),
        ([f"cell{i}" for i in range(30)], ENTREZ, ""),
        ([], GUIDES, ""),
    ],
)
def test_only_tables_that_are_surely_turned_are_refused(
    rows: list[str], columns: list[str], outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    raw = open_raw(named(rows, columns))
    if outcome == "refused":
        with pytest.raises(InputError, match=r"genes seem to be in rows: .*adata\.T"):
            _ = raw.obs
        return
    assert len(raw.obs) == len(rows)
    assert ("genes seem to be in rows" in caplog.text) == (outcome == "told")


def test_a_file_without_cells_is_told_so(tmp_path: Path) -> None:
    named([], ["g1", "g2"]).write_h5ad(tmp_path / "a.h5ad")
    assert inspect(tmp_path / "a.h5ad")["notes"] == ["there are no cells: write the file again, with them."]


def test_ten_x_parts_are_checked(cells: ad.AnnData, tmp_path: Path) -> None:
    for name, said in (("data", "data is a group"), ("shape", "shape is a group"), ("barcodes", "barcodes is a group")):
        path = write_tenx(cells, tmp_path / f"{name}.h5")
        with h5py.File(path, "r+") as file:
            group(f"matrix/{name}")(file)
        with pytest.raises(InputError, match=f"matrix/{said} where an array is expected"):
            open_raw(path)


def test_empty_droplets_are_told(caplog: pytest.LogCaptureFixture) -> None:
    totals = np.r_[np.full(400, 3.0), np.full(90, 2000.0)]
    warn_of_droplets(totals, "counts", "raw.h5")
    assert "raw.h5: 400 of 490 cells (82 %) have fewer than 10 counts: these are empty droplets" in caplog.text
    assert "filtered_feature_bc_matrix.h5" in caplog.text
    caplog.clear()
    warn_of_droplets(totals, "log", "raw.h5")
    warn_of_droplets(totals[350:], "counts", "raw.h5")
    warn_of_droplets(totals[:20], "counts", "raw.h5")
    assert caplog.text == "" or "raw.h5" not in caplog.text
