from __future__ import annotations

import torch

from scamac_scale.config import ModelConfig
from scamac_scale.nn.synergy import Bank, Synergy
from scamac_scale.ops.attention import landmark_attention
from tests.support.mathematics import normal


def make_synergy(form: str = "landmark") -> Synergy:
    torch.manual_seed(0)
    return Synergy(ModelConfig(latent_width=4, spatial_form=form)).double()


def test_maps_are_shared_by_the_scales() -> None:
    synergy = make_synergy()
    y, product, bank = normal(1, 1, 6, 4), normal(2, 1, 4, 4), normal(3, 2, 1, 5, 4)
    stacked = synergy(y.expand(3, -1, -1), product.expand(3, -1, -1), Bank(*bank.expand(2, 3, 5, 4)))
    for scale in stacked:
        torch.testing.assert_close(scale, synergy(y, product, Bank(*bank))[0])


def test_a_bank_of_the_batch_and_self_counts_the_cell_twice() -> None:
    y = normal(1, 3, 6, 4)
    product = normal(2, 3, 4, 4)
    landmark, batch = make_synergy(), make_synergy("batch")
    with_bank = landmark(y, product, landmark.project_bank(y))
    assert (with_bank - batch(y, product)).abs().max() > 1e-6
    torch.testing.assert_close(landmark(y, product), batch(y, product))


def test_channel_sum_adds_up_over_cells() -> None:
    synergy = make_synergy().float()
    y = normal(1, 3, 6, 4).float()
    total = synergy.channel_sum(y)
    # Products in float32, 7 digits.
    torch.testing.assert_close(sum(synergy.channel_sum(y[:, [i]]) for i in range(6)), total, rtol=1e-5, atol=1e-5)


def test_a_spatial_result_that_is_known_takes_the_place_of_the_attention() -> None:
    synergy = make_synergy()
    y, product = normal(1, 3, 6, 4), normal(2, 3, 4, 4)
    bank = synergy.project_bank(normal(3, 3, 9, 4))
    own = synergy.project_bank(y)
    known = landmark_attention(synergy.queries(y), *bank, *own)
    torch.testing.assert_close(synergy(y, product, spatial=known), synergy(y, product, bank))
