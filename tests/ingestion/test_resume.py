"""What goes on and what does not: other settings, another input, a complete store. Kills are in ``tests/faults``."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.durable.atomic import partial_folder
from scamac_scale.errors import OutputError, ResumeError, StoreError
from scamac_scale.ingestion import resume
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.statistics import measure
from scamac_scale.simulation.drawn import simulate
from scamac_scale.store.journal import Journal
from scamac_scale.store.reader import StoreReader
from tests.support.failing import contents

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad

CONFIG = IngestConfig(n_genes=60, block_cells=50, shuffle_bytes=9000)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop(data: Path, out: Path, monkeypatch: pytest.MonkeyPatch, config: IngestConfig = CONFIG) -> None:
    """Ingest, and be interrupted when all is dealt."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "scamac_scale.store.shuffle.RowShuffler.rows", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            ingest(data, out, config)
    assert names(partial_folder(out)) == [
        *("buckets", "census.npz", "data", "dealt.npz", "indices", "measured.npz", "new", "plan.json")
    ]


def test_an_interrupted_ingest_goes_on_without_reading_again(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = contents(ingest(tiny_atlas, tmp_path / "b.zarr", CONFIG))
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    monkeypatch.setattr("scamac_scale.ingestion.raw.RawMatrix.read_block", None)
    ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)
    assert contents(tmp_path / "a.zarr") == expected
    assert names(tmp_path) == ["a.zarr", "b.zarr"]


def test_without_resume_it_begins_anew(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    with caplog.at_level(logging.INFO):
        ingest(tiny_atlas, tmp_path / "a.zarr", replace(CONFIG, n_genes=30))
    assert "what a stopped run has left is removed" in caplog.text
    assert StoreReader(tmp_path / "a.zarr").n_genes == 30
    assert names(tmp_path) == ["a.zarr"]


def test_with_nothing_there_it_begins(tiny_atlas: Path, tmp_path: Path) -> None:
    ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)
    assert StoreReader(tmp_path / "a.zarr").n_genes == 60


def test_other_settings_are_refused_and_what_is_done_stays(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    before = contents(partial_folder(tmp_path / "a.zarr"))
    with pytest.raises(
        ResumeError, match=r"config\.n_genes=30 \(it was 60\), config\.seed=4 \(it was 0\)\. Ask"
    ) as raised:
        ingest(tiny_atlas, tmp_path / "a.zarr", replace(CONFIG, n_genes=30, seed=4), resume=True)
    assert raised.value.exit_code == 2
    assert contents(partial_folder(tmp_path / "a.zarr")) == before
    ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)


def test_a_changed_file_is_refused(tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = shutil.copy(tiny_atlas, tmp_path / "x.h5ad")
    stop(data, tmp_path / "a.zarr", monkeypatch)
    os.utime(data, ns=(1, 1))
    with pytest.raises(ResumeError, match=r"input\.modified_ns=1 \(it was \d+\)\."):
        ingest(data, tmp_path / "a.zarr", CONFIG, resume=True)


def test_a_changed_chunk_of_a_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = simulate(tmp_path / "x.zarr", 300, n_genes=100)
    stop(data, tmp_path / "a.zarr", monkeypatch)
    os.utime(data / "X" / "data" / "c" / "0", ns=(1, 1))
    with pytest.raises(ResumeError, match="files='"):
        ingest(data, tmp_path / "a.zarr", CONFIG, resume=True)


def test_an_atlas_in_memory_cannot_be_resumed(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="write a file"):
        ingest(tiny_adata, tmp_path / "a.zarr", CONFIG, resume=True)
    assert names(tmp_path) == []


def test_a_complete_store_is_left_as_it_is(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    out = ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG)
    number = out.stat().st_ino
    with caplog.at_level(logging.INFO):
        assert ingest(tiny_atlas, out, CONFIG, resume=True) == out
        assert ingest(tiny_atlas, out, CONFIG, resume=True, overwrite=True) == out
    assert caplog.text.count("is complete already") == 2
    assert out.stat().st_ino == number
    with pytest.raises(ResumeError, match=r"is complete, and of another ingest: config\.n_genes=30 \(it was 60\)"):
        ingest(tiny_atlas, out, replace(CONFIG, n_genes=30), resume=True)
    ingest(tiny_atlas, out, replace(CONFIG, n_genes=30), resume=True, overwrite=True)
    assert StoreReader(out).n_genes == 30
    assert names(tmp_path) == ["a.zarr"]


def test_the_rest_of_an_ingest_that_was_killed_with_its_store_in_place_is_removed(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    partial_folder(tmp_path / "a.zarr").rename(tmp_path / "rest")
    ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG)
    (tmp_path / "rest").rename(partial_folder(tmp_path / "a.zarr"))
    ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)
    assert names(tmp_path) == ["a.zarr"]


