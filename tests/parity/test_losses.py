"""Every loss equals the loops of the reference."""

from __future__ import annotations

import pytest

from scamac_scale.losses.clustering import CLUSTERINGS
from scamac_scale.losses.reconstruction import RECONSTRUCTIONS
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SIMILARITY_SCALINGS
from tests.parity import reference
from tests.support.mathematics import assert_exact, memberships, normal

X, OUTPUT = normal(1, 7, 9), normal(2, 7, 9)
Z, C = normal(3, 7, 4), normal(4, 3, 4)
U, H = memberships(5, 7, 3), normal(6, 7, 3).abs()


def test_sum_over_genes_is_eq_5_as_printed() -> None:
    expected = reference.squared_error_per_cell(X.numpy(), OUTPUT.numpy())
    assert_exact(RECONSTRUCTIONS["sum_genes"](X, OUTPUT), expected)


def test_mean_is_eq_5_over_the_number_of_genes() -> None:
    expected = reference.squared_error_per_cell(X.numpy(), OUTPUT.numpy()) / 9
    assert_exact(RECONSTRUCTIONS["mean"](X, OUTPUT), expected)


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
