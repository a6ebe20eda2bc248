"""U of Eq. (15) from the members: sums by landmarks equal those by cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scamac_scale.errors import StoreError
from scamac_scale.ranks.world import World
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.targets import ConsensusTarget, square_of_codes, target_from_plain

if TYPE_CHECKING:
    from pathlib import Path

N, M, D = 150, 12, 5
WEIGHTS = np.array([3.0, 1.0, 1.0, 0.5])


def drawn(path: Path | None = None) -> tuple[ConsensusTarget, np.ndarray]:
    """A target over landmarks of which the last but one has no cell, and the landmark of every cell."""
    rng = np.random.default_rng(0)
    of_cells = rng.integers(0, M - 1, N)
    of_cells[of_cells == M - 2] = M - 1
    codes = np.stack([rng.integers(0, size, M) for size in (4, 2, 6, 1)], axis=1)
    codes[0] = 3, 1, 5, 0  # every member has all its clusters
    table = CodeTable(N, M, path)
    table.write(np.arange(N), of_cells)
    table.flush()
    table.finish()
    table.known_digest = table.digest()
    return ConsensusTarget(table, codes, WEIGHTS, np.bincount(of_cells, minlength=M)), of_cells


def together(target: ConsensusTarget, of_cells: np.ndarray) -> np.ndarray:
    """(N, N) weighted share of members in which two cells fall together, by a loop over both."""
    found = np.zeros((N, N))
    for i, left in enumerate(of_cells):
        for j, right in enumerate(of_cells):
            is_same = target.codes[left] == target.codes[right]
            found[i, j] = (WEIGHTS * is_same).sum() / WEIGHTS.sum()
    return found


def test_square_is_the_sum_over_all_pairs_of_cells() -> None:
    target, of_cells = drawn()
    expected = (together(target, of_cells) ** 2).sum()
    np.testing.assert_allclose(float(target.uu_square), expected, rtol=1e-12)
    shares, ones = WEIGHTS / WEIGHTS.sum(), np.ones(N, dtype=np.int64)
    np.testing.assert_allclose(square_of_codes(target.codes[of_cells], shares, ones), expected, rtol=1e-12)


def test_rows_of_cells_multiply_to_the_share_of_members() -> None:
    target, of_cells = drawn()
    rows = np.random.default_rng(1).permutation(N)[:40]
    u = target.of(rows, torch.zeros(40, 2), None).dense().double().numpy()
    np.testing.assert_allclose(u @ u.T, together(target, of_cells)[np.ix_(rows, rows)], atol=1e-6)


def test_product_is_the_sum_over_all_cells() -> None:
    target, of_cells = drawn()
    z = np.random.default_rng(2).normal(size=(N, D))
    unit = np.zeros((M, D))
    expected = np.zeros((target.width, D))
    u = target.of(np.arange(N), torch.zeros(N, 2), None).dense().double().numpy()
    for cell, landmark in enumerate(of_cells):
        unit[landmark] += z[cell]
        for column in range(target.width):
            expected[column] += u[cell, column] * z[cell]
    found = target.product(torch.from_numpy(unit))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, expected, atol=1e-5)  # u is in float32


def test_a_target_comes_back_from_plain_data_and_its_file(tmp_path: Path) -> None:
    path = tmp_path / "codes"
    target, _ = drawn(path)
    again = target_from_plain(target.to_plain(), N, path, World())
    assert isinstance(again, ConsensusTarget)
    rows = np.arange(N)[::-3]
    ours, theirs = (one.of(rows, torch.zeros(50, 2), None).dense() for one in (again, target))
    assert torch.equal(ours, theirs)
    assert float(again.uu_square) == float(target.uu_square)
    for one in (target, again):
        one.close()


@pytest.mark.parametrize("damage", ["missing", "longer", "other codes", "no landmark"])
def test_a_file_that_is_not_what_was_written_is_refused(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "codes"
    target, _ = drawn(path)
    target.close()
    data = path.read_bytes()
    other = bytes([data[0] ^ 1]) + data[1:]
    path.write_bytes(
        {"longer": data + b"x", "other codes": other, "no landmark": bytes([M]) + data[1:]}.get(damage, data)
    )
    if damage == "missing":
        path.unlink()
    with pytest.raises(StoreError, match="start a new run"):
        target_from_plain(target.to_plain(), N, path, World())


@pytest.mark.parametrize(
    "damage",
    [
        {"codes": torch.zeros(M, 3, dtype=torch.int64)},
        {"codes": torch.full((M, 4), -1)},
        {"codes": torch.full((M, 4), M)},
        {"codes": torch.zeros(M, 4)},
        {"codes": torch.zeros(0, 4, dtype=torch.int64), "counts": torch.zeros(0, dtype=torch.int64)},
        {"counts": torch.full((M,), -1)},
        {"counts": torch.full((M,), N)},
        {"weights": torch.zeros(4, dtype=torch.float64)},
        {"weights": torch.full((4,), float("nan"), dtype=torch.float64)},
    ],
    ids=str,
)
def test_codes_of_no_consensus_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "codes"
    target, _ = drawn(path)
    target.close()
    with pytest.raises(ValueError, match="of no consensus"):
        target_from_plain({**target.to_plain(), **damage}, N, path, World())
