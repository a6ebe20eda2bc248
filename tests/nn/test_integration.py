from __future__ import annotations

import pytest
import torch

from scamac_scale.errors import ConfigError
from scamac_scale.nn.integration import Integration
from tests.support.mathematics import normal


def test_gate_of_a_cell_ignores_its_batch_mates() -> None:
    torch.manual_seed(0)
    integration = Integration(3).double()
    synergy = normal(1, 3, 9, 4)
    torch.testing.assert_close(integration(synergy[:, 4:5]), integration(synergy)[:, 4:5])


def test_gate_differs_between_scales_and_lies_between_zero_and_one() -> None:
    torch.manual_seed(0)
    gate = Integration(3).double()(normal(1, 3, 9, 4))
    assert ((gate > 0) & (gate < 1)).all()
    assert (gate.std(dim=0) > 0).all()


def test_normalising_before_pooling_would_make_the_gate_constant() -> None:
    torch.manual_seed(0)
    normalised = torch.nn.functional.layer_norm(normal(1, 3, 9, 4), (4,))
    gate = Integration(3).double()(normalised)
    torch.testing.assert_close(gate, torch.full_like(gate, 0.5))


def test_kernel_one_weighs_each_scale_by_itself() -> None:
    integration = Integration(1).double()
    synergy = normal(1, 3, 9, 4)
    expected = torch.sigmoid(integration.conv.weight.squeeze() * synergy.mean(dim=-1))
    torch.testing.assert_close(integration(synergy), expected)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ConfigError, match="integration_kernel=2"):
        Integration(2)
