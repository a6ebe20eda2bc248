"""Every block of the network, and the whole of it, equals the loops of the reference."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from scamac_scale.config import InputConfig, ModelConfig
from scamac_scale.nn.model import ScamacNetwork
from tests.parity import reference
from tests.support.mathematics import assert_exact, normal

if TYPE_CHECKING:
    import numpy as np

N_GENES, N_CELLS, N_BANK = 9, 6, 5


def make_network(**settings: object) -> ScamacNetwork:
    """Float64, every parameter random (norms, alpha and biases too), bank refreshed."""
    config = ModelConfig(encoder_width=7, latent_width=4, bank_cells=N_BANK, **settings)
    network = ScamacNetwork(N_GENES, config, InputConfig()).double()
    with torch.no_grad():
        for index, parameter in enumerate(network.parameters()):
            parameter.copy_(normal(100 + index, *parameter.shape))
    network.bank_cells.copy_(normal(50, N_BANK, N_GENES))
    network.mean_product.copy_(normal(51, 3, 4, 4))
    network.refresh_bank()
    return network.eval()


def weights_of(network: ScamacNetwork) -> dict[str, np.ndarray]:
    renamed = {"projection.norm": "norm1", "synergy_norm": "norm2", "integration.conv.weight": "kernel"}
    weights = {}
    for name, parameter in network.named_parameters():
        for ours, printed in renamed.items():
            name = name.replace(ours, printed)
        for module in ("autoencoder.", "projection.", "synergy.", "fusion."):
            name = name.removeprefix(module)
        weights[name] = parameter.detach().numpy()
    weights["kernel"] = weights["kernel"].reshape(-1)
    return weights


FORMS = [
    pytest.param({}, ("leaky_relu", "linear", "linear"), id="default"),
    pytest.param(
        {
            "latent_activation": "leaky_relu",
            "output_activation": "leaky_relu",
            "spatial_form": "batch",
            "channel_form": "batch",
            "fusion": "gated_sum",
        },
        ("leaky_relu", "leaky_relu", "leaky_relu"),
        id="paper",
    ),
    pytest.param(
        {"encoder_activation": "linear", "integration_kernel": 1}, ("linear", "linear", "linear"), id="linear, kernel 1"
    ),
]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("settings", "activations"), FORMS)
def test_network_equals_the_reference(
    settings: dict[str, object], activations: tuple[str, str, str], frozen: bool
) -> None:
    network = make_network(**settings)
    x = normal(60, N_CELLS, N_GENES)
    expected = reference.network(
        x.numpy(),
        weights_of(network),
        activations=activations,
        fusion=str(settings.get("fusion", "residual")),
        bank=None if settings.get("spatial_form") == "batch" else network.bank_cells.numpy(),
        product=network.mean_product.numpy() if frozen or network.follows_product else None,
    )
    found = network(x, frozen=frozen)
    for name in found._fields:
        assert_exact(getattr(found, name), expected[name])


def test_synergy_and_gate_equal_the_reference() -> None:
    network = make_network(spatial_form="batch")
    x = normal(60, N_CELLS, N_GENES)
    expected = reference.network(
        x.numpy(), weights_of(network), activations=("leaky_relu", "linear", "linear"), fusion="residual"
    )
    normalised = network.projection.normalise(network(x).projected)
    synergy = network.synergy(normalised, network.synergy.channel_sum(normalised) / N_CELLS)
    assert_exact(synergy, expected["synergy"])
    assert_exact(network.integration(synergy), expected["gate"])


def test_channel_sum_over_cells_is_the_product_that_a_batch_uses() -> None:
    network = make_network(channel_form="batch")
    x = normal(60, N_CELLS, N_GENES)
    unfrozen = network(x, frozen=False).latent
    network.mean_product.copy_(network.channel_sum(x) / N_CELLS)
    assert_exact(network(x, frozen=True).latent, unfrozen.detach().numpy())


def test_the_gradient_through_a_followed_product_is_that_of_the_batch() -> None:
    x, weight = normal(60, N_CELLS, N_GENES), normal(61, N_CELLS, 4)
    gradients = []
    for form in ("batch", "atlas"):
        network = make_network(channel_form=form)
        with torch.no_grad():  # where the running mean is that of the batch, the gradients must agree
            network.mean_product.copy_(network.channel_sum(x) / N_CELLS)
        (network(x).latent * weight).sum().backward()
        gradients.append([parameter.grad.numpy() for parameter in network.parameters() if parameter.grad is not None])
    for ours, expected in zip(*gradients, strict=True):
        assert_exact(torch.from_numpy(ours), expected)
