"""A fit waits for no package that it does not use."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

UNUSED = ("lightning", "torch._dynamo", "torch.utils.tensorboard", "sympy", "scanpy", "umap")


@pytest.mark.slow
def test_a_plain_fit_imports_no_lightning_and_no_compiler(tmp_path: Path) -> None:
    script = f"""
import sys
from dataclasses import replace
import numpy as np, anndata as ad
from scamac_scale import ScAMAC, IngestConfig
from scamac_scale.config import PhaseConfig, ScamacConfig
counts = np.random.default_rng(0).poisson(1.0, (120, 40)).astype(np.float32)
config, short = ScamacConfig(), PhaseConfig(steps=2)
train = replace(config.train, accelerator="cpu", rounds=1, pretrain=short, phases=(short,))
model = ScAMAC(3, config=replace(config, train=train)).fit(ad.AnnData(counts), run={str(tmp_path / "run")!r})
assert model.report["steps"] >= 2, model.report
print([name for name in {UNUSED!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
