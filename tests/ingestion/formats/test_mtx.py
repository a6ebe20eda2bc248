"""Folders of Matrix Market files: of every program that writes them, the same cells as scanpy reads; broken ones in a sentence."""

from __future__ import annotations

import gzip
import os
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from scipy.io import mmread, mmwrite

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError, ResumeError
from scamac_scale.ingestion.formats import market as market_module
from scamac_scale.ingestion.formats.market import read_entries, read_header
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import fingerprint, ingest
from scamac_scale.inspection import inspect
from tests.support.formats import write_mtx

if TYPE_CHECKING:
    from pathlib import Path

N, G = 30, 20


@pytest.fixture
def counts() -> sparse.csr_matrix:
    return sparse.csr_matrix(np.random.default_rng(0).poisson(0.7, (N, G)))


CELLS = [f"AAACCTGA{i:04d}-1" for i in range(N)]
SYMBOLS = [f"Gene{g // 2}" if g < 4 else f"Gene{g}" for g in range(G)]  # two names twice
IDS = [f"ENSG{g:011d}" for g in range(G)]


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode())
    return path


def lines(*columns: list[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in zip(*columns, strict=True))


def put_matrix(path: Path, matrix: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name("writing.mtx")
    mmwrite(plain, sparse.coo_matrix(matrix))
    text = plain.read_text()
    plain.unlink()
    return put(path, text)


def ranger(folder: Path, matrix: Any, version: int = 3, prefix: str = "", kinds: list[str] | None = None) -> Path:
    """Write what Cell Ranger writes."""
    end = ".gz" if version == 3 else ""
    put_matrix(folder / f"{prefix}matrix.mtx{end}", matrix.T)
    put(folder / f"{prefix}barcodes.tsv{end}", lines(CELLS))
    if version == 3:
        put(folder / f"{prefix}features.tsv{end}", lines(IDS, SYMBOLS, kinds or ["Gene Expression"] * G))
    else:
        put(folder / f"{prefix}genes.tsv", lines(IDS, SYMBOLS))
    return folder


def values(path: Any, matrix: str = "X") -> np.ndarray:
    with open_raw(path, matrix) as raw:
        assert list(raw.obs.index) == CELLS
        return raw.read_block(0, raw.n_cells).toarray()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_cell_ranger_is_read_as_scanpy_reads_it(version: int, counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts, version)
    expected = sc.read_10x_mtx(tmp_path)
    with open_raw(tmp_path) as raw:
        assert raw.gene_names == tuple(expected.var_names)
        assert list(raw.obs.index) == list(expected.obs_names)
        np.testing.assert_array_equal(raw.read_block(0, N).toarray(), expected.X.toarray())
        assert raw.dtype == np.int32
        assert raw.n_stored == counts.nnz
    with open_raw(tmp_path, gene_column="gene_ids") as raw:
        assert raw.gene_names == tuple(IDS)
    assert inspect(tmp_path)["n_cells"] == N


def test_other_features_are_left_out_and_counted(counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    kinds = ["Gene Expression"] * 12 + ["Antibody Capture"] * 5 + ["Peaks"] * 3
    ranger(tmp_path, counts, kinds=kinds)
    np.testing.assert_array_equal(values(tmp_path), counts.toarray()[:, :12])
    assert "8 features that are not gene expression are left out (5 Antibody Capture, 3 Peaks)" in caplog.text
    ranger(tmp_path / "none", counts, kinds=["Peaks"] * G)
    with pytest.raises(InputError, match=r"holds no gene expression; none of its 20 features .*\(20 Peaks\)"):
        open_raw(tmp_path / "none")


def test_two_genomes_are_told_and_one_can_be_read(
    counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranger(tmp_path, counts)
    ids = [f"{'hg19' if g < 8 else 'mm10'}_ENSG{g:011d}" for g in range(G)]
    put(tmp_path / "features.tsv.gz", lines(ids, SYMBOLS, ["Gene Expression"] * G))
    np.testing.assert_array_equal(values(tmp_path), counts.toarray())
    assert "holds 2 genomes, hg19 (8 genes), mm10 (12 genes)" in caplog.text
    np.testing.assert_array_equal(values(tmp_path, "mm10"), counts.toarray()[:, 8:])
    with pytest.raises(InputError, match=r"no matrix 'rat' \(ingest\.matrix\); known are X, hg19, mm10"):
        open_raw(tmp_path, "rat")


def test_star_folders_with_several_matrices(counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    solo = tmp_path / "Solo.out"
    for part in ("raw", "filtered"):
        folder = solo / "Gene" / part
        put_matrix(folder / "matrix.mtx", counts.T * (1 if part == "filtered" else 2))
        put(folder / "features.tsv", lines(IDS, SYMBOLS, ["Gene Expression"] * G))
        put(folder / "barcodes.tsv", lines(CELLS))
    np.testing.assert_array_equal(values(solo / "Gene" / "raw"), 2 * counts.toarray())
    np.testing.assert_array_equal(values(solo / "Gene"), counts.toarray())
    assert "filtered is read; give" in caplog.text
    velocity = solo / "Velocyto" / "raw"
    for factor, name in enumerate(("spliced", "unspliced", "ambiguous"), 1):
        put_matrix(velocity / f"{name}.mtx", counts.T * factor)
    put(velocity / "features.tsv", lines(IDS, SYMBOLS, ["Gene Expression"] * G))
    put(velocity / "barcodes.tsv", lines(CELLS))
    np.testing.assert_array_equal(values(velocity, "unspliced"), 2 * counts.toarray())
    np.testing.assert_array_equal(values(velocity / "ambiguous.mtx"), 3 * counts.toarray())
    with pytest.raises(InputError, match=r"has no matrix\.mtx; say .*ingest\.matrix: ambiguous, spliced, unspliced"):
        open_raw(velocity)
    with pytest.raises(InputError, match="holds 3 folders of Matrix Market files; give one of them"):
        open_raw(solo)


def test_alevin_fry_has_cells_in_rows_and_three_columns_of_a_gene(counts: Any, tmp_path: Path) -> None:
    folder = tmp_path / "quant" / "alevin"
    put_matrix(folder / "quants_mat.mtx", counts)
    put(folder / "quants_mat_cols.txt", lines(IDS))
    put(folder / "quants_mat_rows.txt", lines(CELLS))
    np.testing.assert_array_equal(values(tmp_path / "quant"), counts.toarray())
    put_matrix(folder / "quants_mat.mtx", sparse.hstack([counts, 2 * counts, 4 * counts]))
    put(folder / "quants_mat_cols.txt", lines([gene + end for end in ("", "-U", "-A") for gene in IDS]))
    for matrix, factor in (("X", 5), ("spliced", 1), ("unspliced", 2), ("ambiguous", 4)):
        np.testing.assert_array_equal(values(folder, matrix), factor * counts.toarray())


def test_columns_of_alevin_fry_may_follow_one_another_by_gene(counts: Any, tmp_path: Path) -> None:
    ends = ("", "-U", "-A")
    genes = ["HLA-A", "HLA-U", *IDS[2:]]
    by_gene = sparse.hstack([factor * counts[:, [g]] for g in range(G) for factor in (1, 2, 4)])
    put_matrix(tmp_path / "quants_mat.mtx", by_gene)
    put(tmp_path / "quants_mat_cols.txt", lines([gene + end for gene in genes for end in ends]))
    put(tmp_path / "quants_mat_rows.txt", lines(CELLS))
    for matrix, factor in (("X", 5), ("spliced", 1), ("unspliced", 2), ("ambiguous", 4)):
        np.testing.assert_array_equal(values(tmp_path, matrix), factor * counts.toarray())
    assert open_raw(tmp_path).gene_names == tuple(genes)
    names = [gene + end for gene in genes for end in ends]
    put(tmp_path / "quants_mat_cols.txt", lines([*names[:-1], "other"]))
    with pytest.raises(InputError, match=r"19 genes have three columns each, .* and others of the 60 have not"):
        open_raw(tmp_path)
    plain = ["HLA", "HLA-A", "HLA-U", *(f"g{g}" for g in range(57))]
    put(tmp_path / "quants_mat_cols.txt", lines(plain))
    assert open_raw(tmp_path).gene_names == tuple(plain)


@pytest.mark.parametrize(("separator", "what"), [(",", "commas"), (";", "semicolons"), (" ", "spaces")])
def test_a_table_of_genes_without_tabs_is_refused(separator: str, what: str, counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts)
    table = lines(IDS, SYMBOLS, ["Gene Expression"] * G)
    put(tmp_path / "features.tsv.gz", table.replace("\t", separator))
    with pytest.raises(InputError, match=rf"features\.tsv\.gz: line 1 is 'ENSG.*, with {what} between its columns"):
        open_raw(tmp_path)
    put(
        tmp_path / "features.tsv.gz", lines([f"gene{separator}{g}" for g in range(G)])
    )  # names, of which all begin alike
    assert open_raw(tmp_path).gene_names[3] == f"gene{separator}3"


def test_two_matrices_or_tables_of_one_name_are_refused(
    counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    ranger(tmp_path, counts)
    put_matrix(tmp_path / "matrix.mtx", 2 * counts.T)
    with pytest.raises(InputError, match=r"holds matrix\.mtx and matrix\.mtx\.gz, two matrices of one name"):
        open_raw(tmp_path)
    np.testing.assert_array_equal(values(tmp_path / "matrix.mtx"), 2 * counts.toarray())
    (tmp_path / "matrix.mtx").unlink()
    put(tmp_path / "genes.tsv", lines(IDS, SYMBOLS))  # the same names
    np.testing.assert_array_equal(values(tmp_path), counts.toarray())
    assert "2 files name the same, features.tsv.gz is read" in caplog.text
    put(tmp_path / "genes.tsv", lines(IDS[::-1], SYMBOLS[::-1]))
    with pytest.raises(
        InputError, match=r"features\.tsv\.gz and genes\.tsv both fit matrix\.mtx\.gz, and hold other names"
    ):
        open_raw(tmp_path)
    (tmp_path / "genes.tsv").unlink()
    put(tmp_path / "barcodes.tsv", lines(CELLS[::-1]))
    with pytest.raises(InputError, match=r"barcodes\.tsv\.gz and barcodes\.tsv both fit"):
        open_raw(tmp_path / "matrix.mtx.gz")


@pytest.mark.parametrize("changed", ["features.tsv.gz", "barcodes.tsv.gz"])
def test_changed_names_beside_a_single_file_are_seen(changed: str, counts: Any, tmp_path: Path) -> None:
    path = ranger(tmp_path, counts) / "matrix.mtx.gz"
    with open_raw(path) as raw:
        before = fingerprint(raw)
        assert fingerprint(raw) == before
        recipe = raw.recipe.stamped()  # type: ignore[union-attr]
    (tmp_path / changed).write_bytes((tmp_path / changed).read_bytes() + b"\0")
    with open_raw(path.parent) as raw:
        assert "names" not in fingerprint(raw)  # the digest of the folder has them
    with open_raw(path) as raw:
        assert fingerprint(raw) != before
    with pytest.raises(InputError, match=rf"{changed}"):
        recipe.open()


def test_changed_names_beside_a_single_file_are_seen_when_an_ingest_goes_on(tmp_path: Path, tiny_adata: Any) -> None:
    path = write_mtx(tiny_adata, tmp_path / "m") / "matrix.mtx.gz"
    asked = IngestConfig(n_genes=40)
    ingest(path, tmp_path / "s", asked)
    assert ingest(path, tmp_path / "s", asked, resume=True) == tmp_path / "s"
    names = gzip.decompress((tmp_path / "m" / "barcodes.tsv.gz").read_bytes()).split()[::-1]
    put(tmp_path / "m" / "barcodes.tsv.gz", b"\n".join(names).decode() + "\n")
    with pytest.raises(ResumeError, match=r"of another ingest: .*names"):
        ingest(path, tmp_path / "s", asked, resume=True)


def test_kallisto_and_a_turned_matrix_are_read_by_their_sizes(counts: Any, tmp_path: Path) -> None:
    put_matrix(tmp_path / "k" / "cells_x_genes.mtx", counts)
    put(tmp_path / "k" / "cells_x_genes.genes.txt", lines(IDS))
    put(tmp_path / "k" / "cells_x_genes.barcodes.txt", lines(CELLS))
    np.testing.assert_array_equal(values(tmp_path / "k"), counts.toarray())
    ranger(tmp_path / "turned", counts)
    put_matrix(tmp_path / "turned" / "matrix.mtx.gz", counts)
    np.testing.assert_array_equal(values(tmp_path / "turned"), counts.toarray())


def test_prefixed_files_of_geo(counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts, prefix="GSM1_a_")
    np.testing.assert_array_equal(values(tmp_path), counts.toarray())
    ranger(tmp_path, 2 * counts, version=2, prefix="GSM1_b.")
    with pytest.raises(
        InputError, match=r"holds 2 matrices with names of their own; give one of them: .*GSM1_b\.matrix"
    ):
        open_raw(tmp_path)
    np.testing.assert_array_equal(values(tmp_path / "GSM1_b.matrix.mtx"), 2 * counts.toarray())
    (tmp_path / "GSM1_b.genes.tsv").unlink()
    with pytest.raises(InputError, match=r"has no names of its genes .*features\.tsv\.gz"):
        open_raw(tmp_path / "GSM1_b.matrix.mtx")


HEAD = "%%MatrixMarket matrix coordinate integer general\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "does not begin as a Matrix Market file"),
        ("hello\n1 1 1\n", "does not begin as a Matrix Market file"),
        ("%%MatrixMarket matrix array real general\n2 2\n1\n2\n", "of form 'array'; expected coordinate"),
        ("%%MatrixMarket matrix coordinate pattern general\n20 30 1\n1 1\n", "'pattern', which tells where"),
        ("%%MatrixMarket matrix coordinate complex general\n20 30 1\n1 1 1 1\n", "no real numbers"),
        ("%%MatrixMarket matrix coordinate real symmetric\n30 30 1\n1 1 1\n", "is a symmetric matrix"),
        (HEAD, "ends before it says its size"),
        (HEAD + "20 30\n1 1 1\n", "line 2 is '20 30', expected rows, columns"),
        (HEAD + "20 -30 5\n1 1 1\n", "line 2 is '20 -30 5'"),
        (HEAD + "20 30 999999999999\n1 1 1\n", "promises 999,999,999,999 values, for which it is too small"),
        (HEAD + "20 99999999999999 1\n1 1 1\n", "has 20 rows and 99,999,999,999,999 columns, but"),
        (HEAD + "20 30 2\n1 1 1\n", r"promises 2 values|ends after 1 of the 2 values"),
        (HEAD + "20 30 2\n1 1 100\n", "ends after 1 of the 2 values"),
        (HEAD + "20 30 1\n1 1 1\n2 2 2\n", "more than the 1 values"),
        (HEAD + "20 30 1\n0 1 1\n", r"line 3 is '0 1 1': the row is not from 1 to 20"),
        (HEAD + "%x\n20 30 2\n1 1 1\n3 31 1\n", r"line 5 is '3 31 1': the column is not from 1 to 30"),
        (HEAD + "20 30 1\n1 1\n", "line 3 is '1 1': expected three numbers"),
        (HEAD + "20 30 1\n1 1 1 1\n", "there is something behind the value"),
        (HEAD + "20 30 1\n1.0 1 1\n", "expected three numbers"),
        (HEAD + "20 30 1\n1 1 x1\n", "line 3 holds 'x1' as a value"),
        (HEAD + "20 30 1\n1 1 1.5\n", "says that it holds whole numbers, and has 1.5"),
        (HEAD + "20 30 1\n1 1 9999999999\n", "holds 1e[+]10; expected amounts of RNA"),
        (HEAD.replace("integer", "real") + "20 30 1\n1 1 1e300\n", "holds 1e[+]300; expected amounts"),
        (HEAD + "20 30 1\n" + "1" * 9000 + " 1 1\n", "expected three numbers|has more than"),
    ],
)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_a_broken_file_is_refused_in_a_sentence(text: str, said: str, end: str, counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts)
    (tmp_path / "matrix.mtx.gz").unlink()
    put(tmp_path / f"matrix.mtx{end}", text)
    if end and "for which it is too small" in said:
        said += "|20 rows"
    with pytest.raises(InputError, match=said), open_raw(tmp_path) as raw:
        raw.read_block(0, 1)


@pytest.mark.parametrize(
    "text",
    [
        *("1_0", "1_000.5", "inf", "-Infinity", "nan", "0x10", "1e", "1e1_0", "1d5", "1,5", "--1", "+-1", ".", "1.5.2"),
        "1e+",
    ],
)
def test_a_value_is_a_plain_number_or_the_line_is_named(text: str, tmp_path: Path) -> None:
    path = put(tmp_path / "a.mtx", HEAD.replace("integer", "real") + f"3 2 2\n1 1 1\n\n2 1 {text}\n")
    with pytest.raises(InputError, match=r"line 5 holds .* as a value; expected a number"):
        list(read_entries(path, read_header(path)))


def test_what_is_odd_and_clear_is_read(tmp_path: Path) -> None:
    """Comments, blank lines, ends of Windows, tabs, no end of the last line, values that are written in other ways."""
    text = (
        "%%MatrixMarket matrix coordinate Real General\r\n%\n\n  % more\n3 2 9\n1 1 1\r\n\n1 2 2.5e0\n% between\n"
        "2\t1  3.\n 2 2 .5 \n3 1 1E-3\n3 2 +4\n1 1 0.10000000000000000555\n3 1 123456789012345678e-17\n1 2 0"
    )
    path = put(tmp_path / "a.mtx", text)
    header = read_header(path)
    found = list(read_entries(path, header))
    assert (header.n_rows, header.n_columns, header.n_values, header.is_whole) == (3, 2, 9, False)
    expected = [1, 2.5, 3, 0.5, 1e-3, 4, 0.1, 1.23456789012345678, 0]
    assert np.concatenate([part[2] for part in found]).tolist() == expected
    assert np.concatenate([part[0] for part in found]).tolist() == [0, 0, 1, 1, 2, 2, 0, 2, 0]


@settings(max_examples=50)
@given(
    numbers=st.lists(st.floats(-1e30, 1e30, allow_nan=False) | st.integers(-(2**60), 2**60), min_size=1, max_size=20),
    block=st.integers(20, 90),
)
def test_any_number_is_the_double_that_scipy_reads(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[Any], block: int
) -> None:
    path = tmp_path_factory.mktemp("m") / "a.mtx"
    text = "".join(f"{at + 1} 1 {number!r}\n" for at, number in enumerate(numbers))
    put(path, HEAD.replace("integer", "real") + f"{len(numbers)} 1 {len(numbers)}\n{text}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(market_module, "BLOCK_BYTES", block)
        found = np.concatenate([part[2] for part in read_entries(path, read_header(path))])
    assert found.tolist() == mmread(path).toarray()[:, 0].tolist()


def test_second_values_are_summed(counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ranger(tmp_path, counts)
    put(tmp_path / "matrix.mtx.gz", HEAD + f"{G} {N} 3\n1 1 2\n3 2 1\n1 1 5\n")
    assert values(tmp_path)[0, 0] == 7
    assert "1 values are second ones for a gene of the same cell" in caplog.text


def test_names_that_do_not_fit_and_cut_files(counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts)
    whole = (tmp_path / "matrix.mtx.gz").read_bytes()
    (tmp_path / "matrix.mtx.gz").write_bytes(whole[:-20])
    with pytest.raises(InputError, match=r"matrix\.mtx\.gz was cut off"), open_raw(tmp_path) as raw:
        raw.read_block(0, 1)
    (tmp_path / "matrix.mtx.gz").write_bytes(whole[:40] + b"\xff\xff\xff" + whole[43:])
    with pytest.raises(InputError, match=r"matrix\.mtx\.gz"), open_raw(tmp_path) as raw:
        raw.read_block(0, 1)
    (tmp_path / "matrix.mtx.gz").write_bytes(whole)
    put(tmp_path / "barcodes.tsv.gz", lines(CELLS[:-1]))
    with pytest.raises(InputError, match=r"20 rows and 30 columns, but features\.tsv\.gz names 20 genes .* 29 cells"):
        open_raw(tmp_path)
    put(tmp_path / "barcodes.tsv.gz", "x" * 100_000)
    with pytest.raises(InputError, match=r"barcodes\.tsv\.gz: line 1 is too long for a name"):
        open_raw(tmp_path)
    (tmp_path / "barcodes.tsv.gz").write_bytes(b"\xff\xfe\n" * 30)
    with pytest.raises(InputError, match=r"barcodes\.tsv\.gz: line 1 is no text"):
        open_raw(tmp_path)


@pytest.mark.parametrize(
    ("at", "line", "said"),
    [
        (3, "", "barcodes.tsv.gz: line 4 has no name"),
        (3, '"', "barcodes.tsv.gz: line 4 has no name, or a quote that does not end"),
        (3, "a\tb\0", "barcodes.tsv.gz: line 4 is no text .it holds a zero byte"),
        (3, 'a\t"b', "barcodes.tsv.gz: line 4 has no name, or a quote that does not end"),
        (29, "last", ""),
    ],
)
def test_names_that_are_none(
    at: int, line: str, said: str, counts: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranger(tmp_path, counts)
    names = [*CELLS[:at], line, *CELLS[at + 1 :]]
    put(tmp_path / "barcodes.tsv.gz", "\n".join(names))
    if said:
        with pytest.raises(InputError, match=said):
            open_raw(tmp_path)
        return
    assert open_raw(tmp_path).obs.index[-1] == "last"
    assert "barcodes.tsv.gz has no line end at its end; if it was cut off there, its last line is wrong" in caplog.text


def test_names_in_quotes_as_r_writes_them_and_lines_that_lack_columns(counts: Any, tmp_path: Path) -> None:
    ranger(tmp_path, counts)
    put(tmp_path / "barcodes.tsv.gz", "".join(f'"{name}"\n' for name in CELLS))
    assert list(open_raw(tmp_path).obs.index) == CELLS
    text = lines(IDS, SYMBOLS, ["Gene Expression"] * G)
    put(tmp_path / "features.tsv.gz", text.replace(f"{IDS[7]}\t", f"{IDS[7]} "))
    with pytest.raises(InputError, match=r"features\.tsv\.gz: line 8 is .* with 2 columns where others have 3"):
        open_raw(tmp_path)


def test_links_that_lead_out_and_pipes_are_refused(counts: Any, tmp_path: Path) -> None:
    folder = ranger(tmp_path / "in", counts)
    (folder / "barcodes.tsv.gz").rename(tmp_path / "elsewhere.gz")
    (folder / "barcodes.tsv.gz").symlink_to(tmp_path / "elsewhere.gz")
    with pytest.raises(InputError, match=r"barcodes\.tsv\.gz is a link that leads out of the folder"):
        open_raw(folder)
    (folder / "barcodes.tsv.gz").unlink()
    os.mkfifo(folder / "barcodes.tsv.gz")
    with pytest.raises(InputError, match=r"barcodes\.tsv\.gz is a named pipe"):
        open_raw(folder)


def test_a_matrix_becomes_a_store_and_is_predicted(tmp_path: Path, tiny_adata: ad.AnnData) -> None:
    from scamac_scale.cli.main import main

    folder = tmp_path / "m"
    put_matrix(folder / "matrix.mtx.gz", tiny_adata.X.T.astype(int))
    put(folder / "barcodes.tsv.gz", lines(list(tiny_adata.obs_names)))
    put(folder / "features.tsv.gz", lines(list(tiny_adata.var_names)))
    assert main(["ingest", str(folder), "--out", str(tmp_path / "s"), "--quiet"]) == 0
    tiny_adata.write_h5ad(tmp_path / "a.h5ad")
    assert main(["ingest", str(tmp_path / "a.h5ad"), "--out", str(tmp_path / "t"), "--quiet"]) == 0
    ours, theirs = (ad.read_zarr(tmp_path / name) for name in "st")
    np.testing.assert_array_equal(ours.X.toarray(), theirs.X.toarray())
    assert list(ours.var_names) == list(theirs.var_names)
