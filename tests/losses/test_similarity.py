from __future__ import annotations

import pytest
import torch

from scamac_scale.errors import ShapeError
from scamac_scale.losses import similarity
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, auto_similarity
from scamac_scale.ops.similarity import gram_matrices
from tests.mathematics import memberships, normal


@pytest.mark.parametrize(("n_cells", "expected"), [(9, "direct"), (10, "gram"), (300, "gram")])
def test_auto_multiplies_in_the_smaller_way(monkeypatch: pytest.MonkeyPatch, n_cells: int, expected: str) -> None:
    called: list[str] = []
    for name in ("direct", "gram"):
        form = SIMILARITY_LOSSES[name]

        def record(u: torch.Tensor, z: torch.Tensor, grams: object, name: str = name, form: object = form) -> object:
            called.append(name)
            return form(u, z, grams)  # type: ignore[operator]  # the loss itself

        monkeypatch.setattr(similarity, f"{name}_similarity", record)
    auto_similarity(memberships(1, n_cells, 5), normal(2, n_cells, 8))
    assert called == [expected]


def test_grams_of_other_widths_are_refused() -> None:
    grams = gram_matrices(torch.ones(3, 2), torch.ones(3, 4))
    with pytest.raises(ShapeError, match="make the grams from the same memberships"):
        SIMILARITY_LOSSES["gram"](torch.ones(3, 5), torch.ones(3, 4), grams)


def test_consensus_rows_of_a_binary_target_may_be_wider_than_the_latent() -> None:
    codes = torch.randint(0, 4, (30, 6), generator=torch.Generator().manual_seed(0))
    u = torch.nn.functional.one_hot(codes, 4).reshape(30, 24).double()
    z = normal(1, 30, 3)
    together = (codes[:, None] == codes[None]).double().mean(dim=2)
    z_hat = z / z.norm(dim=1, keepdim=True)
    expected = (together - z_hat @ z_hat.T).square().mean()
    torch.testing.assert_close(SIMILARITY_LOSSES["gram"](u, z), expected)
