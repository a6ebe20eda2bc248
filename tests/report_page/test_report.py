import importlib.util
import json
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scamac_scale
from scamac_scale.api import report
from scamac_scale.cli.main import main
from scamac_scale.errors import ConfigError, InputError, OutputError
from scamac_scale.report_page import gather
from scamac_scale.report_page.checks import check
from scamac_scale.report_page.gather import read_result, read_run
from scamac_scale.report_page.words import lines
from scamac_scale.report_page.write import _left_out, default_place
from tests.support.bucket import upload
from tests.support.reported import ODD

PICTURES = {
    *("sizes.png", "map_cluster.png", "map_label.png", "map_batch.png", "map_confidence.png", "labels.png"),
    *("tree.png", "confidence.png", "batches.png", "curves.png"),
}


def test_a_report_is_a_page_and_its_pictures(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {"report.html", *PICTURES}
    assert (written / "report.html").stat().st_size < 15e6


def test_a_page_tells_what_was_run_in_this_order(written: Path) -> None:
    page = re.sub("<script>.*?</script>", "", (written / "report.html").read_text(), flags=re.DOTALL)
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        *("What was run", "What came out", "Cluster sizes", "The cells (t-SNE)", "Labels and clusters"),
        *("The tree of the clusters", "How sure the cells are", "Marker genes", "Batches in the clusters", "The fit"),
        "All settings",
    ]
    assert "<h1>Report on raw.h5ad</h1>" in page
    assert "300 cells in 4 clusters" in page
    assert "scamac-scale markers" in page
    assert re.search(r"Cells of the input\W.*?300\b", page, re.DOTALL)
    assert re.search(r"200 in the input, \d+ in at least 15 cells, \d+ chosen", page)


def test_names_of_a_user_never_become_a_part_of_the_page(written: Path) -> None:
    page = (written / "report.html").read_text()
    assert page.count("</script>") == 3  # of plotly, the data and our own
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "\u202e" not in page
    assert "<b>bob" not in page


def test_the_data_of_a_page_holds_every_label(written: Path) -> None:
    columns = {column["title"]: column for column in json.loads(data_of(written))["cells"]["columns"]}
    assert set(columns) == {"cluster", "odd", "donor"}
    assert columns["odd"]["names"][0] == ODD[0]
    assert columns["donor"]["names"] == ["<b>bob</b>", "ann", "cat & co"]


