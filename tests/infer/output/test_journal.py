"""The journal of a prediction, and the rows beside it, may be damaged, or of a stranger."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scamac_scale.durable.atomic import partial_folder
from scamac_scale.durable.plain import sealed
from scamac_scale.errors import ConfigError, OutputError, ResumeError
from scamac_scale.infer.output.already_there import is_finished
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.journal import FILE, Progress, read_progress, write_progress
from scamac_scale.infer.output.table import LATENT_KEY, MEMBERSHIP_KEY, Table

if TYPE_CHECKING:
    from pathlib import Path

OBS = pd.DataFrame(index=[f"cell{index}" for index in range(5)])
LABELS = np.array([0, 1, 1, 0, 1])
BLOCKS = {
    LATENT_KEY: np.arange(10, dtype=np.float32).reshape(5, 2),
    MEMBERSHIP_KEY: np.eye(2, dtype=np.float32)[LABELS],
}
JOB = "0123456789abcdef" * 2
PROGRESS = Progress(JOB, {"model": "a"}, 1, 16384, 1, "")


def opened(path: Path, *, resume: bool = True) -> DiskOutput:
    return DiskOutput(path, Table(OBS, ["g"], dict.fromkeys(BLOCKS, 2)), {"model": "a"}, resume=resume)


def begin(path: Path) -> Path:
    """Write all rows and an entry of the journal, then stop before the end; the folder that stays."""
    with suppress(KeyboardInterrupt), opened(path) as output:
        output.write(np.arange(5), LABELS, BLOCKS)
        output.turns = 1
        output._save()
        raise KeyboardInterrupt
    return partial_folder(path)


def test_a_journal_comes_back(tmp_path: Path) -> None:
    for progress in (PROGRESS, replace(PROGRESS, assembled=f"{JOB}.zarr")):
        write_progress(tmp_path, progress)
        assert read_progress(tmp_path) == progress


def test_any_flip_of_a_bit_in_a_journal_is_found(tmp_path: Path) -> None:
    write_progress(tmp_path, PROGRESS)
    content = (tmp_path / FILE).read_bytes()
    for at in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[at // 8] ^= 1 << at % 8
        (tmp_path / FILE).write_bytes(flipped)
        assert read_progress(tmp_path) is None


@pytest.mark.parametrize(
    "change",
    [
        {"turns": -1},
        {"turns": "3"},
        {"turns": True},
        {"n_ranks": 0},
        {"turn_cells": 0},
        {"belongs": []},
        {"job": "../../elsewhere"},
        {"job": 3},
        {"assembled": "../../elsewhere.zarr"},
        {"assembled": "/etc"},
        {"assembled": None},
        {"more": 1},
    ],
)
def test_a_journal_that_nobody_writes_is_none(tmp_path: Path, change: dict[str, Any]) -> None:
    (tmp_path / FILE).write_text(sealed({**asdict(PROGRESS), **change}))
    assert read_progress(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps(asdict(PROGRESS)))  # of before the seal
    assert read_progress(tmp_path) is None


@pytest.mark.parametrize("suffix", [".zarr", pytest.param(".h5ad", marks=pytest.mark.slow)])
def test_a_prediction_goes_on_after_its_journal(tmp_path: Path, suffix: str) -> None:
    begin(tmp_path / f"out{suffix}")
    with opened(tmp_path / f"out{suffix}") as output:
        assert output.turns == 1
        path = output.finish(2, {})
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    np.testing.assert_array_equal(found.obsm[LATENT_KEY], BLOCKS[LATENT_KEY])


@pytest.mark.parametrize("damage", ["hole", "not finite", "label", "cut"])
def test_rows_that_are_not_what_was_written_do_not_come_into_a_result(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "out.zarr"
    rows = begin(path) / "cells.rows"
    kept = np.fromfile(rows, np.float32).reshape(5, 5)
    if damage == "hole":
        kept[3] = 0  # as where nobody has written
    elif damage == "not finite":
        kept[3, 0] = np.inf
    elif damage == "label":
        kept.view(np.int32)[3, 4] = 7
    rows.write_bytes(kept.tobytes()[: -20 if damage == "cut" else None])
    with pytest.raises((ResumeError, OutputError)), opened(path) as output:
        output.finish(2, {})
    assert not path.exists()


@pytest.mark.parametrize("what", ["link", "pipe"])
def test_nothing_outside_of_the_folder_is_written(tmp_path: Path, what: str) -> None:
    path = tmp_path / "out.zarr"
    rows = begin(path) / "cells.rows"
    precious = tmp_path / "precious"
    precious.write_text("precious")
    rows.unlink()
    rows.symlink_to(precious) if what == "link" else os.mkfifo(rows)
    with opened(path) as output:
        assert output.turns == 0  # begun anew
        output.write(np.arange(5), LABELS, BLOCKS)
        output.finish(2, {})
    assert precious.read_text() == "precious"
    np.testing.assert_array_equal(ad.read_zarr(path).obsm[LATENT_KEY], BLOCKS[LATENT_KEY])


def test_a_link_in_the_place_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "out.zarr"
    begin(path).rename(tmp_path / "elsewhere")
    before = sorted(entry.name for entry in (tmp_path / "elsewhere").iterdir())
    partial_folder(path).symlink_to(tmp_path / "elsewhere")
    with opened(path) as output:
        assert output.turns == 0
        output.write(np.arange(5), LABELS, BLOCKS)
        output.finish(2, {})
    assert sorted(entry.name for entry in (tmp_path / "elsewhere").iterdir()) == before


def test_what_is_no_prediction_is_no_finished_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.h5ad")
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "zarr.json").write_text("[" * 10**5)
    for name in ("out.h5ad", "out.zarr"):
        assert not is_finished(tmp_path / name, {})


@pytest.mark.parametrize("text", ["[" * 10**5, "[]", '"a"', "{", '{"model": [1]}'])
def test_an_identity_that_makes_no_sense_is_of_other_work(tmp_path: Path, text: str) -> None:
    path = tmp_path / "out.zarr"
    with opened(path) as output:
        output.write(np.arange(5), LABELS, BLOCKS)
        output.finish(2, {"identity": text})
    if text == '{"model": [1]}':
        with pytest.raises(ConfigError, match="another model"):
            is_finished(path, {"model": "a"})
    else:
        assert not is_finished(path, {"model": "a"})
