"""The recipe of a fit: a stage is added by a function and a line, and a checkpoint that does not fit is refused."""

from __future__ import annotations

import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale import ScAMAC
from scamac_scale.errors import StoppedError, StoreError
from scamac_scale.sources import open_source
from scamac_scale.train import fit as fitting
from scamac_scale.train.fit import build_network, gather_tools
from scamac_scale.train.placement import launch
from scamac_scale.train.recipe import DONE, Stage, find_clusters, recipe, stages_left
from scamac_scale.train.run.checkpoints import Checkpoints
from scamac_scale.train.run.folder import RunFolder
from scamac_scale.train.state import FitState
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

    from scamac_scale.config import ScamacConfig
    from scamac_scale.train.recipe import Tools

OLD_RUN = Path(__file__).parent / "golden" / "run-before-versions.zip"
"""Run folder with a checkpoint of step 5, as the program wrote it before checkpoints had a version."""


def state_before(stage: str) -> FitState:
    return FitState(torch.nn.Linear(1, 1), stage=stage)  # type: ignore[arg-type]  # stages_left does not look at it


def test_names_of_stages_are_unlike() -> None:
    names = [stage.name for stage in recipe(QUICK)]
    assert len(set(names)) == len(names)
    assert DONE not in names


def test_a_fit_goes_on_at_the_stage_that_its_state_names() -> None:
    stages = recipe(QUICK)
    assert stages_left(stages, state_before("")) == stages
    assert stages_left(stages, state_before("bank")) == stages[3:]
    assert stages_left(stages, state_before(DONE)) == []


def test_a_stage_that_is_not_in_the_recipe_is_refused_by_name() -> None:
    with pytest.raises(
        StoreError, match=r"before the stage 'batches', which a fit .* does not have \(it has gene moments,"
    ):
        stages_left(recipe(QUICK), state_before("batches"))


def test_a_state_that_lacks_what_its_stage_needs_is_refused() -> None:
    with pytest.raises(StoreError, match="'round 1' and lacks its landmarks and clusters and target"):
        stages_left(recipe(QUICK), state_before("round 1"))


@pytest.mark.slow
def test_a_stage_is_added_by_one_function_and_one_line(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, seen = tmp_path / "run", []

    def doubled(tools: Tools, state: FitState) -> None:
        assert state.clusters is not None
        seen.append(state.clusters)
        if len(seen) == 1:
            raise StoppedError("stopped in the new stage")
        state.weights["clustering"] *= 2

    def longer(config: ScamacConfig, *, has_tech_batches: bool) -> list[Stage]:
        stages = recipe(config, has_tech_batches=has_tech_batches)
        after = [stage.work for stage in stages].index(find_clusters) + 1
        return [*stages[:after], Stage("doubled", doubled, "landmarks", ("clusters",)), *stages[after:]]

    config = replace(QUICK, train=replace(QUICK.train, checkpoint_every_s=1e-9))
    monkeypatch.setattr(fitting, "recipe", longer)
    with pytest.raises(StoppedError, match="new stage"):
        ScAMAC(config=config).fit(tiny_adata, run=run)
    saved = Checkpoints(run / "checkpoints").newest()
    assert saved is not None
    assert saved["state"]["stage"] == "doubled"
    with monkeypatch.context() as before:
        before.setattr(fitting, "recipe", recipe)
        with pytest.raises(StoreError, match="before the stage 'doubled', which a fit of these settings does not have"):
            ScAMAC(config=config).fit(tiny_adata, run=run, resume=True)
    ScAMAC(config=config).fit(tiny_adata, run=run, resume=True)
    assert len(seen) == 2
    torch.testing.assert_close(seen[1].centers, seen[0].centers, rtol=0, atol=0)


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every tensor and plain value of nested data, with where it lies."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if parts is None:
        yield name, value
    else:
        for key, part in parts:
            yield from leaves(part, f"{name}/{key}")


@pytest.mark.slow
def test_a_state_comes_back_from_plain_data_as_it_was(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    with open_source(tiny_adata, loader=QUICK.loader) as source, RunFolder(tmp_path / "run", QUICK) as run:
        state = FitState(build_network(source, QUICK))
        tools = gather_tools(launch(QUICK.train), state, source, QUICK, run)
        for stage in recipe(QUICK):
            stage.work(tools, state)
            state.times.mark(stage.part)
        state.stage = DONE
        torch.save(state.to_plain(), tmp_path / "state.pt")
        plain = torch.load(tmp_path / "state.pt", weights_only=True)
        again = FitState.from_plain(plain, build_network(source, QUICK), QUICK, source, run.code_path, tools.world)
        torch.save(again.to_plain(), tmp_path / "again.pt")
        found, expected = dict(leaves(torch.load(tmp_path / "again.pt", weights_only=True))), dict(leaves(plain))
        again.close()
        state.close()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value
        assert same, name
    for field in ("landmarks", "clusters", "target", "pairs", "last_pairs", "optimizers", "weights"):
        assert getattr(again, field), field
    assert again.landmarks is not None
    assert state.landmarks is not None
    torch.testing.assert_close(again.landmarks.x, state.landmarks.x, rtol=0, atol=0)


def test_a_run_of_before_versions_is_refused_and_kept(tiny_adata: ad.AnnData, tmp_path: Path) -> None:
    with zipfile.ZipFile(OLD_RUN) as archive:
        archive.extractall(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(StoreError, match=r"000001-step-5-\w+\.pt was written by another version of this program"):
        ScAMAC(config=QUICK).fit(tiny_adata, run=tmp_path, resume=True)
    assert before.items() <= {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}.items()
