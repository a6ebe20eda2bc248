"""Runs of an earlier version, which did not know all settings: golden/runs-version-6.zip, one finished and one killed at step 6.

They are of the golden store of layout version 1, with the settings in their config.yaml. A setting that came later had its default.
"""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from scamac_scale import ScAMAC
from scamac_scale.config import ScamacConfig, config_from_dict
from scamac_scale.errors import ConfigError
from scamac_scale.report_page.gather import gather

HERE = Path(__file__).parent
RUNS = HERE / "golden" / "runs-version-6.zip"
STORE = HERE.parent / "store" / "golden" / "v1-fast.zip"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    for archive, into in ((RUNS, folder), (STORE, folder / "store.zarr")):
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(into)
    return folder


def settings(run: Path) -> ScamacConfig:
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert "target_share" not in saved["input"]
    return config_from_dict(saved, is_partial=True)


def test_a_finished_run_is_loaded_and_reported(place: Path) -> None:
    config = settings(place / "finished")
    model = ScAMAC(config=config).fit(place / "store.zarr", run=place / "finished", resume=True)
    assert model.fitted.config == config
    assert model.predict(place / "store.zarr").obs["scamac_cluster"].nunique() == 3
    assert gather(place / "finished", None, label=None, batch_key=None).run.model.n_clusters == 3


def test_a_setting_that_came_later_is_another_one_where_it_is_not_its_default(place: Path) -> None:
    config = settings(place / "stopped")
    other = replace(config, input=replace(config.input, target_share=0.3))
    with pytest.raises(ConfigError, match=r"other settings: input\.target_share=0\.3 \(it was None\)"):
        ScAMAC(config=other).fit(place / "store.zarr", run=place / "stopped", resume=True)


def test_a_killed_run_goes_on_to_what_the_finished_one_came_to(place: Path) -> None:
    config = settings(place / "stopped")
    found = ScAMAC(config=config).fit(place / "store.zarr", run=place / "stopped", resume=True)
    expected = ScAMAC.load(place / "finished" / "model")
    weights = expected.fitted.network.state_dict()
    for name, value in found.fitted.network.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-4)  # another processor rounds otherwise
