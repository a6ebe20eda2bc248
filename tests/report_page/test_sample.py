import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from scamac_scale.config import Layout
from scamac_scale.evaluation import Levels
from scamac_scale.host.places import code_folder
from scamac_scale.report_page.sample import FEW_CELLS, LAYOUTS, draw_by_root, lay_out, quotas
from scamac_scale.report_page.shown import MOST, color, shown

A_LIBRARY = """
import numba
where = numba.njit(cache=True)(lambda x: x)._cache.cache_path
class UMAP:
    def __init__(self, **settings):
        pass
    def fit_transform(self, points):
        return points[:, :2]
"""
"""Has a kernel that is made when it is imported, as umap."""


def test_small_clusters_keep_all_cells_before_large_ones_fill_the_picture() -> None:
    counts = np.array([20, 1_000_000, 10_000, 0])
    taken = quotas(counts, 2_000)
    assert taken[0] == 20
    assert taken[3] == 0
    assert taken[1] / taken[2] == pytest.approx(10, rel=0.25)
    assert 1_990 <= taken.sum() <= 2_000


def test_a_sample_is_in_order_and_the_same_again() -> None:
    codes = np.random.default_rng(0).integers(0, 5, 3_000)
    rows = draw_by_root(codes, 500)
    assert (np.diff(rows) > 0).all()
    assert 490 <= len(rows) <= 500
    np.testing.assert_array_equal(rows, draw_by_root(codes, 500))
    assert len(draw_by_root(codes, 5_000)) == 3_000


def test_every_layout_that_may_be_asked_for_is_there() -> None:
    assert set(LAYOUTS) == set(get_args(Layout))


@pytest.mark.parametrize("n_cells", [1, 2, FEW_CELLS])
def test_a_few_cells_lie_by_their_principal_components(n_cells: int) -> None:
    points = np.random.default_rng(0).normal(size=(n_cells, 8)).astype(np.float32)
    found = lay_out(points, "umap")
    assert found.shape == (n_cells, 2)
    assert np.isfinite(found).all()


def test_kernels_of_umap_are_kept_where_ours_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "umap.py").write_text(A_LIBRARY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "umap", None)  # is put back, or taken away, after the test
    del sys.modules["umap"]
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "kept"))
    code_folder.cache_clear()
    lay_out(np.random.default_rng(0).normal(size=(20, 3)), "umap")
    code_folder.cache_clear()
    assert Path(sys.modules["umap"].where).is_relative_to(tmp_path / "kept")


@pytest.mark.slow
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_layout_keeps_clusters_apart_and_is_the_same_again(layout: str) -> None:
    codes = np.repeat([0, 1], 40)
    points = np.random.default_rng(0).normal(size=(80, 6)) + 20 * codes[:, None]
    found = lay_out(points, layout)
    centers = np.stack([found[codes == code].mean(axis=0) for code in (0, 1)])
    spread = max(found[codes == code].std() for code in (0, 1))
    assert np.linalg.norm(centers[0] - centers[1]) > spread
    np.testing.assert_array_equal(found, lay_out(points, layout))


def test_the_largest_are_shown_and_all_others_as_one() -> None:
    counts = np.arange(1, 3_001)
    levels = Levels([str(number) for number in range(3_000)], np.repeat(np.arange(3_000), counts))
    found = shown(levels)
    assert found.names[:2] == ["2950", "2951"]
    assert found.names[-1] == "others (2,950)"
    assert len(found.names) == len(found.colors) == MOST + 1
    assert found.counts.sum() == counts.sum()
    assert found.summed(counts)[-1] == counts[: 3_000 - MOST].sum()
    assert found.of(np.array([2999, 0, -1])).tolist() == [MOST - 1, MOST, MOST + 1]


def test_fifty_colors_are_all_unlike() -> None:
    assert len({color(number) for number in range(MOST)}) == MOST
