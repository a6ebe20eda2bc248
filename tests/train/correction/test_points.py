"""Components of cells lie in the order of the passes, whoever brings them and wherever they lie."""

from __future__ import annotations

import shutil
from contextlib import closing
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scamac_scale.config import CorrectionConfig
from scamac_scale.durable.rows import HeldRows, RowFile
from scamac_scale.errors import OutputError
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.ops.harmony import Design, Layer, Reference
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.correction import points as places
from scamac_scale.train.correction.harmony import Harmony
from scamac_scale.train.correction.points import N_BLOCKS, Points, block_of, open_points

if TYPE_CHECKING:
    from pathlib import Path

N_CELLS, WIDTH, CLUSTERS, SEED = 3000, 6, 12, 3
LEVELS = np.random.default_rng(0).integers(0, 3, (N_CELLS, 1)).astype(np.int32)


def filled(folder: Path, world: World = ALONE) -> Points:
    """Points whose first component is their row, brought in batches out of order."""
    plan = SweepPlan(N_CELLS, 100, world)
    points = Points(plan, LEVELS, WIDTH, SEED, folder)
    first, stop = plan.bounds
    z = np.random.default_rng(1).normal(size=(N_CELLS, WIDTH)).astype(np.float32)
    z[:, 1] += 3.0 * (np.arange(N_CELLS) % 2) + LEVELS[:, 0]
    z[:, 0] = np.arange(N_CELLS) / N_CELLS
    for start in range(first, stop, 100)[::-1]:
        rows = np.random.default_rng(start).permutation(np.arange(start, min(start + 100, stop)))
        points.write(rows, z[rows])
    return points


def rows_in_order(points: Points) -> list[list[np.ndarray]]:
    """Rows of each block of each segment, as the points lie."""
    return [
        [
            np.concatenate(
                [
                    np.empty(0, np.int64),
                    *(
                        np.round(points.z(*piece)[:, 0].numpy().astype(np.float64) * N_CELLS).astype(np.int64)
                        for piece in points.pieces(segment, block)
                    ),
                ]
            )
            for block in range(N_BLOCKS)
        ]
        for segment in range(points.segments)
    ]


def test_they_lie_by_segment_then_block_then_row(tmp_path: Path) -> None:
    found = rows_in_order(filled(tmp_path))
    edges = np.minimum(np.array([0, *SweepPlan(N_CELLS, 100).segment_ends]) * 100, N_CELLS)
    assert len(found) == len(edges) - 1 > 1
    for segment, (first, stop) in zip(found, pairwise(edges), strict=True):
        for block, rows in enumerate(segment):
            every = np.arange(first, stop)
            np.testing.assert_array_equal(rows, every[block_of(every, SEED) == block])


def test_places_run_through_and_pieces_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PIECE_CELLS", 7)
    points = filled(tmp_path)
    pieces = [
        piece
        for segment in range(points.segments)
        for block in range(N_BLOCKS)
        for piece in points.pieces(segment, block)
    ]
    assert [start for start, _ in pieces] == [0, *(stop for _, stop in pieces[:-1])]
    assert pieces[-1][1] == N_CELLS
    assert max(stop - start for start, stop in pieces) == 7


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_hold_the_segments_of_one_process(tmp_path: Path, size: int) -> None:
    alone = rows_in_order(filled(tmp_path))
    shared = [segment for rank in range(size) for segment in rows_in_order(filled(tmp_path, World(rank, size)))]
    assert len(shared) == len(alone)
    for ours, theirs in zip(shared, alone, strict=True):
        for mine, expected in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(mine, expected)


def test_levels_belong_to_their_cells(tmp_path: Path) -> None:
    points = filled(tmp_path)
    rows = np.concatenate([block for segment in rows_in_order(points) for block in segment])
    np.testing.assert_array_equal(points.levels(0, N_CELLS).numpy(), LEVELS[rows])


def test_what_is_corrected_stands_beside_what_was(tmp_path: Path) -> None:
    points = filled(tmp_path)
    before = points.z(0, N_CELLS).clone()
    assert torch.equal(points.corrected(0, N_CELLS), before)
    points.write_corrected(10, torch.zeros(5, WIDTH))
    assert torch.equal(points.z(0, N_CELLS), before)
    assert not points.corrected(10, 15).any()
    assert torch.equal(points.corrected(15, N_CELLS), before[15:])


def test_the_block_of_a_row_is_its_own_and_blocks_are_alike_in_size() -> None:
    rows = np.arange(100_000)
    found = block_of(rows, 5)
    for row in (0, 17, 99_999):
        assert block_of(np.array([row]), 5)[0] == found[row]
    assert (block_of(rows, 6) != found).mean() > 0.9
    assert np.abs(np.bincount(found, minlength=N_BLOCKS) / 5000 - 1).max() < 0.1
    for start in range(0, 100_000, 5000):  # of neighbours, too, as those of one donor are
        assert np.bincount(found[start : start + 5000], minlength=N_BLOCKS).min() > 150


def corrections(points: Points, **settings: int) -> tuple[list[Layer], Reference]:
    design = Design((3,), torch.from_numpy(np.bincount(LEVELS[:, 0])).double())
    start = torch.randn(CLUSTERS, WIDTH, generator=torch.manual_seed(0))
    return Harmony(points, design, CorrectionConfig(rounds=2, passes=2, **settings)).run(start)


def test_files_and_memory_give_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = filled(tmp_path)
    assert isinstance(held._z, HeldRows)
    layers, kept = corrections(held)
    monkeypatch.setattr(places, "HELD_BYTES", 0)
    with closing(filled(tmp_path)) as in_files:
        assert isinstance(in_files._z, RowFile)
        assert list(tmp_path.iterdir()) == []  # without a name: a kill leaves nothing
        others, other = corrections(in_files)
        assert torch.equal(held.corrected(0, N_CELLS), in_files.corrected(0, N_CELLS))
    assert len(layers) == len(others) == 2
    for layer, its in zip([*layers, kept], [*others, other], strict=True):
        for part, same in zip(layer, its, strict=True):
            assert torch.equal(part, same)


@pytest.mark.slow
def test_no_array_has_a_number_for_each_cell_and_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PIECE_CELLS", 32)
    monkeypatch.setattr(places, "HELD_BYTES", 0)
    sizes: list[int] = []

    class Measure(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            sizes.extend(
                part.numel()
                for part in (found if isinstance(found, list | tuple) else [found])
                if isinstance(part, torch.Tensor)
            )
            return found

    with closing(filled(tmp_path)) as points, Measure():
        corrections(points)
    assert len(sizes) > 1000
    assert max(sizes) == N_BLOCKS * CLUSTERS * WIDTH < N_CELLS  # T of each block: neither N nor N x Q


def test_a_disk_without_room_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HELD_BYTES", 0)
    n_bytes = 2 * 4 * N_CELLS * WIDTH
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": n_bytes - 1})())
    with pytest.raises(OutputError, match="needs up to"):
        Points(SweepPlan(N_CELLS, 100), LEVELS, WIDTH, SEED, tmp_path)


def test_files_are_closed_whatever_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "HELD_BYTES", 0)
    with pytest.raises(KeyError), open_points(SweepPlan(N_CELLS, 100), LEVELS, WIDTH, SEED, tmp_path) as points:  # noqa: PT012
        files = points._z, points._corrected
        raise KeyError
    for file in files:
        assert isinstance(file, RowFile)
        assert file._writer.closed
