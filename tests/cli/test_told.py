"""What a person reads at the end of a command."""

from pathlib import Path

import pytest

from scamac_scale.cli.main import main
from scamac_scale.cli.told import of_cluster, sizes


def test_a_prediction_ends_in_four_lines(pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.h5ad"
    assert (
        main(["predict", "--run", str(pipeline / "run"), "--input", str(pipeline / "store.zarr"), "--out", str(out)])
        == 0
    )
    where, found, sure, following = capsys.readouterr().out.splitlines()
    assert where == f"{out}: clusters, latents and memberships of 300 cells"
    assert found.startswith("clusters: 4; cells of each: 0: ")
    assert sum(int(part.split(": ")[1]) for part in found.split("cells of each: ")[1].split(", ")) == 300
    assert sure.startswith("how sure: membership of the own cluster ")
    assert following == f"next: scamac-scale report --run {pipeline / 'run'} --result {out}"


def test_of_many_clusters_the_range_of_sizes_is_told() -> None:
    assert sizes({str(k): 10 + k for k in range(30)}, is_estimated=True).endswith("; from 10 to 39 cells")


def test_a_finished_run_says_that_it_is_finished(pipeline: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(pipeline / "run")
    assert main(["train", "--store", str(pipeline / "store.zarr"), "--run", run]) == 4
    assert (
        capsys.readouterr().err
        == f"error: the run {run} is finished; use its model (predict --run {run}), or name a new folder with --run.\n"
    )


def test_a_clustering_ends_with_the_command_for_another_number_of_clusters() -> None:
    finding = {
        "severity": "note",
        "check": "number of clusters",
        "found": "An estimate.",
        "advice": "",
        "command": "predict --n-clusters 2",
    }
    result = {
        "result": "a b.h5ad",
        "n_cells": 5,
        "model": "m",
        "markers": None,
        "report": "r.html",
        "sizes": {"0": 3, "1": 2},
    }
    lines = of_cluster({**result, "is_count_estimated": True, "findings": [finding]})
    assert lines[-2:] == ["another number of clusters, without training: predict --n-clusters 2", "next: open r.html"]
