from __future__ import annotations

import pytest
import torch

from scamac_scale.errors import ShapeError
from scamac_scale.losses import similarity
from scamac_scale.losses.similarity import SIMILARITY_LOSSES, SimilarityLoss, atlas_similarity, auto_similarity
from scamac_scale.ops.similarity import Codes, gram_matrices, pair_means, unit_rows
from tests.support.mathematics import memberships, normal


@pytest.mark.parametrize(("n_cells", "expected"), [(9, "direct"), (10, "gram"), (300, "gram")])
def test_auto_multiplies_in_the_smaller_way(monkeypatch: pytest.MonkeyPatch, n_cells: int, expected: str) -> None:
    called: list[str] = []
    for name in ("direct", "gram"):
        form = SIMILARITY_LOSSES[name]

        def record(u: torch.Tensor, z: torch.Tensor, name: str = name, form: SimilarityLoss = form) -> torch.Tensor:
            called.append(name)
            return form(u, z)

        monkeypatch.setattr(similarity, f"{name}_similarity", record)
    auto_similarity(memberships(1, n_cells, 5), normal(2, n_cells, 8))
    assert called == [expected]


def test_an_atlas_of_other_widths_is_refused() -> None:
    atlas = pair_means(gram_matrices(torch.ones(3, 2), torch.ones(3, 4)))
    with pytest.raises(ShapeError, match="with the same memberships and latent"):
        atlas_similarity(torch.ones(3, 5), torch.ones(3, 4), atlas)
    with pytest.raises(ShapeError, match="cells of u and z: got 2 and 3"):
        atlas_similarity(torch.ones(2, 2), torch.ones(3, 4), atlas)


def test_codes_give_the_loss_and_gradient_of_their_dense_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.stack([torch.randint(low, low + 4, (30,), generator=generator) for low in (0, 4)], dim=1)
    u = Codes(columns, torch.tensor([0.6, 0.8], dtype=torch.float64), 8)
    z = normal(1, 30, 3).requires_grad_()
    atlas = pair_means(gram_matrices(u.dense(), unit_rows(z).detach()))
    pairs = [(form(u, z), form(u.dense(), z)) for form in SIMILARITY_LOSSES.values()]
    pairs.append((atlas_similarity(u, z, atlas), atlas_similarity(u.dense(), z, atlas)))
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(value, z)[0] for value in (found, expected)))


def test_consensus_rows_of_a_binary_target_may_be_wider_than_the_latent() -> None:
    codes = torch.randint(0, 4, (30, 6), generator=torch.Generator().manual_seed(0))
    u = torch.nn.functional.one_hot(codes, 4).reshape(30, 24).double()
    z = normal(1, 30, 3)
    together = (codes[:, None] == codes[None]).double().mean(dim=2)
    z_hat = z / z.norm(dim=1, keepdim=True)
    expected = (together - z_hat @ z_hat.T).square().mean()
    torch.testing.assert_close(SIMILARITY_LOSSES["gram"](u, z), expected)