def test_another_folder_is_not_taken_for_a_store(tiny_atlas: Path, tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(OutputError, match="already there"):
        ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)


@pytest.mark.slow
def test_a_damaged_store_is_only_replaced_when_asked(tiny_atlas: Path, tmp_path: Path) -> None:
    out = ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG)
    (out / "X" / "data" / "c" / "0").unlink()
    with pytest.raises(StoreError):
        ingest(tiny_atlas, out, CONFIG, resume=True)
    ingest(tiny_atlas, out, CONFIG, resume=True, overwrite=True)
    StoreReader(out).close()


@pytest.mark.parametrize("name", ["plan.json", "census.npz", "measured.npz", "dealt.npz"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04{"])
@pytest.mark.slow
def test_damaged_notes_are_refused(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    partial = partial_folder(tmp_path / "a.zarr")
    (partial / name).write_bytes(content)
    if name == "census.npz":
        (partial / "measured.npz").unlink()
    with pytest.raises(ResumeError, match="run again without resume"):
        ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)
    assert partial.is_dir()


@pytest.mark.parametrize("change", ["shorter", "gone"])
@pytest.mark.slow
def test_a_bucket_that_lacks_rows_is_refused(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    stop(tiny_atlas, tmp_path / "a.zarr", monkeypatch)
    bucket = partial_folder(tmp_path / "a.zarr") / "buckets" / "1.npy"
    os.truncate(bucket, 100) if change == "shorter" else bucket.unlink()
    with pytest.raises(ResumeError, match="is not as it was left"):
        ingest(tiny_atlas, tmp_path / "a.zarr", CONFIG, resume=True)


@pytest.mark.slow
def test_an_old_store_in_the_place_of_the_new_one_is_not_taken_for_it(
    tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after the names were exchanged, and the new store was removed then."""
    expected = contents(ingest(tiny_atlas, tmp_path / "b.zarr", CONFIG))
    out = ingest(tiny_atlas, tmp_path / "a.zarr", replace(CONFIG, seed=1))
    with monkeypatch.context() as patch:
        patch.setattr("scamac_scale.durable.atomic.flush_tree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(tiny_atlas, out, CONFIG, overwrite=True)
    partial = partial_folder(out)
    assert (partial / "complete.json").is_file()
    shutil.rmtree(partial / "new")
    out.rename(partial / "new")
    ingest(tiny_atlas, out, CONFIG, resume=True)
    assert contents(out) == expected


@pytest.mark.parametrize("kind", ["counts", "linear", "log"])
def test_what_the_passes_found_comes_back_from_the_notes_exactly(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    values = tiny_adata.X.toarray().astype(np.float64)
    tiny_adata.X = {"counts": values, "linear": values * 13.7, "log": np.log1p(values * 0.9)}[kind]
    with open_raw(tiny_adata) as raw:
        expected = measure(raw, CONFIG)
        journal = Journal(tmp_path, tmp_path / "a.zarr")
        resume.measured(raw, CONFIG, journal, LocalEngine(CONFIG.block_cells))
        monkeypatch.setattr(LocalEngine, "map", None)
        found = resume.measured(raw, CONFIG, journal, LocalEngine(CONFIG.block_cells))
        (tmp_path / "measured.npz").unlink()
        monkeypatch.undo()
        monkeypatch.setattr(resume, "take_census", None)
        from_census = resume.measured(raw, CONFIG, journal, LocalEngine(CONFIG.block_cells))
    for other in (found, from_census):
        assert other.gene_space == expected.gene_space
        np.testing.assert_array_equal(other.totals, expected.totals)
        assert (other.n_empty, other.n_stored, other.largest) == (
            *(expected.n_empty, expected.n_stored, expected.largest),
        )
        pd.testing.assert_frame_equal(other.var, expected.var, check_exact=True)


def test_the_command_line_says_what_it_does(
    tiny_atlas: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ingest", str(tiny_atlas), "--out", str(tmp_path / "a.zarr"), "--resume", "--json"]
    for _ in range(2):
        assert main(command) == 0
    captured = capsys.readouterr()
    assert "a.zarr is complete already" in captured.err
    assert json.loads(captured.out.partition("}\n{")[0] + "}")["n_cells"] == 300
    assert main([*command, "--ingest.seed", "1"]) == 2
