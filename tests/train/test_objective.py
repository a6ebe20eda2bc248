import numpy as np
import pytest
import torch

from scamac_scale.config import LossConfig, PhaseConfig
from scamac_scale.errors import ConfigError
from scamac_scale.nn.clusters import clusters_at
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.consensus import Member
from scamac_scale.train.clusters.targets import ConsensusTarget


def members() -> tuple[Member, ...]:
    return (
        Member(0, "ward", np.array([0, 0, 1, 2]), 1.0),
        Member(0, "leiden", np.array([0, 1, 1, 1]), 3.0),
    )


def test_consensus_target_rows_have_unit_length_and_multiply_to_the_co_association() -> None:
    from scamac_scale.train.clusters.association import co_association

    table = CodeTable(4, 4)
    table.write(np.arange(4), np.arange(4))
    codes = np.stack([member.labels for member in members()], axis=1)
    target = ConsensusTarget(
        table, codes, np.array([member.weight for member in members()]), np.ones(4, dtype=np.int64)
    )
    u = target.of(np.array([2, 0, 3, 1]), torch.zeros(4, 2), None).dense().double().numpy()
    np.testing.assert_allclose((u**2).sum(axis=1), 1, rtol=1e-6)
    order = [2, 0, 3, 1]
    together = co_association(members())
    np.testing.assert_allclose(u @ u.T, together[np.ix_(order, order)], rtol=1e-6)
    np.testing.assert_allclose(float(target.uu_square), (together**2).sum(), rtol=1e-12)


def test_temperature_is_relative_or_absolute() -> None:
    z, c = torch.randn(50, 4), torch.randn(3, 4)
    absolute = clusters_at(c, z, LossConfig(temperature="absolute", gamma=0.7)).temperature
    assert absolute == 0.7
    relative = clusters_at(c, z, LossConfig(gamma=0.1)).temperature
    larger = clusters_at(10 * c, 10 * z, LossConfig(gamma=0.1)).temperature
    torch.testing.assert_close(larger, 10 * relative, rtol=0.02, atol=0)


def test_a_phase_refuses_caps_below_its_floor() -> None:
    with pytest.raises(ConfigError, match="max_steps=5 lies below min_steps=10"):
        PhaseConfig(epochs=1, min_steps=10, max_steps=5)


@pytest.mark.parametrize("bounds", [{"min_steps": 10}, {"max_steps": 5}])
def test_a_phase_refuses_bounds_of_epochs_that_it_does_not_have(bounds: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="bound a length in epochs, but epochs is null; set steps instead"):
        PhaseConfig(**bounds)
