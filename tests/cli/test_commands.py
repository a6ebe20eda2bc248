import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest
import yaml

from scamac_scale.cli.main import main
from tests.support.command_line import QUICK, run_json
from tests.support.formats import write_zarr
from tests.support.mixing import result


def test_the_pipeline_finds_the_types_and_keeps_the_order(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = run_json(capsys, "evaluate", str(pipeline / "out.zarr"), "--label", "cell_type")
    assert scores["ari"] > 0.95
    assert scores["n_cells"] == 300
    assert ad.read_zarr(pipeline / "out.zarr").obs_names[:2].tolist() == ["cell000", "cell001"]


def test_train_writes_the_settings_that_were_given(pipeline: Path) -> None:
    config = yaml.safe_load((pipeline / "run" / "config.yaml").read_text())
    assert config["n_clusters"] == 4
    assert config["model"]["latent_width"] == 8
    assert config["train"]["phases"][0]["epochs"] == 1


def test_a_run_can_be_repeated_from_its_own_config(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, store = str(pipeline / "run" / "config.yaml"), str(pipeline / "store.zarr")
    report = run_json(capsys, "train", "--store", store, "--run", str(tmp_path / "run"), "--config", config)
    assert report["n_clusters"] == 4
    first, second = (path / "run" / "model" / "model.safetensors" for path in (pipeline, tmp_path))
    assert first.read_bytes() == second.read_bytes()


def test_estimated_counts_are_said_to_be_estimates(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, run = str(pipeline / "store.zarr"), str(tmp_path / "run")
    report = run_json(capsys, "train", "--store", store, "--run", run, *QUICK, "--n-clusters", "auto")
    assert report["is_count_estimated"]
    assert "estimate" in report["note"]


def test_a_run_is_cut_anew_and_has_levels_on_request(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.zarr")
    argv = ["predict", "--run", str(pipeline / "run"), "--input", str(pipeline / "store.zarr"), "--out", out]
    for bad in (["--n-clusters", "3", "--cut", "0.5"], ["--cut", "1.5"], ["--n-clusters", "999"], ["--levels", "two"]):
        assert main([*argv, *bad]) == 2
    assert list(tmp_path.iterdir()) == []
    capsys.readouterr()
    assert run_json(capsys, *argv, "--n-clusters", "6", "--levels", "2,10")["n_clusters"] == 6
    obs = ad.read_zarr(out).obs
    sizes = [obs[name].cat.categories.size for name in ("scamac_cluster", "scamac_cluster_2", "scamac_cluster_10")]
    assert sizes == [6, 2, 10]


@pytest.mark.slow
def test_denoised_expression_is_written_on_request(
    pipeline: Path, tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.h5ad")
    argv = ["predict", "--run", str(pipeline / "run"), "--input", str(tiny_atlas), "--out", out, "--denoised"]
    found = run_json(capsys, *argv)
    assert found["is_denoised"]
    assert ad.read_h5ad(out).layers["scamac_denoised"].shape == (300, 100)


def test_simulate_writes_an_atlas_that_ingest_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    atlas, store = str(tmp_path / "atlas.zarr"), str(tmp_path / "store.zarr")
    found = run_json(capsys, "simulate", "--cells", "120", "--genes", "50", "--types", "3", "--out", atlas)
    assert (found["n_cells"], found["n_genes"]) == (120, 50)
    assert run_json(capsys, "ingest", atlas, "--out", store)["values"] == "counts"


def test_evaluate_writes_its_scores_to_a_file(
    pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.json"
    assert main(["evaluate", str(pipeline / "out.zarr"), "--label", "cell_type", "--json", str(file)]) == 0
    assert "ARI" in capsys.readouterr().out
    assert json.loads(file.read_text())["n_labels"] == 4


@pytest.mark.parametrize("option", ["--batch-key", "--batch_key"])
@pytest.mark.parametrize("kind", ["zarr", "h5ad"])
def test_evaluate_tells_how_batches_mix_and_what_to_do(
    kind: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, adata = tmp_path / f"out.{kind}", result(shift=50.0)
    if kind == "zarr":
        write_zarr(adata, path)
    else:
        adata.write_h5ad(path)
    argv = ["evaluate", str(path), "--label", "cell_type", option, "donor"]
    scores = run_json(capsys, *argv)
    assert (scores["label"], scores["batch_key"], scores["n_sampled"]) == ("cell_type", "donor", 600)
    assert [line.split(" hardly")[0] for line in scores["warnings"]] == ["batch 'd2'"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("warning: batch 'd2' hardly mixes: 100.0%")
    assert any(line.split()[:2] == ["iLISI", "scaled"] for line in lines)
    assert "ari" not in run_json(capsys, "evaluate", str(path), option, "donor", "--basis", "X_scAMAC")


def test_a_full_disk_is_an_error_of_the_output(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    assert main(["evaluate", str(pipeline / "out.zarr"), "--label", "cell_type", "--json", "/dev/full"]) == 4
    assert "No space left" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["train", "--store", "STORE", "--run", "NEW", "--devices", "0"], "--devices 0"),
        (["train", "--store", "STORE", "--run", "NEW", "--num-nodes", "2"], "MASTER_ADDR"),
        (["train", "--store", "STORE", "--run", "NEW", "--n-clusters", "301"], "300"),
        (["train", "--store", "STORE", "--run", "NEW", "--n-clusters", "0"], "at least 1"),
        (["train", "--store", "STORE", "--run", "NEW", "--start.weights", "pcb"], "'pca'"),
        (["train", "--run", "NEW"], "--store must be given"),
        (["train", "--store", "NOWHERE", "--run", "NEW"], "NOWHERE"),
        (["ingest", "ATLAS", "ATLAS", "--out", "NEW"], "is given twice"),
        (["ingest", "ATLAS", "--out", "NEW", "--ingest.matrix", "counts"], "counts"),
        (["ingest", "ATLAS", "--out", "NEW", "--ingest.min_cell_fraction", "2"], "0 to 1"),
        (["predict", "--run", "RUN", "--input", "STORE", "--out", "NEW.zarr", "--attention", "atlsa"], "'atlas'"),
        (["predict", "--run", "NOWHERE", "--input", "STORE", "--out", "NEW.zarr"], "NOWHERE"),
        (["evaluate", "OUT", "--label", "celltype"], "cell_type"),
        (["evaluate", "OUT"], "--label must be given"),
        (["evaluate", "OUT", "--batch-key", "donr"], "'donr'"),
        (["evaluate", "OUT", "--batch-key", "cell_type", "--basis", "X_pca"], "X_scAMAC"),
        (["inspect", "NOWHERE"], "nothing at"),
    ],
)
def test_bad_usage_is_one_message_and_leaves_nothing(
    argv: list[str],
    word: str,
    pipeline: Path,
    tiny_atlas: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"STORE": "store.zarr", "RUN": "run", "OUT": "out.zarr"}
    paths = {name: str(pipeline / file) for name, file in known.items()}
    paths |= {"ATLAS": str(tiny_atlas)} | {name: str(tmp_path / name) for name in ("NEW", "NEW.zarr", "NOWHERE")}
    assert main([paths.get(argument, argument) for argument in argv]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in error
    assert word in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "argv",
    [
        ["ingest", "ATLAS", "--out", "STORE"],
        ["train", "--store", "STORE", "--run", "RUN"],
        ["predict", "--run", "RUN", "--input", "STORE", "--out", "OUT"],
        ["ingest", "ATLAS", "--out", "ATLAS/store.zarr"],
        ["train", "--store", "STORE", "--run", "ATLAS/run"],
        ["predict", "--run", "RUN", "--input", "STORE", "--out", "ATLAS/out.zarr"],
        ["simulate", "--cells", "100", "--out", "ATLAS/atlas.zarr"],
    ],
)
def test_an_output_that_is_there_or_cannot_be_written_is_exit_code_4(
    argv: list[str], pipeline: Path, tiny_atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"STORE": pipeline / "store.zarr", "RUN": pipeline / "run", "OUT": pipeline / "out.zarr"}
    texts = {name: str(path) for name, path in paths.items()}
    arguments = [texts.get(argument, argument).replace("ATLAS", str(tiny_atlas)) for argument in argv]
    assert main(arguments) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: ")


@pytest.mark.slow
def test_the_demo_clusters_real_cells_with_the_default_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("ARI", "peak memory", "What to type next", "pbmc.result.zarr"))


def test_cells_that_lack_genes_of_the_total_are_predicted_only_when_that_is_accepted(
    pipeline: Path, tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ad.read_zarr(pipeline / "store.zarr").var_names
    ad.read_h5ad(tiny_atlas)[:, chosen].copy().write_h5ad(tmp_path / "few.h5ad")
    argv = ["predict", "--run", str(pipeline / "run"), "--input", str(tmp_path / "few.h5ad"), "--out"]
    assert main([*argv, str(tmp_path / "out.zarr"), "--quiet"]) == 2
    assert "--accept totals" in capsys.readouterr().err
    assert not (tmp_path / "out.zarr").exists()
    assert main([*argv, str(tmp_path / "out.zarr"), "--accept", "total", "--quiet"]) == 2
    assert "Did you mean 'totals'?" in capsys.readouterr().err
    assert main([*argv, str(tmp_path / "out.zarr"), "--accept", "totals", "--quiet"]) == 0


def test_a_file_that_another_program_writes_is_said_to_be_locked(
    tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shutil.copy(tiny_atlas, tmp_path / "a.h5ad")
    hold = f"import h5py, time; file = h5py.File({str(path)!r}, 'r+'); print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert main(["ingest", str(path), "--out", str(tmp_path / "store")]) == 2
        other.kill()
    assert "cannot be locked: another program has it open for writing" in capsys.readouterr().err
