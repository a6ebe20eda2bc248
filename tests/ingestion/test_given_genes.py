"""Genes that are named by a text file or a column of var are taken as they are, in the order of the input."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError, ResumeError
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.raw import RawMatrix
from scamac_scale.ingestion.statistics import measure
from scamac_scale.inspection import inspect
from scamac_scale.store.reader import StoreReader

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = IngestConfig(n_genes=50, block_cells=100)
WANTED = ("gene010", "gene003", "gene150")


def listed(folder: Path, text: str | bytes, name: str = "genes.txt") -> IngestConfig:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return replace(CONFIG, genes=str(path))


def chosen(adata: ad.AnnData, config: IngestConfig) -> tuple[str, ...]:
    return measure(open_raw(adata), config).gene_space.chosen


# --- a list


@pytest.mark.parametrize(
    "text",
    [
        "gene010\ngene003\ngene150\n",
        "# markers\n\ngene010  # T cells\n\tgene003 \n\n   \ngene150",
        "\ufeffgene010\r\ngene003\r\ngene150\r\n",
        '"gene010"\n"gene003"\n"gene150"\n',
        "gene010\rgene003\rgene150",
    ],
    ids=["plain", "comments", "windows", "quoted", "old mac"],
)
def test_named_genes_are_taken_in_the_order_of_the_input(tiny_adata: ad.AnnData, tmp_path: Path, text: str) -> None:
    found = measure(open_raw(tiny_adata), listed(tmp_path, text))
    assert found.gene_space.chosen == tuple(sorted(WANTED))
    assert list(found.var.columns) == ["n_cells", "means", "dispersions", "dispersions_norm"]
    every = measure(open_raw(tiny_adata), replace(CONFIG, n_genes=10**6))
    pd.testing.assert_frame_equal(found.var, every.var.loc[sorted(WANTED)])
    assert found.gene_space.filtered == every.gene_space.filtered


def test_with_batches_the_same_genes_are_taken(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    config = listed(tmp_path, "\n".join(WANTED))
    expected = measure(open_raw(tiny_adata), config)
    tiny_adata.obs["donor"] = [f"d{i % 3}" for i in range(300)]
    found = measure(open_raw(tiny_adata), replace(config, batch_key="donor"))
    assert found.gene_space == expected.gene_space
    pd.testing.assert_frame_equal(found.var, expected.var)


def test_named_genes_pass_the_filter_if_any_cell_expresses_them(
    tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    values = tiny_adata.X.toarray()
    values[:, [3, 10, 20]] = 0
    values[5, 10] = 4
    tiny_adata.X = values
    found = measure(open_raw(tiny_adata), listed(tmp_path, "\n".join(WANTED)))
    assert found.gene_space.chosen == ("gene010", "gene150")
    assert "gene010" in found.gene_space.filtered
    assert found.totals[5] == values[5][[int(gene[4:]) for gene in found.gene_space.filtered]].sum()
    assert "no cell expresses 1 of the genes that are named; they are left out" in caplog.text
    with pytest.raises(InputError, match=r"no cell expresses any of the 2 genes that ingest\.genes names"):
        measure(open_raw(tiny_adata), listed(tmp_path, "gene003\ngene020"))


def test_repeated_and_unknown_names_are_counted(
    tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = chosen(tiny_adata, listed(tmp_path, "gene003\nabc\ngene010\ngene003\ngene003\nxyz\ngene150"))
    assert found == tuple(sorted(WANTED))
    assert "2 of 7 names are there more than once (gene003); each counts once" in caplog.text
    assert "2 of the 5 genes of" in caplog.text
    assert "are not there and are left out: 'abc', 'xyz'" in caplog.text


HINTS: dict[str, tuple[list[str], list[str], str]] = {
    "versions": (["ENSG00000000001.2"], ["ENSG00000000001.7"], "but for the versions of Ensembl identifiers"),
    "capitals": (["Cd3e"], ["CD3E"], "but for capital letters: another species"),
    "columns": (["CD3E"], ["CD3E\t4.1"], "Its lines hold several columns"),
    "commas": (["CD3E"], ["CD3E,CD4"], "Its lines hold several columns"),
    "in var": (["CD3E"], ["sym0"], "They stand in the column 'symbol' of its var: write the names .*'CD3E0', ..."),
    "identifiers": (
        ["CD3E"],
        ["ENSMUSG00000000001"],
        r"The list names Ensembl identifiers .*mouse\), the input symbols in capitals",
    ),
}


@pytest.mark.parametrize("name", HINTS)
def test_a_list_that_is_mostly_unknown_is_refused_with_a_hint_before_any_pass(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (ours,), (theirs,), hint = HINTS[name]
    stem, dot, version = ours.partition(".")
    tiny_adata.var_names = [f"{stem}{i}{dot}{version}" for i in range(200)]
    tiny_adata.var["symbol"] = [f"sym{i}" for i in range(200)]
    stem, dot, version = theirs.partition(".")
    lines = [theirs.replace("0", str(i), 1) if name == "in var" else f"{stem}{i}{dot}{version}" for i in range(9)]
    if name in ("columns", "commas"):
        lines = [theirs.replace("E", f"E{i}", 1) for i in range(9)]
    monkeypatch.setattr(RawMatrix, "read_block", None)
    with pytest.raises(
        InputError,
        match=rf"9 of the 9 genes of .*genes\.txt \(ingest\.genes\) are not among its 200, such as .*\. .*{hint}",
    ):
        measure(open_raw(tiny_adata), listed(tmp_path, "\n".join(lines)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no gene"),
        ("# only\n\n  # comments", "names no gene"),
        (b"\xff\xfeg\x00", "is no text in UTF-8"),
        (b"\x89HDF\r\n\x1a\n", "is no text in UTF-8"),
        ("gene003\0gene010", "is no text"),
    ],
)
def test_what_is_no_list_is_refused(tiny_adata: ad.AnnData, tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        measure(open_raw(tiny_adata), listed(tmp_path, text))


def test_a_list_that_is_not_there_is_refused(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    for path in (tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read \(.*\); give a text file"):
            measure(open_raw(tiny_adata), replace(CONFIG, genes=str(path)))


def test_half_of_the_names_may_be_unknown(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    assert chosen(tiny_adata, listed(tmp_path, "gene003\nabc")) == ("gene003",)
    with pytest.raises(InputError, match="2 of the 3 genes"):
        chosen(tiny_adata, listed(tmp_path, "gene003\nabc\nxyz"))


# --- a column


MARKS: dict[str, Any] = {
    "bool": lambda marks: marks,
    "whole numbers": lambda marks: marks.astype(int),
    "text": lambda marks: np.where(marks, "TRUE", "FALSE"),
    "category": lambda marks: pd.Categorical(np.where(marks, "True", "False")),
    "nullable": lambda marks: pd.array(marks, dtype="boolean"),
    "with gaps": lambda marks: pd.array([None if i == 7 else mark for i, mark in enumerate(marks)], dtype="boolean"),
}


@pytest.mark.parametrize("name", MARKS)
@pytest.mark.parametrize("is_file", [False, True])
def test_a_column_of_var_marks_the_genes(
    tiny_adata: ad.AnnData, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, *, is_file: bool
) -> None:
    marks = np.isin(tiny_adata.var_names, WANTED)
    tiny_adata.var["highly_variable"] = MARKS[name](marks)
    data: Any = tiny_adata
    if is_file:
        tiny_adata.write_h5ad(tmp_path / "a.h5ad")
        data = tmp_path / "a.h5ad"
    with open_raw(data) as raw:
        assert measure(raw, replace(CONFIG, genes="var:highly_variable")).gene_space.chosen == tuple(sorted(WANTED))
    assert ("has no value for 1 genes" in caplog.text) == (name == "with gaps")


def test_the_column_is_that_of_the_matrix(tiny_adata: ad.AnnData) -> None:
    tiny_adata.raw = tiny_adata
    tiny_adata.var["marked"] = True
    with pytest.raises(InputError, match=r"has no column 'marked' in var \(ingest\.genes=var:marked\); it has "):
        measure(open_raw(tiny_adata, "raw"), replace(CONFIG, genes="var:marked", matrix="raw"))


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("other", True, "has no column 'mine' in var"),
        ("mine", False, "marks no gene"),
        ("mine", 0.5, r"holds '0\.5'; expected true and false, as highly_variable does"),
        ("mine", "protein_coding", "holds 'protein_coding'"),
    ],
)
def test_a_column_that_marks_nothing_is_refused(tiny_adata: ad.AnnData, column: str, values: Any, message: str) -> None:
    tiny_adata.var[column] = values
    with pytest.raises(InputError, match=message):
        chosen(tiny_adata, replace(CONFIG, genes="var:mine"))


def test_of_several_files_a_gene_is_taken_that_any_marks(
    tiny_adata: ad.AnnData, caplog: pytest.LogCaptureFixture
) -> None:
    raw = open_raw(tiny_adata)
    tables = [
        ("a", pd.DataFrame({"hv": [True, True]}, ["gene003", "gene010"])),
        ("b", pd.DataFrame({"hv": [True, False, True]}, ["gene003", "gene010", "gene150"])),
    ]
    found = measure(replace(raw, read_vars=lambda: tables), replace(CONFIG, genes="var:hv"))
    assert found.gene_space.chosen == tuple(sorted(WANTED))
    assert "marks other genes in some of the 2 files: 1 in all of them, 3 in any, which are taken" in caplog.text
    tables[1] = ("b", tables[1][1].rename(columns={"hv": "x"}))
    with pytest.raises(InputError, match="b has no column 'hv' in var"):
        measure(replace(raw, read_vars=lambda: tables), replace(CONFIG, genes="var:hv"))
    with pytest.raises(InputError, match="has no table of genes with columns"):
        measure(replace(raw, read_vars=list), replace(CONFIG, genes="var:hv"))


# --- stores


def test_a_changed_list_does_not_resume(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    tiny_adata.write_h5ad(tmp_path / "x.h5ad")
    config = listed(tmp_path, "\n".join(WANTED))
    ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", config)
    listed(tmp_path, "# the same\n" + "\n".join(WANTED))
    ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", config, resume=True)
    listed(tmp_path, "\n".join(WANTED[:2]))
    with pytest.raises(ResumeError, match=r"is complete, and of another ingest: input\.given_genes_sha256"):
        ingest(tmp_path / "x.h5ad", tmp_path / "a.zarr", config, resume=True)
    with StoreReader(tmp_path / "a.zarr") as store:
        assert store.gene_space.chosen == tuple(sorted(WANTED))
    assert inspect(tmp_path / "a.zarr")["genes"] == config.genes


def test_the_command_line_takes_a_list_and_a_flavor(
    tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_adata.write_h5ad(tmp_path / "x.h5ad")
    path = listed(tmp_path, "\n".join(WANTED)).genes
    with caplog.at_level(logging.INFO):
        assert (
            main(["ingest", str(tmp_path / "x.h5ad"), "--out", str(tmp_path / "a.zarr"), "--ingest.genes", str(path)])
            == 0
        )
    assert ad.read_zarr(tmp_path / "a.zarr").n_vars == 3
    command = ["ingest", str(tmp_path / "x.h5ad"), "--out", str(tmp_path / "b.zarr")]
    assert (
        main([*command, "--ingest.flavor", "pearson_residuals", "--ingest.n_genes", "30", "--ingest.min_cells", "3"])
        == 0
    )
    assert ad.read_zarr(tmp_path / "b.zarr").n_vars == 30
    assert main([*command, "--overwrite", "--ingest.genes", str(tmp_path / "none.txt")]) == 2
    assert "none.txt cannot be read" in capsys.readouterr().err
