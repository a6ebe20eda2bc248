"""The test of a cluster: cut where there are two groups, and not for what one population shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.ingestion.flavors.sums import Moments
from scamac_scale.subclusters.cut import best_cuts
from scamac_scale.subclusters.genes import kind_of, variable_genes
from scamac_scale.subclusters.population import Cells, components, fit_population, fit_scale
from scamac_scale.subclusters.split import compare, find_split

N, G = 240, 100


def drawn(
    seed: int, share: float = 0.0, noise: str = "poisson", depth: str = "broad", *, gradient: float = 0.0
) -> Cells:
    rng = np.random.default_rng(seed)
    size = rng.lognormal(0, 0.6, N) if depth == "broad" else rng.choice([0.4, 1.6], N)
    rates = size[:, None] * rng.lognormal(0.3, 0.8, G)
    rates[np.ix_(np.arange(N) < share * N, np.arange(20))] *= 3
    rates *= np.exp(gradient * rng.standard_normal(N)[:, None] * (np.arange(G) < 40))
    if noise == "nb":
        rates = rates * rng.gamma(3, 1 / 3, rates.shape)
    values = rng.poisson(rates).astype(np.float64)
    return Cells(values, values.sum(axis=1), np.zeros(N, np.int64), True)


@pytest.mark.parametrize("noise", ["poisson", "nb"])
@pytest.mark.parametrize("depth", ["broad", "two"])
def test_one_population_is_not_cut(noise: str, depth: str) -> None:
    assert not any(find_split(drawn(seed, noise=noise, depth=depth), seed).verdict.is_split for seed in range(2))


def test_a_gradient_is_not_cut() -> None:
    found = find_split(drawn(1, gradient=0.7), 0)
    assert not found.verdict.is_split
    assert found.verdict.why


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_two_groups_are_cut_where_they_part(share: float) -> None:
    cells = drawn(3, share, "nb")
    found = find_split(cells, 0)
    assert found.verdict.is_split
    sides = found.side(cells) == found.side(cells)[0]
    assert (sides == (np.arange(N) < share * N)).mean() > 0.97


def test_a_difference_of_technical_batches_is_no_split() -> None:
    cells = drawn(4, 0.5)
    batches = (np.arange(N) >= N // 2).astype(np.int64)
    assert find_split(cells, 0).verdict.is_split
    assert not find_split(cells._replace(batches=batches), 0).verdict.is_split


def test_values_that_are_no_counts_are_cut_by_the_same_rule() -> None:
    def logged(cells: Cells) -> Cells:
        return cells._replace(values=np.log1p(cells.values / cells.depth[:, None] * 100), is_counts=False)

    assert find_split(logged(drawn(3, 0.5)), 0).verdict.is_split
    assert not find_split(logged(drawn(5)), 0).verdict.is_split


def test_a_split_is_the_same_each_time_and_of_each_cell_alone() -> None:
    cells = drawn(6, 0.4)
    one, two = find_split(cells, 0), find_split(cells, 0)
    assert one.verdict == two.verdict
    rows = np.arange(7, 50)
    np.testing.assert_array_equal(one.side(cells)[rows], two.side(cells.of(rows)))


def test_few_cells_and_equal_cells_are_not_cut() -> None:
    few = drawn(7).of(np.arange(6))
    assert find_split(few, 0).verdict.why == "too few cells"
    same = Cells(np.ones((50, 30)), np.full(50, 30.0), np.zeros(50, np.int64), True)
    assert not find_split(same, 0).verdict.is_split
    nothing = Cells(np.zeros((50, 30)), np.zeros(50), np.zeros(50, np.int64), True)
    assert not find_split(nothing, 0).verdict.is_split


def test_a_population_has_the_means_the_noise_and_the_correlations_of_its_cells() -> None:
    cells = drawn(8, noise="nb", gradient=0.5)
    scale = fit_scale(cells)
    population, _ = fit_population(cells, scale, scale.residuals(cells))
    again = population.draw(cells, np.random.default_rng(0))
    np.testing.assert_allclose(again.values.mean(axis=0), cells.values.mean(axis=0), rtol=0.35)
    seen = components(scale.residuals(cells), 3)[0]
    drawn_again = components(fit_scale(again).residuals(again), 3)[0]
    assert drawn_again[0] == pytest.approx(seen[0], rel=0.35)
    assert drawn_again[10] == pytest.approx(seen[10], rel=0.2)


@given(st.integers(0, 50), st.floats(4, 20), st.floats(0.1, 0.5))
def test_a_cut_finds_two_clouds_that_lie_far_apart(seed: int, distance: float, share: float) -> None:
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((200, 3))
    is_second = np.arange(200) < 200 * share
    points[is_second] += np.array([0.6, 0.8, 0.0]) * (distance + 3)
    best = max(best_cuts(points), key=lambda cut: cut.separation)
    sides = best.side(points).astype(bool)
    assert max((sides == is_second).mean(), (sides != is_second).mean()) > 0.97


def test_the_probability_is_that_of_a_further_draw() -> None:
    rng = np.random.default_rng(0)
    below = [compare(float(np.exp(rng.normal(1, 0.1))), np.exp(rng.normal(1, 0.1, 20)))[2] < 0.05 for _ in range(400)]
    assert 0.02 < np.mean(below) < 0.09


def test_counts_of_reads_are_cut_by_their_logarithms_and_molecules_as_counts() -> None:
    space = GeneSpace("counts", 1000.0, ("a", "b"), ("a",))
    assert kind_of(space, np.array([0.0, 5000.0, 90_000.0])) == "counts"
    assert kind_of(space, np.array([0.0, 400_000.0, 3e6])) == "linear"
    assert kind_of(space, np.zeros(3)) == "counts"
    assert kind_of(GeneSpace("log", None, ("a", "b"), ("a",)), np.array([1e6])) == "log"


def test_a_gene_that_varies_more_than_counts_do_is_chosen() -> None:
    cells = drawn(9, 0.5)
    shares = cells.values / cells.depth[:, None]
    moments = Moments(N, shares.sum(axis=0), (shares**2).sum(axis=0))
    chosen = variable_genes(moments, 20, "counts", cells.depth)
    assert (chosen < 20).sum() >= 12
    assert len(variable_genes(moments, 10_000, "counts", cells.depth)) <= G
