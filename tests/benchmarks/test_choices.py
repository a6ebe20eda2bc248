from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_agreement_is_full_on_separate_groups() -> None:
    import choices

    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(5.0 * group, 1.0, (50, 8)) for group in range(3)])
    assert choices.agreement(points, None, seeds=2) == 1.0
    assert 0 < choices.agreement(points, 1.0, seeds=2) <= 1.0


@pytest.mark.slow  # two fits with the default settings
def test_noise_with_a_mean_spoils_the_reconstruction_of_clean_cells(tiny_atlas: Path) -> None:
    import choices

    errors = {name: choices.clean_error(tiny_atlas, *bounds, seed=0) for name, bounds in choices.NOISE.items()}
    assert errors["-0.5 to 0.5"] < errors["0 to 1"]
