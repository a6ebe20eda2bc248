"""The command line, called in this process."""

import json
from typing import Any

import pytest

from scamac_scale.cli.main import main

QUICK = [
    *("--n-clusters", "4", "--model.encoder_width", "32", "--model.latent_width", "8", "--model.bank_cells", "32"),
    *("--start.landmark_cells", "200", "--start.components", "[5,10]", "--train.batch_cells", "64"),
    *("--train.pretrain.epochs", "2", "--train.pretrain.min_steps", "0", "--train.rounds", "1"),
    *("--train.phases", "[{terms: [reconstruction, layers, similarity, clustering], epochs: 1}]"),
    *("--train.accelerator", "cpu"),
]
"""Settings of a fit that takes a second or two on the tiny atlas."""


def run_json(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    """Run a command that must succeed, and read what it prints as JSON."""
    code = main([*argv, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    found: dict[str, Any] = json.loads(captured.out)
    return found
