"""Whatever ends the process: a result is as it was, or has all markers; and nobody else's file is lost."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import anndata as ad
import pytest
import zarr

from scamac_scale import markers
from scamac_scale.cli.main import main
from scamac_scale.durable import faults
from scamac_scale.durable.atomic import scratch_folder
from scamac_scale.errors import InputError, LockedError, OutputError
from scamac_scale.marker_genes import writing
from tests.support.command_line import run_json
from tests.support.failing import contents, failures
from tests.support.markers import Case, make_case, space_of, write_result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("made"))


@pytest.fixture
def case(made: Case, tmp_path: Path) -> Case:
    """A result of its own."""
    shutil.copytree(made.out, tmp_path / "out.zarr")
    return Case(made.atlas, tmp_path / "out.zarr", made.raw, made.values)


@pytest.fixture(scope="module")
def h5ad(made: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_result(tmp_path_factory.mktemp("h5ad") / "out.h5ad", made.raw, space_of(made.raw))


class Killed(BaseException):
    """Ends a run at once, as far as Python goes."""


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def reach(point: str) -> None:
        if point == "markers.rename":
            raise Killed

    monkeypatch.setattr(writing, "reach", reach)
    monkeypatch.setattr("scamac_scale.durable.atomic.reach", reach)


@pytest.mark.usefixtures("killed")
def test_a_run_that_ends_before_the_last_step_leaves_the_zarr_as_it_was(case: Case, tmp_path: Path) -> None:
    before = contents(case.out)
    with pytest.raises(Killed):
        markers(case.out, case.atlas)
    assert contents(case.out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.markers.csv", "out.zarr"]


@pytest.mark.usefixtures("killed")
@pytest.mark.slow
def test_and_the_h5ad(made: Case, h5ad: Path, tmp_path: Path) -> None:
    out = Path(shutil.copy(h5ad, tmp_path / "out.h5ad"))
    before = out.read_bytes()
    with pytest.raises(Killed):
        markers(out, made.atlas)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.h5ad", "out.markers.csv"]


def test_what_was_killed_is_done_by_the_next_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real kill a hidden folder is left."""
    writing._mirror(case.out, case.out.with_name("left"), "uns/rank_genes_groups")
    partial = case.out.with_name(f".{case.out.name}.partial")
    partial.mkdir()
    case.out.with_name("left").rename(partial / "new")
    (partial / "new" / "zarr.json").write_text("{}")
    markers(case.out, case.atlas)
    assert "rank_genes_groups" in ad.read_zarr(case.out).uns
    assert not partial.exists()
    assert "markers.rename" in faults.POINTS


@pytest.mark.parametrize("number", [errno.ENOSPC])
def test_whatever_cannot_be_written_leaves_the_result_as_it_was(case: Case, tmp_path: Path, number: int) -> None:
    before = contents(case.out)
    for state, error in failures(lambda: markers(case.out, case.atlas, n_genes=2), tmp_path, number, step=29):
        if error is None:  # such as a link that is not made: then it is a copy
            assert "rank_genes_groups" in ad.read_zarr(case.out).uns
            shutil.rmtree(case.out)
            return
        assert isinstance(error, OutputError), (state.failed, error)
        assert contents(case.out) == before
        assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]


def test_arrays_are_not_copied_and_the_old_result_is_not_changed_by_way_of_links(case: Case, tmp_path: Path) -> None:
    chunk = next(path for path in (case.out / "obsm").rglob("*") if path.is_file() and path.name == "0")
    inode = chunk.stat().st_ino
    shutil.copytree(case.out, tmp_path / "kept.zarr", copy_function=os.link)
    before = contents(tmp_path / "kept.zarr")
    markers(case.out, case.atlas)
    markers(case.out, case.atlas, groupby="number")
    assert chunk.stat().st_ino == inode
    assert contents(tmp_path / "kept.zarr") == before
    assert ad.read_zarr(case.out).uns["rank_genes_groups"]["params"]["groupby"] == "number"