def test_a_report_that_is_there_is_replaced_only_when_asked(
    finished: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished
    out = tmp_path / "report"
    assert scamac_scale.report(run, out=out)["report"] == str(out / "report.html")
    first = (out / "report.html").stat().st_mtime_ns
    assert main(["report", "--run", str(run), "--out", str(out)]) == 4
    assert "already there" in capsys.readouterr().err
    assert main(["report", "--run", str(run), "--out", str(out), "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_clusters"] == 4
    assert (out / "report.html").stat().st_mtime_ns > first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]


def test_a_folder_of_something_else_is_not_replaced(finished: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match=r"holds no report\.html"):
        report(finished[0], out=tmp_path / "mine", overwrite=True)


def test_a_report_of_a_run_alone_says_what_is_missing(finished: tuple[Path, Path], tmp_path: Path) -> None:
    found = report(finished[0], out=tmp_path / "alone")
    assert found["n_cells"] is None
    assert "name what predict has written with --result" in (tmp_path / "alone" / "report.html").read_text()
    assert {Path(path).name for path in found["pictures"]} == {"tree.png", "curves.png"}


def test_what_cannot_be_reported_is_told_before_anything_is_written(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    run, result = finished
    out = tmp_path / "report"
    with pytest.raises(InputError, match="is no run folder"):
        report(tmp_path, out=out)
    with pytest.raises(InputError, match="name the result of predict"):
        report(run, label="odd", out=out)
    with pytest.raises(InputError, match=r"no column 'nothing'; it has .*odd"):
        report(run, result, label="nothing", out=out)
    with pytest.raises(ConfigError, match="max_cells=5"):
        report(run, result, max_cells=5, out=out)
    with pytest.raises(ConfigError, match="layout"):
        report(run, result, layout="pca", out=out)  # type: ignore[arg-type]  # the mistake that is tested
    with pytest.raises(OutputError, match="a report is written on a disk; name a folder there with --out"):
        report(run, result, out="s3://bucket/report")
    assert list(tmp_path.iterdir()) == []


def test_a_result_of_another_model_is_refused_and_one_that_does_not_say_is_taken(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    run, result = read_run(finished[0]), finished[1]
    cells = ad.read_zarr(result)
    del cells.uns["scamac_details"]["identity"]
    cells.write_h5ad(tmp_path / "older.h5ad")
    read_result(result, run, None, None)
    run.model.clusters.centers.mul_(2)
    read_result(tmp_path / "older.h5ad", run, None, None)
    with pytest.raises(InputError, match="is a result of another model"):
        read_result(result, run, None, None)


def data_of(folder: Path) -> str:
    """Find all figures and cells of a page."""
    page = (folder / "report.html").read_text()
    found = re.search('<script type="application/json" id="report-data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
def test_a_run_and_a_result_in_a_bucket_are_reported_on_as_on_a_disk(
    finished: tuple[Path, Path], written: Path, bucket: str, tmp_path: Path
) -> None:
    run, result = upload(finished[0], f"{bucket}/atlas.run"), upload(finished[1], f"{bucket}/atlas.result.zarr")
    report(run, result, label="odd", batch_key="donor", layout="tsne", out=tmp_path / "report")
    assert data_of(tmp_path / "report") == data_of(written)
    assert default_place(run) == Path("atlas.run.report")


@pytest.mark.parametrize("asked", [{"label": "n_counts"}, {"batch_key": "n_counts"}])
def test_a_column_of_measurements_is_refused_as_labels_or_batches(
    finished: tuple[Path, Path], tmp_path: Path, asked: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = finished
    cells = ad.read_zarr(result)
    cells.obs["n_counts"] = np.arange(cells.n_obs) + 0.5
    cells.write_h5ad(tmp_path / "measured.h5ad")
    monkeypatch.setattr(gather, "MOST_LEVELS", 100)
    with pytest.raises(InputError, match="'n_counts' has 300 different values"):
        report(run, tmp_path / "measured.h5ad", out=tmp_path / "report", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "report").exists()


def test_of_very_many_crossed_batches_the_largest_are_counted_and_the_others_told(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, result = finished
    cells = ad.read_zarr(result)
    draw = np.random.default_rng(0)
    one, other = np.sort(draw.integers(0, 20, 300)), draw.integers(0, 20, 300) ** 2 // 19
    cells.obs["chip"], cells.obs["day"] = one, other
    cells.write_h5ad(tmp_path / "crossed.h5ad")
    monkeypatch.setattr(gather, "MOST_LEVELS", 60)
    facts = gather.gather(run, tmp_path / "crossed.h5ad", batch_key="chip,day")
    found = check(facts)
    assert facts.result is not None
    counts = np.sort(np.unique(20 * one + other, return_counts=True)[1])[::-1]
    n_all, n_out = len(counts), int(counts[60:].sum())
    assert n_all > 120
    assert facts.result.crossed(facts.result.batches).shape == (4, 60)  # type: ignore[arg-type]  # there are some
    assert _left_out(facts.result) == [
        f"There are {n_all} batches of chip,day. The 60 with the most cells are counted; the others, with {n_out} cells "
        f"({n_out / 300:.1%}), are left out here and in the checks, and grey in the map."
    ]
    assert any(f"60 largest of {n_all} batches of chip,day" in line for _, line in lines(facts, found))


def test_no_part_of_the_package_hides_a_function_of_the_public_face() -> None:
    for name in scamac_scale.__all__:
        assert name == "tl" or importlib.util.find_spec(f"scamac_scale.{name}") is None, name
