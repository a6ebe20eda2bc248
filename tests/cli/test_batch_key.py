import json
from pathlib import Path
from typing import Any

import anndata as ad
import pytest
import yaml

from scamac_scale.cli.main import main
from tests.support.command_line import run_json


@pytest.fixture
def atlas(tiny_adata: ad.AnnData, tmp_path: Path) -> Path:
    """An h5ad with a donor and a chip for each cell."""
    tiny_adata.obs["donor"] = [f"d{i % 3}" for i in range(300)]
    tiny_adata.obs["chip"] = [i % 2 for i in range(300)]
    tiny_adata.obs["barcode"] = [f"b{i}" for i in range(300)]
    tiny_adata.obs["gaps"] = [None if i == 3 else "x" for i in range(300)]
    tiny_adata.write_h5ad(tmp_path / "x.h5ad")
    return tmp_path / "x.h5ad"


@pytest.mark.parametrize("option", ["--batch-key", "--batch_key", "--ingest.batch_key"])
@pytest.mark.slow
def test_every_name_of_the_option_gives_the_same_store(
    option: str, atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run_json(capsys, "ingest", str(atlas), "--out", str(tmp_path / "a.zarr"), option, "donor,chip")
    assert found["batch_key"] == found["ingest"]["batch_key"] == "donor,chip"
    assert found["batches"] == [{"column": "donor", "levels": 3}, {"column": "chip", "levels": 2}]
    assert run_json(capsys, "inspect", str(tmp_path / "a.zarr")) == found
    assert main(["inspect", str(tmp_path / "a.zarr"), "--verify"]) == 0
    shown = capsys.readouterr().out
    assert "batch key" in shown
    assert "donor,chip" in shown


def test_a_config_file_may_hold_it(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text("ingest: {batch_key: donor}\n")
    argv = ["ingest", str(atlas), "--out", str(tmp_path / "a.zarr"), "--config", str(tmp_path / "c.yaml")]
    assert run_json(capsys, *argv)["batch_key"] == "donor"
    assert main([*argv, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["ingest"]["batch_key"] == "donor"


def test_a_store_without_batches_has_no_key(atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run_json(capsys, "ingest", str(atlas), "--out", str(tmp_path / "a.zarr"))
    assert found["batch_key"] is None
    assert "batches" not in found
    assert "batch_key" not in found["ingest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--batch-key", "donr"], "x.h5ad: obs has no column 'donr' (batch key); it has cell_type, depth, donor, chip"),
        (["--batch-key", "gaps"], "1 of 300 cells have no value in the batch column 'gaps', the first is 'cell003'"),
        (["--batch-key", "depth"], "the batch column 'depth' holds measurements"),
        (["--batch-key", "barcode"], "every cell has a value of its own in the batch column 'barcode'"),
        (["--batch-key", ""], "ingest.batch_key='' names no column of obs"),
        (["--batch-key", "donor", "--ingest.batch_key", "chip"], "--batch-key donor and ingest.batch_key=chip differ"),
        (["--batch-keys", "donor"], "Did you mean --batch"),
    ],
)
def test_a_wrong_key_is_one_message_and_leaves_nothing(
    options: list[str], message: str, atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ingest", str(atlas), "--out", str(tmp_path / "a.zarr"), *options]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5ad"]


def test_help_names_the_option(capsys: pytest.CaptureFixture[Any]) -> None:
    assert main(["ingest", "--help-all"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--batch-key COLUMN[,COLUMN]" in text
    assert json.dumps(text).count("--ingest.batch_key") >= 2