def test_a_file_system_without_links_gets_copies(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", link)
    writing._mirror(case.out, tmp_path / "copy.zarr", "uns/scamac_details")
    before, found = contents(case.out), contents(tmp_path / "copy.zarr")
    assert found == {name: digest for name, digest in before.items() if not name.startswith("uns/scamac_details")}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.slow
def test_a_zarr_that_anndata_has_written_again_is_read_with_its_markers(case: Case, version: Any) -> None:
    """With its metadata in one place, which must tell of the new part."""
    result = ad.read_zarr(case.out)
    shutil.rmtree(case.out)
    with ad.settings.override(zarr_write_format=version):
        result.write_zarr(case.out)
    assert zarr.open_group(case.out, mode="r").metadata.consolidated_metadata is not None
    markers(case.out, case.atlas)
    assert "rank_genes_groups" in ad.read_zarr(case.out).uns
    assert "rank_genes_groups" in zarr.open_group(case.out, mode="r")["uns"]


def test_one_writer_at_a_time(case: Case) -> None:
    with scratch_folder(case.out), pytest.raises(LockedError, match="being written by another job"):
        markers(case.out, case.atlas)


def test_only_a_table_of_markers_is_replaced_by_the_csv(case: Case, tmp_path: Path) -> None:
    target = tmp_path / "out.markers.csv"
    markers(case.out, case.atlas)
    first = target.read_bytes()
    markers(case.out, case.atlas, groupby="number", n_genes=3)
    assert target.read_bytes() != first
    for text in ("mine\n1\n", ""):
        target.write_text(text)
        before = contents(case.out)
        with pytest.raises(OutputError, match=r"is already there, and no table of markers; .*--csv"):
            markers(case.out, case.atlas)
        assert target.read_text() == text
        assert contents(case.out) == before


def test_results_that_cannot_be_written_into_are_refused_before_any_work(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no result .*none.zarr"):
        markers(tmp_path / "none.zarr", case.atlas)
    with pytest.raises(OutputError, match=r"lies in object storage, .*copy it to a disk"):
        markers("s3://bucket/out.zarr", case.atlas)
    (tmp_path / "link.zarr").symlink_to(case.out)
    with pytest.raises(OutputError, match="is a link, and would be replaced"):
        markers(tmp_path / "link.zarr", case.atlas)
    (tmp_path / "file.zarr").write_text("")
    with pytest.raises(InputError, match=r"a .zarr is a folder, a .h5ad a file"):
        markers(tmp_path / "file.zarr", case.atlas)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(OutputError, match=r"holds no zarr\.json"):
        markers(tmp_path / "empty.zarr", case.atlas)
    with pytest.raises(InputError, match=r"must end in .zarr or .h5ad"):
        markers(case.atlas.with_suffix(".csv"), case.atlas)


def test_a_child_that_fails_says_why(made: Case, h5ad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(shutil.copy(h5ad, tmp_path / "out.h5ad"))
    before = out.read_bytes()
    monkeypatch.setattr(writing, "into_h5ad", ModuleType("scamac_scale.no_such_module"))
    with pytest.raises(OutputError, match=r"cannot be written: .*no_such_module.*It is as it was"):
        markers(out, made.atlas)
    assert out.read_bytes() == before


def test_names_with_slashes_are_written_as_paths_and_those_that_are_none_leave_the_shares_out(
    made: Case, h5ad: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import h5py
    import pandas as pd

    from scamac_scale.marker_genes.parts import write_part

    frame = pd.DataFrame({"T/NK": [0.5, 0.25], "B": [1.0, 0.0]}, index=["g1", "g2"])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_part(file, "pts", frame, {})
        write_part(file, "odd", frame.rename(columns={"T/NK": "B/"}), {})
        write_part(file, "nested", frame.rename(columns={"T/NK": "B/x"}), {})
        pd.testing.assert_frame_equal(ad.io.read_elem(file["pts"]), frame)
        assert set(file) == {"pts"}
    assert "odd is left out of the result: names such as 'B/' cannot be stored; the CSV has it" in caplog.text


# ------------------------------------------------------------------ the command


def test_the_command_ranks_writes_and_tells(case: Case, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    told = run_json(
        capsys,
        *("markers", str(case.out), "--input", str(case.atlas), "--groupby", "number", "--n-genes", "4"),
        *("--csv", str(tmp_path / "t.csv"), "--where", "number in [0, 1, 2]", "--method", "t-test_overestim_var"),
    )
    assert told["method"] == "t-test_overestim_var"
    assert [row["group"] for row in told["groups"]] == ["0", "1", "2"]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 13
    assert ad.read_zarr(case.out).uns["rank_genes_groups"]["names"].shape == (4,)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "--input must be given"),
        (("--input", "nowhere.h5ad"), 2, "there is no file or folder nowhere.h5ad"),
        (("--input", "ATLAS", "--where", "number == 0"), 2, "has 240 cells, and the input"),
        (("--input", "ATLAS", "--cells", "a", "--ingest.cells", "b"), 2, "--cells a and ingest.cells=b differ"),
        (("--input", "ATLAS", "--method", "wilcoxon"), 2, "t-test"),
        (("--input", "ATLAS", "--csv", "/proc/none.csv"), 4, "cannot be written"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_a_code(
    case: Case, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, told: str
) -> None:
    before = contents(case.out)
    given = [str(case.atlas) if word == "ATLAS" else word for word in arguments]
    assert main(["markers", str(case.out), *given]) == code
    message = capsys.readouterr().err
    assert told in message
    assert "Traceback" not in message
    assert contents(case.out) == before
