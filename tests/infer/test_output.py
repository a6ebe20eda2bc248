import os
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scamac_scale.errors import OutputError
from scamac_scale.infer.output import LATENT_KEY, DiskOutput, MemoryOutput, cluster_column

OBS = pd.DataFrame({"batch": ["a", None, "b", "a", "b"]}, index=[f"cell{index}" for index in range(5)])
LATENT = np.arange(10, dtype=np.float32).reshape(5, 2)
LABELS = np.array([0, 2, 1, 0, 2])


def fill(output: Any) -> Any:
    with output:
        for start in (3, 0):  # any order
            stop = min(start + 3, 5)
            output.write(start, LABELS[start:stop], {LATENT_KEY: LATENT[start:stop]})
        return output.finish(3, {"seed": 1})


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_disk_and_memory_hold_the_same(tmp_path: Path, suffix: str) -> None:
    genes, widths = ["g1", "g2"], {LATENT_KEY: 2}
    expected = fill(MemoryOutput(OBS, genes, widths))
    path = fill(DiskOutput(tmp_path / f"out{suffix}", OBS, genes, widths))
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    np.testing.assert_array_equal(found.obsm[LATENT_KEY], LATENT)
    np.testing.assert_array_equal(expected.obsm[LATENT_KEY], LATENT)
    assert found.obs["scamac_cluster"].tolist() == expected.obs["scamac_cluster"].tolist() == list("02102")
    assert found.obs_names.tolist() == OBS.index.tolist()
    assert found.var_names.tolist() == genes
    assert found.uns["scamac"]["seed"] == 1


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_after_an_error(tmp_path: Path, suffix: str, error: type[BaseException]) -> None:
    def fail() -> None:
        with DiskOutput(tmp_path / f"out{suffix}", OBS, ["g"], {LATENT_KEY: 2}) as output:
            output.write(0, LABELS[:2], {LATENT_KEY: LATENT[:2]})
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_h5ad_is_not_begun_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"write \.zarr, or make room"):
        fill(DiskOutput(tmp_path / "out.h5ad", OBS, ["g"], {LATENT_KEY: 2}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        DiskOutput(tmp_path / "out.zarr", OBS, ["g"], {LATENT_KEY: 2})


def test_every_cluster_is_a_category_also_an_empty_one() -> None:
    assert cluster_column(np.array([0, 2]), 4).categories.tolist() == ["0", "1", "2", "3"]
