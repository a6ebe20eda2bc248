from __future__ import annotations

import resource
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from scamac_scale.config import LoaderConfig
from scamac_scale.errors import MemoryLimitError
from scamac_scale.host.memory import memory_limit_bytes
from scamac_scale.train.run.out_of_memory import fit_explained

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.mark.parametrize("ask", [lambda: torch.empty(2**50), lambda: np.ones(2**50)], ids=["torch", "numpy"])
def test_running_out_of_memory_says_peak_limit_and_what_to_lower(ask: Callable[[], object]) -> None:
    with (
        pytest.raises(MemoryLimitError, match=r"bytes at the peak of this process, [\d,]+ allowed.*batch_cells"),
        fit_explained(LoaderConfig()),
    ):
        ask()


def test_other_errors_pass() -> None:
    with pytest.raises(RuntimeError, match="shape"), fit_explained(LoaderConfig()):
        torch.zeros(2).view(3)


def test_the_limit_is_that_of_the_process_where_it_is_least() -> None:
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (10**10, 10**10))\n"
        "from scamac_scale.host.memory import memory_limit_bytes; print(memory_limit_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == min(10**10, memory_limit_bytes())
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY


def test_the_command_line_has_one_message(tiny_atlas: Path, tmp_path: Path) -> None:
    from scamac_scale.cli.main import main

    run = ["--run", str(tmp_path / "run"), "--n-clusters", "4", "--model.encoder_width", str(2**34), "--quiet"]
    assert main(["train", "--store", str(tiny_atlas), *run]) == 2
    assert not (tmp_path / "run").exists()
