"""Files that are wrong: each gives one message that says what and where, and none crashes the interpreter."""

from __future__ import annotations

import shutil
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr

from scamac_scale.errors import InputError
from scamac_scale.ingestion.open import open_raw, read_obs
from tests.support.formats import write_tenx, write_zarr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def atlas(tiny_atlas: Path, tmp_path: Path) -> Path:
    return shutil.copy(tiny_atlas, tmp_path / "a.h5ad")


def replace(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    with h5py.File(path, "r+") as file:
        values = change(file[name][:])
        del file[name]
        file[name] = values


def put(at: int, value: Any) -> Callable[[Any], Any]:
    def change(values: Any) -> Any:
        values[at] = value
        return values

    return change


@pytest.mark.parametrize("read", [open_raw, read_obs])
def test_a_missing_path_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file or folder .*nowhere\.h5ad; expected an \.h5ad"):
        read(tmp_path / "nowhere.h5ad")


@pytest.mark.parametrize("read", [open_raw, read_obs])
def test_a_file_that_is_no_hdf5_is_refused(read: Callable[[Path], Any], tmp_path: Path) -> None:
    (tmp_path / "a.h5ad").write_text("gene,cell\n")
    with pytest.raises(
        InputError, match=r"a\.h5ad cannot be opened as HDF5 .*; expected a complete \.h5ad or 10x \.h5"
    ):
        read(tmp_path / "a.h5ad")


def test_a_truncated_file_is_refused(atlas: Path) -> None:
    atlas.write_bytes(atlas.read_bytes()[: atlas.stat().st_size // 2])
    with pytest.raises(InputError, match=r"cannot be opened as HDF5 \(.*truncated file"):
        open_raw(atlas)


def test_an_hdf5_file_of_another_kind_says_what_it_holds(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5ad", "w") as file:
        file["counts"] = np.zeros((3, 4))
    with pytest.raises(InputError, match=r"is not an AnnData file: it has no obs and no var \(it holds counts\)"):
        open_raw(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "a") as file:
        file.create_group("obs")
    with pytest.raises(InputError, match=r"is not an AnnData file: it has no var \(it holds counts, obs\)"):
        open_raw(tmp_path / "a.h5ad")


def test_a_folder_that_is_no_zarr_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(InputError, match=r"a\.zarr is a folder, but not an AnnData zarr"):
        open_raw(tmp_path / "a.zarr")


def test_a_folder_of_matrix_market_files_without_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "matrix.mtx.gz").touch()
    with pytest.raises(InputError, match="has no names of its genes"):
        open_raw(tmp_path)


def test_a_zarr_that_is_no_anndata_is_refused(tmp_path: Path) -> None:
    zarr.open_group(str(tmp_path / "a.zarr"), mode="w").create_array("x", shape=(3,), dtype="f4")
    with pytest.raises(InputError, match=r"is not an AnnData file: it has no obs and no var \(it holds x\)"):
        open_raw(tmp_path / "a.zarr")
    zarr.create_array(str(tmp_path / "b.zarr"), shape=(3,), dtype="f4")
    with pytest.raises(InputError, match=r"b\.zarr is a folder, but not an AnnData zarr"):
        open_raw(tmp_path / "b.zarr")


@pytest.mark.parametrize(
    ("wrong", "message"), [(200, "gene number 200"), (2**31 - 1, "gene number"), (-1, "gene number -1")]
)
def test_a_gene_index_out_of_range_is_refused(atlas: Path, wrong: int, message: str) -> None:
    with h5py.File(atlas) as file:
        at = int(file["X/indptr"][150]) + 3
    replace(atlas, "X/indices", put(at, wrong))
    with open_raw(atlas) as raw:
        raw.read_block(0, 150)
        with pytest.raises(InputError, match=rf"cell 150 has a value for {message}.*there are 200 genes"):
            raw.read_block(100, 200)


def test_a_gene_stored_twice_in_a_cell_is_summed_and_told_once(atlas: Path, caplog: pytest.LogCaptureFixture) -> None:
    def repeat(indices: Any) -> Any:
        indices[1] = indices[0]
        return indices

    replace(atlas, "X/indices", repeat)
    expected = ad.read_h5ad(atlas).X.toarray()
    with open_raw(atlas) as raw:
        for start in (0, 0, 100):
            np.testing.assert_array_equal(raw.read_block(start, start + 100).toarray(), expected[start : start + 100])
    assert caplog.text.count("1 values are second ones for a gene of the same cell") == 1


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("X/indptr", put(7, 10**6), r"indptr must rise from 0 to the \d+ stored values.* and falls in between"),
        ("X/indptr", put(0, 3), "it goes from 3 to"),
        ("X/indptr", put(300, 5), "it goes from 0 to 5"),
        ("X/indptr", lambda values: values[:-1], r"indptr has shape \(300,\), expected \(301,\) for 300 cells"),
        ("X/indptr", lambda values: values.astype(float), "indptr is float64"),
        ("X/data", lambda values: values[:-1], "expected one index for each value"),
        ("X/data", lambda values: values.astype("S"), "expected real numbers"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_at_once(
    atlas: Path, name: str, change: Callable[[Any], Any], message: str
) -> None:
    replace(atlas, name, change)
    with pytest.raises(InputError, match=message):
        open_raw(atlas)


def test_indices_that_are_no_whole_numbers_are_refused(atlas: Path) -> None:
    replace(atlas, "X/indices", lambda values: values.astype(float))
    with open_raw(atlas) as raw, pytest.raises(InputError, match="indices are float64, expected whole numbers"):
        raw.read_block(0, 1)


@pytest.mark.parametrize("part", ["indptr", "indices", "data"])
def test_a_missing_part_is_named(atlas: Path, part: str) -> None:
    with h5py.File(atlas, "r+") as file:
        del file[f"X/{part}"]
    with pytest.raises(InputError, match=f"a.h5ad: X has no part {part!r}; the file is damaged"):
        open_raw(atlas)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        (
            "encoding-type",
            "awkward-array",
            "X is stored as 'awkward-array'; expected a dense array, or a CSR or CSC matrix",
        ),
        ("shape", [300], "X has no shape of two numbers"),
        ("shape", [300, 199], "X has 199 columns, but 200 genes are named"),
        ("shape", [10**15, 200], r"indptr has shape \(301,\)"),
    ],
)
def test_a_header_that_is_wrong_is_refused(atlas: Path, attribute: str, value: Any, message: str) -> None:
    with h5py.File(atlas, "r+") as file:
        file["X"].attrs[attribute] = value
    with pytest.raises(InputError, match=message):
        open_raw(atlas)


def test_a_matrix_of_three_dimensions_is_refused(atlas: Path) -> None:
    with h5py.File(atlas, "r+") as file:
        file["layers"]["cube"] = np.zeros((300, 200, 2))
    with pytest.raises(InputError, match="cube has 3 dimensions; expected cells by genes"):
        open_raw(atlas, "cube")


def test_obs_of_another_length_is_refused(atlas: Path, tiny_adata: ad.AnnData) -> None:
    with h5py.File(atlas, "r+") as file:
        del file["obs"]
        ad.io.write_elem(file, "obs", tiny_adata.obs.iloc[:299])
    with pytest.raises(InputError, match="obs names 299 cells, but X has 300"):
        open_raw(atlas)


def test_var_that_is_no_table_is_refused(atlas: Path) -> None:
    with h5py.File(atlas, "r+") as file:
        del file["var"]
        ad.io.write_elem(file, "var", {"names": np.arange(200)})
    with pytest.raises(InputError, match="var is dict, expected a table"):
        open_raw(atlas)


def test_a_damaged_chunk_names_the_cells(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "a.h5ad"
    tiny_adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        place = file["X/data"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + 20 : place.byte_offset + 60] = bytes(40)
    path.write_bytes(content)
    with open_raw(path) as raw, pytest.raises(InputError, match=r"a\.h5ad: cells 0 to 9 cannot be read .*damaged"):
        raw.read_block(0, 9)


def test_a_damaged_zarr_chunk_names_the_cells(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = write_zarr(tiny_adata, tmp_path / "a.zarr")
    for chunk in (path / "X/data/c").iterdir():
        chunk.write_bytes(chunk.read_bytes()[:10])
    with open_raw(path) as raw, pytest.raises(InputError, match=r"a\.zarr: cells 0 to 9 cannot be read .*damaged"):
        raw.read_block(0, 9)


@pytest.mark.parametrize("read", [open_raw, read_obs])
def test_links_to_other_files_are_refused(atlas: Path, read: Callable[[Path], Any], tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.ones(3)
    with h5py.File(atlas, "r+") as file:
        file["uns"]["leak"] = h5py.ExternalLink("other.h5", "/secret")
    with pytest.raises(InputError, match=r"/uns/leak is a link to another file, which is not followed"):
        read(atlas)


def test_virtual_datasets_are_refused(atlas: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["x"] = np.ones((300, 200))
    layout = h5py.VirtualLayout(shape=(300, 200), dtype=float)
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "x", shape=(300, 200))
    with h5py.File(atlas, "r+") as file:
        file["layers"].create_virtual_dataset("leak", layout)
    with pytest.raises(InputError, match="/layers/leak keeps its values in other files"):
        open_raw(atlas)


def test_datasets_stored_outside_are_refused(atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.bin").write_bytes(bytes(24))
    with h5py.File(atlas, "r+") as file:
        file["uns"].create_dataset("leak", (3,), "f8", external=[(str(tmp_path / "outside.bin"), 0, 24)])
    with pytest.raises(InputError, match="/uns/leak keeps its values in other files"):
        open_raw(atlas)


def test_links_inside_the_file_are_followed_and_circles_end(atlas: Path) -> None:
    with h5py.File(atlas, "r+") as file:
        file["layers"]["same"] = h5py.SoftLink("/X")
        file["uns"]["circle"] = file["uns"]
    with open_raw(atlas, "same") as raw:
        assert raw.n_cells == 300


def test_hard_links_in_a_column_do_not_multiply(atlas: Path) -> None:
    with h5py.File(atlas, "r+") as file:
        column = name = next(iter(file["obs"].attrs["column-order"]))
        del file["obs"][name]
        group = file["obs"].create_group(column)
        for _ in range(40):
            below = group.create_group("left")
            group["right"] = below
            group = below
        wide = file["obs"].create_group("wide")
        for i in range(100):
            wide[f"part{i}"] = file["obs/_index"]
    with pytest.raises(InputError, match=rf"obs/{column}/left/left is a group where an array is expected"):
        read_obs(atlas)
    with h5py.File(atlas, "r+") as file:
        file["obs"].attrs["column-order"] = ["wide"]
    with pytest.raises(InputError, match=r"obs/wide is a group of 100 parts"):
        read_obs(atlas)


class TestTenx:
    def test_names_that_repeat_are_made_unique_as_scanpy_does(
        self, tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        import scanpy as sc

        tiny_adata.var_names = ["A", "B", "A", "A", "A-1", *tiny_adata.var_names[5:]]
        path = write_tenx(tiny_adata, tmp_path / "a.h5")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that names repeat, and look alike when changed
            theirs = sc.read_10x_h5(path)
            theirs.var_names_make_unique()
        with caplog.at_level("INFO"), open_raw(path) as raw:
            assert raw.gene_names == tuple(theirs.var_names)
            assert list(raw.obs.index) == list(theirs.obs_names)
        assert "2 genes share a name and were made unique" in caplog.text

    def test_only_gene_expression_is_kept(
        self, tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kinds = ["Gene Expression"] * 200
        kinds[3] = kinds[100] = "Antibody Capture"
        path = write_tenx(tiny_adata, tmp_path / "a.h5", feature_types=kinds)
        is_kept = np.array(kinds) == "Gene Expression"
        with caplog.at_level("INFO"), open_raw(path) as raw:
            assert raw.gene_names == tuple(tiny_adata.var_names[is_kept])
            np.testing.assert_array_equal(raw.read_block(20, 50).toarray(), tiny_adata.X[20:50].toarray()[:, is_kept])
        assert "2 features that are not gene expression are left out" in caplog.text

    def test_features_without_a_type_are_genes(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            del file["matrix/features/feature_type"]
        with open_raw(path) as raw:
            assert raw.gene_names == tuple(tiny_adata.var_names)

    def test_no_gene_expression_is_refused(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5", feature_types=["Peaks"] * 200)
        with pytest.raises(InputError, match="holds no gene expression; none of its 200 features"):
            open_raw(path)

    def test_it_has_one_matrix_only(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5")
        with pytest.raises(InputError, match=r"10x file with a single matrix; ingest\.matrix='raw' must be X"):
            open_raw(path, "raw")

    @pytest.mark.parametrize("version", [2, 3])
    def test_of_two_genomes_both_are_read_or_one_that_is_named(
        self, version: int, tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        half = [tiny_adata[:, :120], tiny_adata[:, 120:]]
        if version == 3:
            path = write_tenx(tiny_adata, tmp_path / "a.h5")
            replace(path, "matrix/features/genome", lambda names: np.array([b"GRCh38"] * 120 + [b"mm10"] * 80))
        else:
            path = write_tenx(half[0], tmp_path / "a.h5", 2)
            with h5py.File(write_tenx(half[1], tmp_path / "b.h5", 2)) as other, h5py.File(path, "r+") as file:
                other.copy("GRCh38", file, "mm10")
        with open_raw(path) as raw:
            np.testing.assert_array_equal(raw.read_block(3, 90).toarray(), tiny_adata.X[3:90].toarray())
            assert raw.gene_names == tuple(tiny_adata.var_names)
            assert raw.n_stored == tiny_adata.X.nnz
        assert "holds 2 genomes, GRCh38 (120 genes), mm10 (80 genes); the genes of all are read" in caplog.text
        caplog.clear()
        with open_raw(path, "mm10") as raw:
            np.testing.assert_array_equal(raw.read_block(3, 90).toarray(), tiny_adata.X[3:90, 120:].toarray())
            assert raw.gene_names == tuple(tiny_adata.var_names[120:])
        assert not caplog.records
        with pytest.raises(InputError, match=r"ingest\.matrix='hg19' must be X, or a genome: GRCh38, mm10"):
            open_raw(path, "hg19")

    def test_two_genomes_of_different_cells_are_refused(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5", 2)
        with h5py.File(path, "r+") as file:
            file.copy("GRCh38", "mm10")
        replace(path, "mm10/barcodes", lambda names: names[::-1])
        with pytest.raises(InputError, match=r"holds 2 genomes \(GRCh38, mm10\) of different cells; choose one with"):
            open_raw(path)

    def test_a_missing_part_is_named(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5")
        with h5py.File(path, "r+") as file:
            del file["matrix/features/name"]
        with pytest.raises(InputError, match=r"a\.h5: matrix/features has no part 'name'; the file is damaged"):
            open_raw(path)

    def test_names_that_do_not_fit_the_matrix_are_refused(self, tiny_adata: ad.AnnData, tmp_path: Path) -> None:
        path = write_tenx(tiny_adata, tmp_path / "a.h5")
        replace(path, "matrix/features/name", lambda names: names[:-1])
        with pytest.raises(InputError, match="199 features with 200 types"):
            open_raw(path)
        path = write_tenx(tiny_adata, tmp_path / "b.h5", 2)
        replace(path, "GRCh38/gene_names", lambda names: names[:-1])
        with pytest.raises(InputError, match="199 genes are named, but the matrix has 200"):
            open_raw(path)
