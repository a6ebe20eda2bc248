"""Some cells of an input: the bytes of a file that holds only these, and the cells that scanpy leaves."""

from __future__ import annotations

import csv
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scanpy as sc

from scamac_scale.cells.genes import InputRecord
from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.errors import ConfigError, InputError
from scamac_scale.ingestion.many import quality
from scamac_scale.ingestion.many.opening import open_inputs, with_all_genes
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.sources import open_source
from scamac_scale.store.reader import StoreReader
from tests.support.atlas import build_tiny_atlas
from tests.support.many import arrays_of, cut

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

CONFIG = IngestConfig(n_genes=50, block_cells=41)


def atlas() -> ad.AnnData:
    """With mitochondrial genes, poor cells and one without counts."""
    adata = build_tiny_atlas()
    adata.var_names = [f"mt-{name}" if number % 23 == 0 else name for number, name in enumerate(adata.var_names)]
    dense = adata.X.toarray()
    dense[::7, 30:] = 0
    dense[5] = 0
    adata.X = type(adata.X)(dense)
    adata.obs["is_good"] = np.arange(300) % 3 > 0
    return adata


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    return atlas()


@pytest.fixture(scope="module")
def path(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file: Path = tmp_path_factory.mktemp("atlas") / "a.h5ad"
    adata.write_h5ad(file)
    return file


def left_by_scanpy(adata: ad.AnnData, min_genes: int | None, max_mito: float | None) -> np.ndarray:
    adata = adata.copy()
    if min_genes is not None:
        sc.pp.filter_cells(adata, min_genes=min_genes)
    if max_mito is not None:
        adata.var["mt"] = adata.var_names.str.startswith("mt-")
        with np.errstate(invalid="ignore"):
            sc.pp.calculate_qc_metrics(adata, qc_vars=["mt"], percent_top=None, log1p=False, inplace=True)
        adata = adata[adata.obs["pct_counts_mt"] <= max_mito]
    return adata.obs_names.to_numpy()


@pytest.mark.parametrize(("min_genes", "max_mito"), [(25, None), (None, 6.0), (25, 6.0)])
def test_cells_are_left_out_as_scanpy_does_and_the_rest_is_as_a_file_of_it(
    adata: ad.AnnData, path: Path, tmp_path: Path, min_genes: int | None, max_mito: float | None
) -> None:
    kept = left_by_scanpy(adata, min_genes, max_mito)
    assert 100 < len(kept) < 295
    found = ingest(path, tmp_path / "a.zarr", replace(CONFIG, min_genes=min_genes, max_mito=max_mito))
    adata[kept].copy().write_h5ad(tmp_path / "b.h5ad")
    expected = ingest(tmp_path / "b.h5ad", tmp_path / "b.zarr", CONFIG)
    assert arrays_of(found) == arrays_of(expected)
    first, second = StoreReader(found), StoreReader(expected)
    assert first.gene_space == second.gene_space
    np.testing.assert_array_equal(first.source_rows, second.source_rows)
    obs = first.obs
    assert obs.drop(columns=["scamac_file", "scamac_file_row"]).equals(second.obs)
    assert adata.obs_names[obs["scamac_file_row"].to_numpy()].tolist() == obs.index.tolist()


@pytest.mark.parametrize("where", [None, "cell_type != 'type1'"])
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_cells_of_several_inputs_are_judged_by_all_genes_of_their_own(
    adata: ad.AnnData, tmp_path: Path, where: str | None, join: Any, caplog: pytest.LogCaptureFixture
) -> None:
    is_mito = adata.var_names.str.startswith("mt-")
    genes = np.arange(adata.n_vars)
    pieces = [adata[:150].copy(), adata[150:, ~is_mito | (genes < 60)].copy()]
    expected = []
    for number, piece in enumerate(pieces):
        piece.write_h5ad(tmp_path / f"{number}.h5ad")
        chosen = piece if where is None else piece[piece.obs["cell_type"] != "type1"].copy()
        expected += [*left_by_scanpy(chosen, 25, 6.0)]
    config = replace(CONFIG, min_genes=25, max_mito=6.0, join=join, where=where)
    with caplog.at_level(logging.WARNING):
        found = StoreReader(ingest([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], tmp_path / "a.zarr", config))
    names = found.obs.index[np.argsort(found.source_rows)]
    assert 50 < len(names) < 290
    assert names.tolist() == expected
    assert f"{tmp_path}/1.h5ad: 3, {tmp_path}/0.h5ad: {is_mito.sum()}" in caplog.text
    with open_inputs([tmp_path / "0.h5ad", tmp_path / "1.h5ad"], config) as raw:
        whole = with_all_genes(raw)
        assert set(whole.gene_names) == set(adata.var_names)
        assert whole.recipe is not None
        with whole.recipe.open() as again:
            np.testing.assert_array_equal(again.read_block(3, 90).toarray(), whole.read_block(3, 90).toarray())


def test_a_store_says_how_many_cells_each_filter_left_out(
    adata: ad.AnnData, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cells.txt").write_text("\n".join(adata.obs_names[:200]))
    config = replace(CONFIG, where="is_good", cells=str(tmp_path / "cells.txt"), min_genes=25, max_mito=6.0)
    with monkeypatch.context() as patch:
        patch.setattr("scamac_scale.ingestion.resume.measure", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(path, tmp_path / "a.zarr", config)
    store = StoreReader(ingest(path, tmp_path / "a.zarr", config, resume=True))  # the cells were looked at before
    few = left_by_scanpy(adata[:200][adata.obs["is_good"][:200]].copy(), 25, None)
    kept = left_by_scanpy(adata[few].copy(), None, 6.0)
    left_out = {"where": 100, "cells": 67, "min_genes": 133 - len(few), "max_mito": len(few) - len(kept)}
    assert min(left_out.values()) > 0
    expected = InputRecord(1, adata.n_vars, 300, len(kept), left_out, 0, -(-len(kept) // 20))
    assert store.gene_space.input == expected
    with open_source(path, ingest=config) as source:
        assert source.gene_space.input == expected


def test_an_input_without_mitochondrial_genes_is_named(adata: ad.AnnData, path: Path, tmp_path: Path) -> None:
    adata[:50, ~adata.var_names.str.startswith("mt-")].copy().write_h5ad(tmp_path / "b.h5ad")
    with pytest.raises(InputError, match=r"b\.h5ad: no gene has a name that begins with 'MT-'"):
        ingest([path, tmp_path / "b.h5ad"], tmp_path / "a.zarr", replace(CONFIG, max_mito=5.0))


@pytest.mark.parametrize("n_files", [1, 4])
@pytest.mark.slow
def test_a_query_over_files_gives_the_bytes_of_a_file_of_these_cells(
    adata: ad.AnnData, tmp_path: Path, n_files: int
) -> None:
    files = cut(adata, tmp_path / "parts", n_files)
    kept = adata[(adata.obs["cell_type"] != "type1") & adata.obs["is_good"]].copy()
    kept.write_h5ad(tmp_path / "b.h5ad")
    config = replace(CONFIG, where="cell_type != 'type1' and is_good")
    found = ingest([*files], tmp_path / "a.zarr", config)
    assert arrays_of(found) == arrays_of(ingest(tmp_path / "b.h5ad", tmp_path / "b.zarr", CONFIG))
    store = StoreReader(found)
    assert "type1" not in store.obs["cell_type"].cat.categories
    assert sum(len(set(about) & {"taken"}) for about in store.inputs) == n_files


def test_a_list_of_cells_takes_these(adata: ad.AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = cut(adata, tmp_path / "parts", 3)
    names = adata.obs_names
    listed = [*names[::3], "", "nobody", f"part01.h5ad\t{names[101]}", f"{files[2]}\t{names[202]}", names[0]]
    (tmp_path / "cells.txt").write_bytes("\r\n".join(listed).encode())
    with caplog.at_level(logging.WARNING):
        found = StoreReader(ingest([*files], tmp_path / "a.zarr", replace(CONFIG, cells=str(tmp_path / "cells.txt"))))
    assert sorted(found.obs.index) == sorted({*names[::3], names[101], names[202]})
    assert "1 of the 103 cells" in caplog.text
    assert "are not there: nobody" in caplog.text


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "names no cell"),
        (b"\n\n", "names no cell"),
        (b"nobody\nnoone\n", "none of the 2 cells"),
        (b"c\xff\n", "no text in UTF-8"),
        (b"other.h5ad\tcell001\n", "'other.h5ad', which is no input"),
        (b"cell001\n", "as 2 cells are called; write the input, a tab and the name"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(
    adata: ad.AnnData, path: Path, tmp_path: Path, content: bytes, word: str
) -> None:
    adata[:20].copy().write_h5ad(tmp_path / "twin.h5ad")
    (tmp_path / "cells.txt").write_bytes(content)
    with pytest.raises(InputError, match=word):
        ingest([path, tmp_path / "twin.h5ad"], tmp_path / "a.zarr", replace(CONFIG, cells=str(tmp_path / "cells.txt")))
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize("form", ["csv", "tsv", "R", "two columns"])
def test_rows_of_a_result_are_given_back(adata: ad.AnnData, tmp_path: Path, form: str) -> None:
    files = cut(adata, tmp_path / "parts", 3)
    with open_inputs([*files], CONFIG) as raw:
        chosen = raw.obs.iloc[[3, 101, 102, 250]].copy()
    chosen["text"] = 'of, "two" words'
    if form == "two columns":
        chosen[["scamac_file_row", "scamac_file"]].to_csv(tmp_path / "cells", index=False)
    elif form == "R":
        chosen.to_csv(tmp_path / "cells", index=True, quoting=csv.QUOTE_NONNUMERIC, header=[*chosen])
        text = (tmp_path / "cells").read_text()
        (tmp_path / "cells").write_text(text.removeprefix('"",'))
    else:
        chosen.to_csv(tmp_path / "cells", sep="\t" if form == "tsv" else ",")
    with open_inputs([*files], replace(CONFIG, cells=str(tmp_path / "cells"))) as raw:
        assert raw.obs.index.tolist() == chosen.index.tolist()
    (tmp_path / "cells").write_text("scamac_file,scamac_file_row\npart01.h5ad,7\npart01.h5ad,x\n")
    with pytest.raises(InputError, match=r"line 3 cannot be read \(scamac_file_row is 'x'\)"):
        open_inputs([*files], replace(CONFIG, cells=str(tmp_path / "cells")))


@pytest.mark.parametrize(
    ("given", "is_found"),
    [
        ("d1/a.h5ad", True),
        ("a.h5ad", True),
        ("other/d1/a.h5ad", False),
        ("1/a.h5ad", False),
        ("other/a.h5ad", False),
        ('"a.h5ad"', True),
    ],
)
def test_a_file_of_a_list_is_told_by_its_last_parts(
    adata: ad.AnnData, tmp_path: Path, given: str, is_found: bool
) -> None:
    (tmp_path / "d1").mkdir()
    adata[:20].copy().write_h5ad(tmp_path / "d1" / "a.h5ad")
    (tmp_path / "cells").write_text(f"# of R\n{given}\t\"{adata.obs_names[2]}\"\n'{adata.obs_names[4]}'\n")
    config = replace(CONFIG, cells=str(tmp_path / "cells"))
    if is_found:
        with open_inputs(tmp_path / "d1" / "a.h5ad", config) as raw:
            assert raw.obs["scamac_file_row"].tolist() == [2, 4]
        return
    with pytest.raises(InputError, match="which is no input"):
        open_inputs(tmp_path / "d1" / "a.h5ad", config)


def test_a_name_that_several_cells_have_is_told_by_its_file(adata: ad.AnnData, path: Path, tmp_path: Path) -> None:
    adata[:20].copy().write_h5ad(tmp_path / "twin.h5ad")
    lines = [f"twin.h5ad\t{name}" for name in adata.obs_names[:4]] + [f"a.h5ad\t{adata.obs_names[1]}", "cell050"]
    (tmp_path / "cells.txt").write_text("\n".join(lines))
    config = replace(CONFIG, cells=str(tmp_path / "cells.txt"), min_cell_fraction=0.0, kind="counts")
    found = StoreReader(ingest([path, tmp_path / "twin.h5ad"], tmp_path / "a.zarr", config)).obs
    assert found["scamac_file"].value_counts().tolist() == [4, 2]


def test_none_left_is_refused(path: Path, tmp_path: Path) -> None:
    changes: list[tuple[dict[str, Any], str]] = [
        ({"where": "depth < 0"}, "no cell is left: ingest.where='depth < 0' holds for none of 300"),
        ({"min_genes": 1000}, r"no cell is left\. 300 of 300 cells are left out: 300 have fewer than 1000 genes"),
        ({"max_mito": 0.0, "min_genes": 180}, r"no cell is left.*fewer than 180 genes.*more than 0 %"),
        ({"max_mito": 5.0, "mito_prefix": "MITO:"}, "no gene has a name that begins with 'MITO:'"),
        ({"cells": str(tmp_path / "no.txt")}, "No such file"),
    ]
    for change, word in changes:
        with pytest.raises(InputError, match=word):
            ingest(path, tmp_path / "a.zarr", replace(CONFIG, **change))
        assert not (tmp_path / "a.zarr").exists()


def test_a_share_of_counts_is_not_asked_of_logarithms(adata: ad.AnnData, tmp_path: Path) -> None:
    logged = adata[np.asarray(adata.X.sum(axis=1)).ravel() > 0].copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    with pytest.raises(InputError, match="max_mito is a percentage of counts, and X holds log"):
        ingest(logged, tmp_path / "a.zarr", replace(CONFIG, max_mito=5.0))


def test_settings_out_of_range_are_refused() -> None:
    changes: list[dict[str, Any]] = [
        {"min_genes": 0},
        {"max_mito": 101},
        {"max_mito": -1},
        {"where": " "},
        {"cells": ""},
        {"columns": ","},
        {"mito_prefix": ""},
        {"join": "left"},
        {"gene_column": " "},
    ]
    for change in changes:
        with pytest.raises(ConfigError, match=next(iter(change))):
            IngestConfig(**change)


def test_the_command_line_takes_files_and_cells(
    path: Path, adata: ad.AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = cut(adata, tmp_path / "parts", 2)
    argv = ["ingest", *map(str, files), "--out", str(tmp_path / "a.zarr"), "--where", "cell_type != 'type0'", "--quiet"]
    assert main([*argv, "--ingest.min_genes", "10"]) == 0
    assert 100 < StoreReader(tmp_path / "a.zarr").n_cells < 180
    assert main([*argv, "--ingest.where", "is_good"]) == 2
    assert "--where cell_type != 'type0' and ingest.where=is_good differ" in capsys.readouterr().err


@pytest.mark.slow
def test_a_store_goes_on_from_the_cells_that_were_found(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, min_genes=25)
    expected = arrays_of(ingest(path, tmp_path / "b.zarr", config))
    with monkeypatch.context() as patch:
        patch.setattr(
            "scamac_scale.store.shuffle.RowShuffler.rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            ingest(path, tmp_path / "a.zarr", config)
    monkeypatch.setattr(quality, "look_block", None)
    assert arrays_of(ingest(path, tmp_path / "a.zarr", config, resume=True)) == expected
