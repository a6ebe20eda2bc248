"""Several files as one: the same bytes as the one file of all, and the genes and values of ``anndata.concat``."""

from __future__ import annotations

import logging
import os
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion.many import stack
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.store.reader import StoreReader
from tests.support.atlas import build_tiny_atlas
from tests.support.many import arrays_of, cut, with_other_genes

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = IngestConfig(n_genes=60, block_cells=37)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cut(build_tiny_atlas(), tmp_path_factory.mktemp("parts"), 20)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return with_other_genes(build_tiny_atlas(), tmp_path_factory.mktemp("others"))


def named(adata: ad.AnnData, change: Any) -> ad.AnnData:
    adata = adata.copy()
    adata.var_names = [change(name) for name in adata.var_names]
    return adata


def test_twenty_files_give_the_bytes_of_the_one_file_of_all(
    parts: list[Path], tiny_atlas: Path, tmp_path: Path
) -> None:
    one = ingest(tiny_atlas, tmp_path / "one.zarr", CONFIG)
    many = ingest(str(parts[0].parent / "part*.h5ad"), tmp_path / "many.zarr", CONFIG)
    assert arrays_of(many) == arrays_of(one)
    first, second = StoreReader(one), StoreReader(many)
    assert first.gene_space == second.gene_space
    assert first.obs["cell_type"].tolist() == second.obs["cell_type"].tolist()
    assert second.obs["scamac_file"].cat.categories.tolist() == list(map(str, parts))
    assert [about["name"] for about in second.inputs] == list(map(str, parts))
    whole = ad.read_h5ad(tiny_atlas)
    for name, file, row in zip(second.obs.index, second.obs["scamac_file"], second.obs["scamac_file_row"], strict=True):
        assert whole.obs_names[parts.index(parts[0].parent / os.path.basename(file)) * 15 + row] == name


