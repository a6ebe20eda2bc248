import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.nn.embed import EMBED_CELLS, embed_rows
from scamac_scale.nn.model import ScamacNetwork


@pytest.fixture(scope="module")
def network() -> ScamacNetwork:
    torch.manual_seed(0)
    made = ScamacNetwork(40, ModelConfig(encoder_width=24, latent_width=6, bank_cells=16), InputConfig())
    made.fusion.alpha.data.fill_(0.7)  # so that attention counts
    made.bank_cells.normal_()
    made.mean_product.normal_()
    made.refresh_bank()
    return made.eval()


@pytest.mark.parametrize("rows", [[5], list(range(100)), [99, 3, 50], list(range(1500))[::7]])
def test_a_latent_does_not_depend_on_its_company(network: ScamacNetwork, rows: list[int]) -> None:
    x = torch.randn(EMBED_CELLS + 500, 40, generator=torch.Generator().manual_seed(1))
    # vectorised exp and sums round the last float32 digit by the place of a row in its block
    torch.testing.assert_close(embed_rows(network, x[rows]), embed_rows(network, x)[rows], rtol=1e-5, atol=1e-6)


def test_padded_cells_do_not_come_back(network: ScamacNetwork) -> None:
    assert embed_rows(network, torch.randn(EMBED_CELLS + 1, 40)).shape == (EMBED_CELLS + 1, 6)


def test_in_batch_attention_sees_only_the_cells_of_the_batch() -> None:
    torch.manual_seed(0)
    made = ScamacNetwork(40, ModelConfig(encoder_width=24, latent_width=6, spatial_form="batch"), InputConfig()).eval()
    made.fusion.alpha.data.fill_(0.7)
    x = torch.randn(30, 40)
    with torch.no_grad():
        torch.testing.assert_close(embed_rows(made, x), made(x, frozen=True).latent)
