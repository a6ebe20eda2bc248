import json
import shutil
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr

from scamac_scale import inspect
from scamac_scale.errors import InputError, StoreError
from scamac_scale.inspection import disk_bytes


@pytest.fixture
def copied(pipeline: Path, tmp_path: Path) -> Path:
    """A copy of what the command line wrote, to be damaged."""
    shutil.copytree(pipeline, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("store.zarr", "training store"),
        ("run", "run folder"),
        ("run/model", "model"),
        ("out.zarr", "result of predict"),
    ],
)
def test_each_kind_is_told_and_verified(name: str, kind: str, pipeline: Path) -> None:
    found = inspect(pipeline / name, verify=True)
    assert found["kind"] == kind
    assert found["disk_bytes"] == disk_bytes(pipeline / name) > 0
    assert "verified" in (found["model"] if name == "run" else found)
    assert json.loads(json.dumps(found)) == found


def test_raw_data_is_told_and_verified(tiny_atlas: Path) -> None:
    found = inspect(tiny_atlas, verify=True)
    assert (found["kind"], found["n_cells"], found["n_genes"]) == ("raw data", 300, 200)
    assert found["verified"] == "300 cells of X"
    assert (found["values"], found["values_are_sure"], found["values_cells"]) == ("counts", True, 300)
    assert "notes" not in found
    assert found["disk_bytes"] == tiny_atlas.stat().st_size


def test_what_is_odd_about_raw_values_is_told_before_ingest(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    x = tiny_adata.X.toarray()
    x[150:] = np.log1p(x[150:] / x[150:].sum(1, keepdims=True) * 1e4)
    tiny_adata.X = x
    tiny_adata.var_names = [str(i) for i in range(tiny_adata.n_vars)]
    tiny_adata.write_h5ad(tmp_path / "two.h5ad")
    found = inspect(tmp_path / "two.h5ad")
    assert (found["values"], found["values_are_sure"]) == ("of two kinds", False)
    assert "150 cells such as 'cell150' hold logarithms of 10,000 a cell in base e" in found["values_evidence"]
    assert found["gene_names"] == "positions (0, 1, ...)"
    assert any("named by positions" in note for note in found["notes"])
    assert any("--ingest.kind" in note for note in found["notes"])
    tiny_adata.X = x - 1
    tiny_adata.write_h5ad(tmp_path / "negative.h5ad")
    assert any("negative or not finite" in note for note in inspect(tmp_path / "negative.h5ad")["notes"])


def test_a_store_tells_where_it_came_from(pipeline: Path, tiny_atlas: Path) -> None:
    found = inspect(pipeline / "store.zarr")
    assert found["input"] == [str(tiny_atlas)]
    assert found["ingest"]["n_genes"] == 100
    assert found["obs_columns"] == ["cell_type", "depth"]
    assert "verified" not in found
    for told in (found, inspect(pipeline / "run" / "model")):
        assert (told["n_input_cells"], told["n_input_genes"]) == (300, 200)
        assert sum(told["left_out"].values()) == 0


def test_a_result_counts_the_cells_of_each_cluster(pipeline: Path, tmp_path: Path) -> None:
    expected = ad.read_zarr(pipeline / "out.zarr")
    expected.write_h5ad(tmp_path / "out.h5ad")
    for path in (pipeline / "out.zarr", tmp_path / "out.h5ad"):
        found = inspect(path, verify=True)
        sizes = expected.obs["scamac_cluster"].value_counts()
        assert {row["cluster"]: row["cells"] for row in found["clusters"]} == sizes.to_dict()
        assert (found["n_clusters"], found["latent_width"], found["is_denoised"]) == (4, 8, False)


def test_an_unfinished_run_is_told_as_such(copied: Path) -> None:
    (copied / "run" / "run.json").unlink()
    shutil.rmtree(copied / "run" / "model")
    found = inspect(copied / "run")
    assert found["is_finished"] is False
    assert "model" not in found


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_what_is_none_of_the_kinds_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing at|none of"):
        inspect(tmp_path / name)


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def chunk_of(array: Path) -> Path:
    return max((file for file in array.rglob("*") if file.is_file() and file.name != "zarr.json"), key=disk_bytes)


@pytest.mark.parametrize("array", ["X/data", "X/indices", "obs/scamac_row"])
@pytest.mark.parametrize("is_lost", [False, True])
def test_verify_finds_a_damaged_or_missing_chunk_of_a_store(array: str, is_lost: bool, copied: Path) -> None:
    chunk = chunk_of(copied / "store.zarr" / array)
    chunk.unlink() if is_lost else damage(chunk)
    with pytest.raises(StoreError):
        inspect(copied / "store.zarr", verify=True)


@pytest.mark.parametrize("key", ["X_scAMAC", "scamac_membership"])
def test_verify_finds_a_missing_chunk_of_a_result(key: str, copied: Path) -> None:
    chunk_of(copied / "out.zarr" / "obsm" / key).unlink()
    with pytest.raises(InputError, match="lacks 1 of 1 chunks"):
        inspect(copied / "out.zarr", verify=True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("X_scAMAC", float("nan"), "not finite"), ("scamac_membership", 2.0, "do not sum to 1")],
)
def test_verify_finds_values_that_cannot_be(key: str, value: float, words: str, copied: Path) -> None:
    ad.read_zarr(copied / "out.zarr").write_h5ad(copied / "out.h5ad")
    zarr.open_group(copied / "out.zarr", mode="r+")[f"obsm/{key}"][17, 0] = value
    with h5py.File(copied / "out.h5ad", "r+") as file:
        file[f"obsm/{key}"][17, 0] = value
    for name in ("out.zarr", "out.h5ad"):
        with pytest.raises(InputError, match=words):
            inspect(copied / name, verify=True)


def test_verify_finds_weights_that_are_damaged(copied: Path) -> None:
    weights = copied / "run" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: it is not what was written"):
        inspect(copied / "run", verify=True)


def test_a_report_that_is_not_json_is_an_error(copied: Path) -> None:
    (copied / "run" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        inspect(copied / "run")


def test_a_model_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    with pytest.raises(InputError, match="model"):
        inspect(tmp_path)