def test_few_files_are_open_at_a_time(parts: list[Path], tiny_atlas: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0
    monkeypatch.setattr(stack, "MOST_OPEN", 2)
    with open_inputs(parts, CONFIG) as raw:
        raw.rows.handles._most = 2  # type: ignore[attr-defined]  # the default was taken when the module was read
        whole = ad.read_h5ad(tiny_atlas).X
        for start, stop in ((0, 300), (10, 20), (299, 300), (44, 91), (0, 0)):
            np.testing.assert_array_equal(raw.read_block(start, stop).toarray(), whole[start:stop].toarray())
            most = max(most, len(raw.rows.handles._open))  # type: ignore[attr-defined]
    assert most <= 2


def test_a_recipe_opens_the_same_cells_in_another_process(others: list[Path]) -> None:
    config = replace(CONFIG, join="outer", where="cell_type != 'type0'")
    with open_inputs(others, config) as raw:
        assert raw.recipe is not None
        again = pickle.loads(pickle.dumps(raw.recipe.stamped())).open()
        with again:
            assert again.gene_names == raw.gene_names
            np.testing.assert_array_equal(
                again.read_block(0, raw.n_cells).toarray(), raw.read_block(0, raw.n_cells).toarray()
            )


@pytest.mark.parametrize("join", ["inner", "outer"])
def test_genes_and_values_are_those_of_concat_and_scanpy(others: list[Path], tmp_path: Path, join: Any) -> None:
    config = IngestConfig(n_genes=50, join=join, shuffle=False, block_cells=64)
    store = StoreReader(ingest([str(path) for path in others], tmp_path / "a.zarr", config))
    whole = ad.concat([ad.read_h5ad(path) for path in others], join=join, fill_value=0)
    with open_inputs(others, config) as raw:
        assert list(raw.gene_names) == whole.var_names.tolist()
        np.testing.assert_array_equal(raw.read_block(0, 300).toarray(), whole.X.toarray())
    sc.pp.filter_genes(whole, min_cells=15)
    sc.pp.normalize_total(whole)
    sc.pp.log1p(whole)
    sc.pp.highly_variable_genes(whole, n_top_genes=50)
    assert list(store.gene_names) == whole.var_names[whole.var["highly_variable"]].tolist()
    block = store.read(np.arange(300))
    ours = sparse.csr_matrix((block.data, block.indices, block.indptr), shape=(300, 50)).toarray()
    np.testing.assert_allclose(ours, whole[:, list(store.gene_names)].X.toarray(), rtol=1e-6)


def test_what_files_lack_is_counted(others: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        open_inputs(others, CONFIG).close()
        open_inputs(others, replace(CONFIG, join="outer")).close()
    assert "198 of 201 genes are in all of 3 inputs and are taken" in caplog.text
    assert "201 genes are in any of 3 inputs; lacking, and read as zeros, are in" in caplog.text
    assert f"{others[2]}: 2" in caplog.text


def test_disjoint_genes_are_refused_with_counts(tiny_adata: ad.AnnData) -> None:
    other = named(tiny_adata[:, :150].copy(), lambda name: f"ENSG{int(name[4:]):011d}")
    for join in ("inner", "outer"):
        with pytest.raises(InputError, match=r"shares no gene .*has 200 genes \(symbols.*has 150 genes \(Ensembl"):
            open_inputs([tiny_adata, other], replace(CONFIG, join=join))
    upper = named(tiny_adata, str.upper)
    with pytest.raises(InputError, match="the same but for capital and small letters"):
        open_inputs([tiny_adata, upper], CONFIG)


def test_genes_that_all_files_share_by_pairs_only_are_refused(tiny_adata: ad.AnnData) -> None:
    pieces = [tiny_adata[:, genes].copy() for genes in (slice(0, 100), slice(50, 200), slice(150, 200))]
    with pytest.raises(InputError, match="no gene is in all inputs"):
        open_inputs(pieces, CONFIG)
    open_inputs(pieces, replace(CONFIG, join="outer")).close()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda name: f"ENSG{int(name[4:]):011d}.{2 + int(name[4:]) % 2}", "versions of Ensembl identifiers"),
        (
            lambda name: f"ENSG{int(name[4:]):011d}".swapcase() if int(name[4:]) % 2 else f"ENSG{int(name[4:]):011d}",
            "capital",
        ),
    ],
)
def test_names_that_keep_genes_from_meeting_are_pointed_out(
    tiny_adata: ad.AnnData, change: Any, word: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = named(tiny_adata, lambda name: f"ENSG{int(name[4:]):011d}" + (".2" if "versions" in word else ""))
    with caplog.at_level(logging.WARNING):
        open_inputs([first, named(tiny_adata, change)], CONFIG).close()
    assert "100 more genes would be in all inputs but for" in caplog.text
    assert word in caplog.text


def test_values_of_other_types_stay_exact(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    paths = []
    for number, dtype in enumerate((np.int64, np.float32, np.uint16)):
        part = tiny_adata[number * 100 : number * 100 + 100].copy()
        part.X = part.X.astype(dtype) if number else part.X.astype(dtype).toarray()
        paths.append(tmp_path / f"{number}.h5ad")
        part.write_h5ad(paths[-1])
    with open_inputs(paths, CONFIG) as raw:
        assert raw.dtype == np.float64
        np.testing.assert_array_equal(raw.read_block(0, 300).toarray(), tiny_adata.X.toarray())


@pytest.mark.parametrize("how", ["same", "link", "hard link", "pattern"])
def test_a_file_is_not_taken_twice(parts: list[Path], tmp_path: Path, how: str) -> None:
    other = parts[0] if how in ("same", "pattern") else tmp_path / "b.h5ad"
    if how == "link":
        other.symlink_to(parts[0])
    elif how == "hard link":
        other.hardlink_to(parts[0])
    given = str(parts[0].parent / "*.h5ad") if how == "pattern" else str(parts[0])
    with pytest.raises(InputError, match=r"given twice.*would count twice"):
        open_inputs([given, other], CONFIG)


def test_what_names_nothing_is_refused(tmp_path: Path, tiny_adata: ad.AnnData) -> None:
    for data, word in [
        ([], "the list is empty"),
        (str(tmp_path / "*.h5ad"), "nothing has a name like"),
        ([str(tmp_path / "a.h5ad")], "there is no file or folder"),
        ([[tiny_adata]], "list within a list"),
        ([tiny_adata, tiny_adata], "given twice"),
    ]:
        with pytest.raises(InputError, match=word):
            open_inputs(data, CONFIG)


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    path = tmp_path / "run[1]*.h5ad"
    tiny_adata.write_h5ad(path)
    with open_inputs(str(path), CONFIG) as raw:
        assert raw.n_cells == 300
        assert not raw.parts


@pytest.mark.slow
def test_a_store_of_one_file_has_no_other_columns(tiny_atlas: Path, tmp_path: Path) -> None:
    store = StoreReader(ingest([str(tiny_atlas)], tmp_path / "a.zarr", CONFIG))
    assert list(store.obs) == ["cell_type", "depth"]
    assert set(store.config) == set(IngestConfig().to_plain())


def test_repeated_names_stay_apart_and_are_counted(
    parts: list[Path], tiny_adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_adata[:15].copy().write_h5ad(tmp_path / "copy.h5ad")
    with caplog.at_level(logging.WARNING):
        path = ingest([parts[0], tmp_path / "copy.h5ad"], tmp_path / "a.zarr", replace(CONFIG, batch_key="scamac_file"))
    assert "30 of 30 cells have a name that another one has" in caplog.text
    store = StoreReader(path)
    assert store.n_cells == 30
    assert store.obs.index.nunique() == 15
    assert store.batch_key == "scamac_file"


def test_a_bad_value_names_its_file_and_row(parts: list[Path], tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    bad = tiny_adata[:15].copy()
    bad.X[4, int(bad.X[4].indices[0])] = -3
    bad.write_h5ad(tmp_path / "bad.h5ad")
    with pytest.raises(InputError, match=r"'cell004' \(row 4 of .*bad.h5ad\)"):
        ingest([*parts, tmp_path / "bad.h5ad"], tmp_path / "a.zarr", CONFIG)
    assert not (tmp_path / "a.zarr").exists()


def test_a_training_store_is_no_raw_data(parts: list[Path], tiny_atlas: Path, tmp_path: Path) -> None:
    store = ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG)
    (tmp_path / "link").symlink_to(store)
    inputs: list[Any] = [store, str(store), [parts[0], store], tmp_path / "link", str(tmp_path / "*.zarr")]
    for data in inputs:
        with pytest.raises(InputError, match=r"is a training store: its genes were chosen already"):
            ingest(data, tmp_path / "b.zarr", CONFIG)
    assert not (tmp_path / "b.zarr").exists()


def test_many_inputs_are_listed_in_a_moment(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.h5ad" for number in range(20_000)]  # a quadratic search would take long
    assert len(list_inputs(paths)) == len(paths)
