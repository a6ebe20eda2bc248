import itertools

import pytest

from scamac_scale.config import PhaseConfig
from scamac_scale.errors import ConfigError
from scamac_scale.train.schedule import SCHEDULES, batch_cells_for, learning_rate_for, phase_steps


@pytest.mark.parametrize(
    ("n_cells", "batch_cells"), [(100, 256), (5_000, 256), (20_000, 512), (80_000, 1024), (10_000_000, 1024)]
)
def test_batch_grows_with_the_root_of_the_cells(n_cells: int, batch_cells: int) -> None:
    assert batch_cells_for(n_cells) == batch_cells


def test_batch_has_no_jump() -> None:
    sizes = [batch_cells_for(n_cells) for n_cells in range(1_000, 100_000, 100)]
    assert sizes == sorted(sizes)
    assert max(later - sooner for sooner, later in itertools.pairwise(sizes)) == 64


def test_learning_rate_follows_the_batch() -> None:
    assert learning_rate_for(256) == pytest.approx(1e-3)
    assert learning_rate_for(1024) == pytest.approx(2.8e-3, rel=0.02)
    assert learning_rate_for(64) == pytest.approx(1e-3)
    assert learning_rate_for(4096) == learning_rate_for(1024)


def test_steps_keep_to_their_floor_and_cap() -> None:
    phase = PhaseConfig(epochs=10, min_steps=100, max_steps=2000)
    assert phase_steps(phase, 1) == 100
    assert phase_steps(phase, 50) == 500
    assert phase_steps(phase, 4000) == 2000
    assert phase_steps(PhaseConfig(epochs=0, min_steps=100), 50) == 0


def test_steps_are_the_same_at_any_size_where_no_epochs_are_given() -> None:
    assert {phase_steps(PhaseConfig(steps=7), n_batches) for n_batches in (1, 50, 4000)} == {7}


def test_cosine_falls_from_one_to_zero() -> None:
    values = [SCHEDULES["cosine"](step, 10) for step in range(11)]
    assert values[0] == 1
    assert values[-1] == pytest.approx(0, abs=1e-12)
    assert sorted(values, reverse=True) == values


@pytest.mark.parametrize("bound", [{"min_steps": 5}, {"max_steps": 20}])
def test_bounds_of_epochs_are_refused_without_epochs(bound: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="epochs is null"):
        PhaseConfig(**bound)
