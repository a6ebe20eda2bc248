from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scamac_scale import ScAMAC, evaluate
from scamac_scale.config import ScamacConfig
from tests.support.settings import QUICK

pytestmark = pytest.mark.gpu


def on(accelerator: str, precision: str) -> ScamacConfig:
    return replace(QUICK, train=replace(QUICK.train, accelerator=accelerator, precision=precision))


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_fit_on_cuda_finds_the_clusters_of_the_cpu(store: Path, precision: str) -> None:
    found = ScAMAC(config=on("cuda", precision)).fit(store).predict(store)
    assert evaluate(found, "cell_type")["ari"] > 0.95


def test_a_model_of_the_cpu_predicts_the_same_on_cuda(store: Path) -> None:
    model = ScAMAC(config=on("cpu", "32-true")).fit(store)
    expected = model.predict(store).obsm["X_scAMAC"]
    model.fitted.config = on("cuda", "32-true")
    # float32 sums in another order; TensorFloat-32 is off by default
    np.testing.assert_allclose(model.predict(store).obsm["X_scAMAC"], expected, rtol=1e-4, atol=1e-4)


def test_the_same_seed_gives_the_same_bits_on_cuda(store: Path) -> None:
    latents = [ScAMAC(config=on("cuda", "32-true")).fit(store).predict(store).obsm["X_scAMAC"] for _ in range(2)]
    np.testing.assert_array_equal(*latents)
