"""loom files: genes by cells, read by cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pytest

from scamac_scale.errors import InputError
from scamac_scale.ingestion.formats import loom as loom_module
from scamac_scale.ingestion.formats.transpose import TransposedRows
from scamac_scale.ingestion.open import open_raw
from scamac_scale.inspection import inspect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

N, G = 70, 25


def write(path: Path, **options: Any) -> np.ndarray:
    """Write a loom as loompy does; returns cells by genes."""
    values = np.random.default_rng(3).poisson(0.5, (N, G)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("matrix", data=values.T, **({"chunks": (8, 8), "compression": "gzip"} | options))
        file.create_dataset("layers/spliced", data=2 * values.T.astype(np.uint16))
        rows, columns = file.create_group("row_attrs"), file.create_group("col_attrs")
        rows["Gene"] = [f"GENE{g if g else 1}" for g in range(G)]  # one name twice
        rows["Accession"] = np.array([f"ENSG{g:011d}" for g in range(G)], "S")
        columns["CellID"] = np.array([f"c{i}" for i in range(N)], "S")
        columns["ClusterName"] = [f"k{i % 3}" for i in range(N)]
        columns["depth"] = np.arange(N)
        columns["pca"] = np.zeros((N, 2))
        for name in ("row_graphs", "col_graphs", "attrs"):
            file.create_group(name)
    return values


@pytest.mark.parametrize("options", [{}, {"chunks": (2, N)}, {"chunks": None, "compression": None}, {"chunks": (G, 3)}])
def test_cells_are_read_from_any_chunks(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = write(tmp_path / "a.loom", **options)
    monkeypatch.setattr(loom_module, "DENSE_SLAB_VALUES", 10 * G)
    monkeypatch.setattr(loom_module, "CHUNK_VALUES", 3 * N)
    with open_raw(tmp_path / "a.loom") as raw:
        assert isinstance(raw.rows, TransposedRows) == (options.get("chunks") == (2, N))
        for start, stop in ((0, N), (3, 4), (5, 41), (60, 60), (0, 0)):
            block = raw.read_block(start, stop)
            assert block.dtype == raw.dtype == np.float32
            np.testing.assert_array_equal(block.toarray(), expected[start:stop])
        assert raw.gene_names[:3] == ("GENE1", "GENE1-1", "GENE2")
        assert list(raw.obs.index[:2]) == ["c0", "c1"]
        assert list(raw.obs["ClusterName"][:2]) == ["k0", "k1"]
        assert raw.obs["depth"].tolist() == list(range(N))
    assert "1 attributes of col_attrs are left out, they are no columns: pca" in caplog.text


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_and_other_names(tmp_path: Path) -> None:
    expected = write(tmp_path / "a.loom")
    with open_raw(tmp_path / "a.loom", "spliced", "Accession") as raw:
        np.testing.assert_array_equal(raw.read_block(0, N).toarray(), 2 * expected)
        assert raw.gene_names[0] == "ENSG00000000000"
    with pytest.raises(InputError, match=r"has no layer 'counts' \(ingest\.matrix\); known are X, spliced"):
        open_raw(tmp_path / "a.loom", "counts")
    with pytest.raises(InputError, match=r"no column 'symbol' of genes .*columns of text are Accession, Gene"):
        open_raw(tmp_path / "a.loom", gene_column="symbol")
    assert inspect(tmp_path / "a.loom")["n_cells"] == N


def without(name: str) -> Callable[[Any], None]:
    return lambda file: file.__delitem__(name)


def put(name: str, value: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without("row_attrs/Gene"), ""),
        (
            lambda file: [without(f"row_attrs/{key}")(file) for key in ("Gene", "Accession")],
            r"row_attrs do not name the genes .*are nothing",
        ),
        (put("row_attrs/Gene", ["a"] * 3), r"row_attrs/Gene has shape \(3,\) for 25 genes"),
        (put("col_attrs/CellID", ["a"] * 3), r"col_attrs/CellID has shape \(3,\) for 70 cells"),
        (put("matrix", np.zeros((2, 3, 4))), "matrix has 3 dimensions; expected genes by cells"),
        (put("matrix", np.zeros((G, N), "c8")), "values of type complex64"),
        (put("matrix", np.zeros((G, N), bool)), "values of type bool, which tell where genes were found"),
        (put("matrix", np.array([[b"a"] * N] * G)), "expected real numbers"),
        (put("matrix", h5py.Empty("f4")), "dimensions|shape"),
        (put("row_attrs", 3), "row_attrs is no group"),
        (put("col_attrs/CellID", h5py.ExternalLink("/etc/hostname", "x")), "is a link to another file"),
        (lambda file: put("matrix", 1)(file), "dimensions"),
    ],
)
def test_broken_files_are_refused(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    write(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        change(file)
    if not said:
        with open_raw(tmp_path / "a.loom") as raw:
            assert raw.gene_names[0] == "ENSG00000000000"
        return
    with pytest.raises(InputError, match=said):
        open_raw(tmp_path / "a.loom")


def test_numbers_in_the_byte_order_of_another_machine_are_read(tmp_path: Path) -> None:
    write(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["col_attrs/depth"]
        file["col_attrs/depth"] = np.arange(N, dtype=">f8")
    with open_raw(tmp_path / "a.loom") as raw:
        assert raw.obs["depth"].dtype.isnative
        assert raw.obs.sort_values("depth", ascending=False)["depth"].iloc[0] == N - 1


def test_chunks_that_were_never_written_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["matrix"]
        file.create_dataset("matrix", (G, N), "f4", chunks=(8, 8))[:8] = 1
    with pytest.raises(InputError, match=r"chunks of .*matrix are missing"):
        open_raw(tmp_path / "a.loom")


def test_a_loom_without_names_of_cells_numbers_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.loom")
    with h5py.File(tmp_path / "a.loom", "r+") as file:
        del file["col_attrs"]
    with open_raw(tmp_path / "a.loom") as raw:
        assert list(raw.obs.index[:3]) == ["0", "1", "2"]
    assert "cells have no names" in caplog.text


def test_names_of_cells_may_be_whole_numbers_and_no_others(tmp_path: Path) -> None:
    write(tmp_path / "a.loom")
    for kind in ("i4", ">f8", "?"):
        with h5py.File(tmp_path / "a.loom", "a") as file:
            del file["col_attrs/CellID"]
            file["col_attrs/CellID"] = np.arange(N).astype(kind)
        if kind == "i4":
            with open_raw(tmp_path / "a.loom") as raw:
                assert list(raw.obs.index) == [str(i) for i in range(N)]
        else:
            with pytest.raises(
                InputError, match=r"col_attrs/CellID holds .*, which names nothing; expected texts or whole"
            ):
                open_raw(tmp_path / "a.loom")
