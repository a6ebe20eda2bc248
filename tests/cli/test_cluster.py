"""One command from files to clusters; real files, and real kills."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import pytest

from scamac_scale.cli.main import main
from scamac_scale.durable.faults import FAULT
from tests.support.command_line import QUICK, run_json
from tests.support.nursery import Nursery


@pytest.fixture(scope="module")
def done(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``cluster`` has written ``out.h5ad``."""
    folder = tmp_path_factory.mktemp("clustered")
    assert main(["cluster", str(tiny_atlas), "--out", str(folder / "out.h5ad"), *QUICK, "--quiet"]) == 0
    return folder


@pytest.mark.slow
def test_files_become_clusters_markers_a_model_and_a_page(done: Path, tiny_atlas: Path) -> None:
    found, raw = ad.read_h5ad(done / "out.h5ad"), ad.read_h5ad(tiny_atlas)
    assert found.obs_names.equals(raw.obs_names)
    assert found.obs["scamac_cluster"].nunique() == 4
    assert "rank_genes_groups" in found.uns
    assert sorted(path.name for path in done.iterdir()) == ["out.h5ad", "out.markers.csv", "out.report", "out.work"]
    assert (done / "out.report" / "report.html").is_file()
    assert (done / "out.work" / "run" / "model").is_dir()
    page = (done / "out.report" / "report.html").read_text()
    assert f"<h1>Report on {tiny_atlas.name}</h1>" in page


@pytest.mark.slow
def test_what_is_there_is_not_overwritten_and_resume_leaves_it(
    done: Path, tiny_atlas: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cluster", str(tiny_atlas), "--out", str(done / "out.h5ad"), *QUICK]
    before = (done / "out.work" / "run" / "run.json").read_bytes()
    assert main(command) == 4
    assert "out.h5ad is already there" in capsys.readouterr().err
    assert run_json(capsys, *command, "--resume")["n_clusters"] == 4
    assert (done / "out.work" / "run" / "run.json").read_bytes() == before
    other = str(done / "other.h5ad")
    assert main([*command, "--out", other, "--work", str(done / "out.work")]) == 4
    assert "go on with it by --resume" in capsys.readouterr().err
    assert not Path(other).exists()


def test_a_label_that_is_not_there_is_told_before_the_fit(
    tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cluster", str(tiny_atlas), "--out", str(tmp_path / "out.h5ad"), *QUICK, "--quiet"]
    assert main([*command, "--label", "nothing"]) == 2
    assert "obs has no column 'nothing' (label); it has " in capsys.readouterr().err
    assert not (tmp_path / "out.work" / "run").exists()
    (tmp_path / "out.report").mkdir()
    assert main(command) == 4
    assert "the report of an earlier result" in capsys.readouterr().err


@pytest.mark.slow
def test_a_single_cluster_has_no_markers_and_a_report(
    tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.zarr"
    assert main(["cluster", str(tiny_atlas), "--out", str(out), *QUICK, "--n-clusters", "1"]) == 0
    told = capsys.readouterr().out
    assert "markers: none" in told
    assert "clusters: 1; cells of each: 0: 300" in told
    assert (tmp_path / "out.report" / "report.html").is_file()


def test_bad_input_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(tmp_path / "no.h5ad"), "--out", str(tmp_path / "out.h5ad")]) == 2
    assert main(["cluster", "x.h5ad", "--out", "s3://bucket/out.h5ad"]) == 2
    assert main(["cluster", "x.h5ad", "--out", str(tmp_path / "out.csv")]) == 2
    assert list(tmp_path.iterdir()) == []
    assert "in object storage; `cluster` works on a disk" in capsys.readouterr().err


@pytest.mark.slow  # three starts of the whole program
@pytest.mark.parametrize("point", ["ingest.read", "train.step"])
def test_killed_and_resumed_it_ends_as_if_nobody_had(point: str, tiny_atlas: Path, tmp_path: Path, done: Path) -> None:
    out = tmp_path / "out.h5ad"
    command = [sys.executable, "-m", "scamac_scale", "cluster", str(tiny_atlas), "--out", str(out), *QUICK, "--quiet"]
    killed = subprocess.run(command, env={**os.environ, FAULT: f"{point}:1:kill"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not out.exists()
    assert subprocess.run([*command, "--resume"], check=False).returncode == 0
    expected, found = ad.read_h5ad(done / "out.h5ad"), ad.read_h5ad(out)
    assert found.obsm["X_scAMAC"].tobytes() == expected.obsm["X_scAMAC"].tobytes()
    assert found.obs["scamac_cluster"].equals(expected.obs["scamac_cluster"])
    shutil.rmtree(tmp_path / "out.work")


@pytest.mark.slow  # five runs, each of which draws a page or is killed before
def test_killed_in_each_later_stage_it_ends_as_if_nobody_had(
    jobs: Nursery, tiny_atlas: Path, tmp_path: Path, done: Path
) -> None:
    command = ("cluster", str(tiny_atlas), "--out", str(tmp_path / "out.h5ad"), *QUICK, "--quiet", "--resume")
    for point in ("predict.block", "predict.rename", "markers.rename", "report.rename"):
        assert jobs.run(*command, fault=f"{point}:1:kill").codes == [-signal.SIGKILL], point
        assert (tmp_path / "out.h5ad").exists() == (not point.startswith("predict"))
        assert not (tmp_path / "out.report").exists()
    ended = jobs.run(*command)
    assert ended.codes == [0], ended.errors
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in done.iterdir())
    assert (tmp_path / "out.markers.csv").read_bytes() == (done / "out.markers.csv").read_bytes()
    expected, found = ad.read_h5ad(done / "out.h5ad"), ad.read_h5ad(tmp_path / "out.h5ad")
    assert found.obs["scamac_cluster"].equals(expected.obs["scamac_cluster"])
    for key in ("X_scAMAC", "scamac_membership"):
        assert found.obsm[key].tobytes() == expected.obsm[key].tobytes()
    page = (tmp_path / "out.report" / "report.html").read_text()
    assert "300 cells in 4 clusters" in page
    assert "No markers yet" not in page
