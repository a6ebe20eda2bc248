import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from scamac_scale.config import ScamacConfig
from scamac_scale.demonstration import MARK, demo, prepare, read_pbmc
from scamac_scale.errors import InputError, OutputError
from tests.support.settings import QUICK

LIGHT: ScamacConfig = replace(QUICK, n_clusters="auto")


def test_the_cells_are_those_that_scanpy_carries() -> None:
    adata = read_pbmc()
    assert adata.shape == (700, 765)
    assert adata.obs["bulk_labels"].nunique() == 10
    values = adata.X.data
    assert np.isfinite(values).all()
    assert values.min() >= 0


def test_a_demo_leaves_results_and_says_what_to_type_next(tmp_path: Path) -> None:
    found = demo(tmp_path / "demo", n_cells=400, config=LIGHT)
    assert [step["step"] for step in found["steps"]] == [
        *("copy", "ingest", "train", "predict", "evaluate", "markers"),
        *("simulate", "ingest", "train", "predict", "evaluate", "markers"),
        "report",
    ]
    real, simulated = found["scores"]
    assert (real["data"], real["n_cells"], real["n_clusters"]) == ("pbmc.h5ad", 700, 10)
    assert (simulated["n_cells"], simulated["n_clusters"]) == (400, 8)
    assert real["ari"] > 0.3
    assert found["peak_memory_bytes"] > 0
    for path, n_cells in zip(found["results"], (700, 400), strict=True):
        assert ad.read_zarr(path).obsm["X_scAMAC"].shape[0] == n_cells
    assert Path(found["report"]).is_file()
    for line in found["next"][1:]:
        assert "scamac" in line
        assert shutil.which(line.split()[0]) is not None


def test_a_demo_replaces_an_earlier_one(tmp_path: Path) -> None:
    folder = prepare(tmp_path / "demo")
    (folder / "old.zarr").mkdir()
    (folder / "old.h5ad").touch()
    prepare(folder)
    assert [path.name for path in folder.iterdir()] == [MARK]


def test_a_demo_leaves_the_files_of_a_user_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(OutputError, match="no demo wrote"):
        demo(tmp_path, config=LIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_an_error_of_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        prepare(tmp_path / "file" / "demo")


def test_too_few_cells_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at least 100"):
        demo(tmp_path / "demo", n_cells=99)
    assert list(tmp_path.iterdir()) == []
