"""An ingest of many files that is stopped goes on to the same bytes, and is not taken for one of other files."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from scamac_scale.config import IngestConfig
from scamac_scale.errors import OutputError, ResumeError
from scamac_scale.ingestion.pipeline import ingest
from tests.support.atlas import build_tiny_atlas
from tests.support.failing import contents
from tests.support.formats import write_zarr
from tests.support.many import cut

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = IngestConfig(n_genes=60, block_cells=50, shuffle_bytes=9000, join="outer")


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return cut(build_tiny_atlas(), tmp_path / "parts", 4)


def stop(parts: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Be interrupted when all is dealt, or after the first pass."""
    with monkeypatch.context() as patch:
        patch.setattr(where, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ingest(parts, out, CONFIG)


@pytest.mark.parametrize(
    ("where", "is_read_again"),
    [
        ("scamac_scale.store.shuffle.RowShuffler.rows", False),
        ("scamac_scale.ingestion.statistics.sum_moments", True),
    ],
)
@pytest.mark.slow
def test_it_goes_on_to_the_same_bytes(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, is_read_again: bool
) -> None:
    expected = contents(ingest(parts, tmp_path / "b.zarr", CONFIG))
    stop(parts, tmp_path / "a.zarr", monkeypatch, where)
    with monkeypatch.context() as patch:
        patch.setattr("scamac_scale.ingestion.passes.check_block", None)  # what was noted is not done again
        if not is_read_again:
            patch.setattr("scamac_scale.ingestion.raw.RawMatrix.read_block", None)
        found = contents(ingest(parts, tmp_path / "a.zarr", CONFIG, resume=True))
    assert found == expected
    assert ingest(parts, tmp_path / "a.zarr", CONFIG, resume=True) == tmp_path / "a.zarr"


def test_other_files_are_another_ingest(parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "a.zarr"
    stop(parts, out, monkeypatch, "scamac_scale.store.shuffle.RowShuffler.rows")
    copy = shutil.copy(parts[3], tmp_path / "copy.h5ad")
    for given, word in [
        (parts[:3], "n_inputs=3"),
        (parts[::-1], "input.0.name"),
        ([*parts[:3], copy], "input.3.name"),
        (parts[:1], "input"),
    ]:
        with pytest.raises(ResumeError, match=word):
            ingest(given, out, CONFIG, resume=True)
    os.utime(parts[2], ns=(1, 1))
    with pytest.raises(ResumeError, match=r"input\.2\.modified_ns=1"):
        ingest(parts, out, CONFIG, resume=True)


def test_a_complete_store_of_other_files_or_cells_is_not_taken_for_this_one(parts: list[Path], tmp_path: Path) -> None:
    cells = tmp_path / "cells.txt"
    cells.write_text("\n".join(f"cell{number:03d}" for number in range(150)))
    config = replace(CONFIG, cells=str(cells))
    out = ingest(parts, tmp_path / "a.zarr", config)
    assert ingest(parts, out, config, resume=True) == out
    with pytest.raises(ResumeError, match="of another ingest"):
        ingest(parts[:2], out, config, resume=True)
    cells.write_text("\n".join(f"cell{number:03d}" for number in range(1, 151)))
    with pytest.raises(ResumeError, match=r"input\.0\.taken"):
        ingest(parts, out, config, resume=True)


def test_no_input_is_replaced_by_the_store(parts: list[Path], tmp_path: Path) -> None:
    path = write_zarr(build_tiny_atlas()[:50].copy(), tmp_path / "a.zarr")
    with pytest.raises(OutputError, match="would replace the input"):
        ingest([parts[1], path], path, CONFIG, overwrite=True)


def test_values_in_memory_among_files_cannot_be_resumed(parts: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ResumeError, match="the AnnData in memory cannot be told"):
        ingest([parts[1], build_tiny_atlas()[:50].copy()], tmp_path / "a.zarr", CONFIG, resume=True)
