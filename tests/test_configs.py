"""The files in configs/: whole runs, none of which leaves a key to a default."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from scamac_scale.cli.main import main
from scamac_scale.config import ScamacConfig, config_from_dict
from scamac_scale.durable.differences import plain

CONFIGS = Path(__file__).parents[1] / "configs"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
    return found


def keys(values: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys; those of listed dicts without their place in the list."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")
    elif isinstance(values, list):
        for item in values:
            yield from keys(item, prefix)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_a_config_is_a_whole_run_that_the_command_line_takes(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = read(path.name)
    assert set(keys(content)) == set(keys(plain(asdict(ScamacConfig()))))
    assert main(["train", "--config", str(path), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == content
    assert plain(asdict(config_from_dict(content))) == content


def test_the_default_config_holds_the_defaults() -> None:
    assert config_from_dict(read("default.yaml")) == ScamacConfig()


def test_the_paper_config_holds_the_sizes_and_readings_of_the_paper() -> None:
    config = config_from_dict(read("paper.yaml"))
    noisy = config.input
    assert (noisy.unit_norm, noisy.center, noisy.gene_sd, noisy.noise_low, noisy.noise_high) == (
        False,
        False,
        None,
        0,
        1,
    )
    model = config.model
    assert (model.encoder_width, model.latent_width) == (1500, 500)
    assert {model.encoder_activation, model.latent_activation, model.output_activation} == {"leaky_relu"}
    assert (model.spatial_form, model.fusion) == ("batch", "gated_sum")
    loss = config.loss
    assert (loss.reconstruction, loss.clustering_weight) == ("sum_genes", 1)
    assert (loss.similarity_target, loss.similarity_scaling, loss.similarity_weight) == ("membership", "paper", 1)
    assert (loss.temperature, loss.gamma, loss.epsilon) == ("absolute", 1, 0.01)
    train = config.train
    assert (config.start.centers, train.batch_cells, train.pretrain.epochs) == ("kmeans", 128, 0)
    assert (train.rounds, train.carries_centers) == (50, True)
    assert [(phase.epochs, phase.optimizer, phase.learning_rate, phase.terms) for phase in train.phases] == [
        (3, "adam", 1e-4, ("reconstruction", "layers", "similarity")),
        (2, "sgd", 1e-4, ("clustering",)),
    ]
