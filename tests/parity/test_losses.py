"""Every loss equals the loops of the reference."""

from __future__ import annotations

import pytest
import torch

from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS, atlas_similarity
from scamac_scale.ops.similarity import gram_matrices, pair_means, unit_rows
from tests.parity import reference
from tests.support.mathematics import assert_exact, memberships, normal

X, OUTPUT = normal(1, 7, 9), normal(2, 7, 9)
COUNTS = X.abs().mul(2).round()
Z, C = normal(3, 7, 4), normal(4, 3, 4)
U, H = memberships(5, 7, 3), normal(6, 7, 3).abs()


def test_sum_over_genes_is_eq_5_as_printed() -> None:
    expected = reference.squared_error_per_cell(X.numpy(), OUTPUT.numpy())
    assert_exact(RECONSTRUCTIONS["sum_genes"](X, OUTPUT), expected)


def test_mean_is_eq_5_over_the_number_of_genes() -> None:
    expected = reference.squared_error_per_cell(X.numpy(), OUTPUT.numpy()) / 9
    assert_exact(RECONSTRUCTIONS["mean"](X, OUTPUT), expected)


def test_poisson_is_the_mean_deviance_of_counts() -> None:
    expected = reference.poisson_deviance(COUNTS.numpy(), OUTPUT.numpy())
    assert_exact(RECONSTRUCTIONS["poisson"](COUNTS, OUTPUT), expected)
    found = RECONSTRUCTIONS["poisson"](blocks(COUNTS), blocks(OUTPUT), SHARE)
    assert_exact(found.sum(), expected)


def test_clustering_sum_is_eq_12_and_mean_is_it_over_the_cells() -> None:
    expected = reference.clustering_loss(Z.numpy(), C.numpy(), U.numpy(), H.numpy())
    assert_exact(CLUSTERINGS["sum"](Z, C, U, H), expected)
    assert_exact(CLUSTERINGS["mean"](Z, C, U, H), expected / 7)


@pytest.mark.parametrize("form", SIMILARITY_LOSSES)
def test_similarity_is_eq_15_over_pairs_and_as_printed_with_the_paper_scaling(form: str) -> None:
    printed = reference.similarity_loss(U.numpy(), Z.numpy())
    value = SIMILARITY_LOSSES[form](U, Z)
    assert_exact(value * SIMILARITY_SCALINGS["paper"](7), printed)
    assert_exact(value * SIMILARITY_SCALINGS["pairs"](7), printed / 7)


# In training each loss is a sum over the blocks of a batch: blocks of 4 and 3 cells, the last row of the second fills it up.
SHARE = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.0]]).double() / 7


def blocks(cells: torch.Tensor) -> torch.Tensor:
    return torch.cat([cells, torch.full_like(cells[:1], 5.0)]).view(2, 4, *cells.shape[1:])


@pytest.mark.parametrize("form", ["mean", "sum_genes"])
def test_blocks_add_up_to_eq_5(form: str) -> None:
    found = RECONSTRUCTIONS[form](blocks(X), blocks(OUTPUT), SHARE)
    expected = reference.squared_error_per_cell(X.numpy(), OUTPUT.numpy())
    assert found.shape == (2,)
    assert_exact(found.sum(), expected / 9 if form == "mean" else expected)


@pytest.mark.parametrize("form", CLUSTERINGS)
def test_blocks_add_up_to_eq_12(form: str) -> None:
    z, u, h = (blocks(cells).flatten(0, 1) for cells in (Z, U, H))
    found = CLUSTERINGS[form](z, C, u, h, SHARE)
    expected = reference.clustering_loss(Z.numpy(), C.numpy(), U.numpy(), H.numpy())
    assert found.shape == (2,)
    assert_exact(found.sum(), expected / 7 if form == "mean" else expected)


def test_blocks_that_are_all_cells_add_up_to_eq_15() -> None:
    pairs = pair_means(gram_matrices(unit_rows(U), unit_rows(Z)))
    found = atlas_similarity(blocks(U).flatten(0, 1), blocks(Z).flatten(0, 1), pairs, SHARE)
    assert found.shape == (2,)
    assert_exact(found.sum(), reference.similarity_loss(U.numpy(), Z.numpy()) / 7)
