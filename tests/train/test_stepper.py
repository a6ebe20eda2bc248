"""The steps of a round: what they know of the whole atlas, and when it is summed anew."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale import IngestConfig, ingest
from scamac_scale.ops.similarity import Grams, PairMeans, gram_matrices, unit_rows
from scamac_scale.sources import open_source
from scamac_scale.train.fit import build_network, gather_tools
from scamac_scale.train.objective import Objective, Scene
from scamac_scale.train.placement import launch
from scamac_scale.train.recipe import Tools, end_round, find_clusters, freeze, scale_input, start_weights, take_round
from scamac_scale.train.state import FitState
from scamac_scale.train.sweeps import Sweeps
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.config import ScamacConfig
    from scamac_scale.ranks.world import World


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("phases") / "store.zarr", IngestConfig(n_genes=100))


def quick(**loss: Any) -> ScamacConfig:
    return replace(QUICK, loss=replace(QUICK.loss, **loss))


@contextmanager
def joint(store: Path, config: ScamacConfig) -> Iterator[tuple[Tools, FitState]]:
    """A fit before its first round: 300 cells, batches of 60, five steps a round."""
    config = replace(config, train=replace(config.train, batch_cells=60))
    with open_source(store, loader=config.loader) as source:
        state = FitState(build_network(source, config))
        tools = gather_tools(launch(config.train), state, source, config)
        for stage in (scale_input, start_weights, freeze, find_clusters):
            stage(tools, state)
        yield tools, state


@pytest.mark.parametrize(("every", "expected"), [(None, [0]), (2, [0, 2, 4]), (1, [0, 1, 2, 3, 4])])
@pytest.mark.parametrize("target", ["consensus", "membership"])
@pytest.mark.slow
def test_sums_are_taken_anew_after_so_many_steps(
    store: Path, every: int | None, expected: list[int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[int] = []
    with joint(store, quick(similarity_refresh_steps=every, similarity_target=target)) as (tools, state):
        fresh = Sweeps.similarity

        def count(self: Sweeps, *arguments: Any) -> Any:
            at.append(state.step)
            return fresh(self, *arguments)

        monkeypatch.setattr(Sweeps, "similarity", count)
        take_round(tools, state, 0)
        first = 1 if target == "consensus" else 0  # the sums of codes come with the landmarks
        assert at == expected[first:]
        end_round(tools, state, 0)
        at.clear()
        take_round(tools, state, 1)
        assert at == [step + 5 for step in expected[1:]]  # the sweep of the round has the sums of the first step


def test_sums_right_after_the_sweep_are_those_of_a_sweep_of_their_own(store: Path) -> None:
    with joint(store, quick()) as (tools, state):
        take_round(tools, state, 0)
        state.network.refresh_bank()
        assert state.clusters is not None
        assert state.target is not None
        expected = tools.sweeps.similarity(state.clusters, state.target)
        end_round(tools, state, 0)
        assert state.pairs is not None
        for found, wanted in zip(state.pairs, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_every_batch_moves_the_sums_by_the_momentum(
    store: Path, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joint(store, quick(similarity_momentum=momentum)) as (tools, state):
        assert state.target is not None
        assert state.clusters is not None
        expected = tools.sweeps.similarity(state.clusters, state.target)
        seen: list[tuple[PairMeans, Grams]] = []
        followed = Objective.followed

        def look(self: Objective, scene: Scene, sizes: list[int], world: World) -> PairMeans | None:
            assert sizes == [60]  # one block
            assert scene.pairs is not None
            ((u, z),) = scene.cells_of(sizes)
            seen.append((scene.pairs, gram_matrices(u, unit_rows(z.detach()))))
            return followed(self, scene, sizes, world)

        monkeypatch.setattr(Objective, "followed", look)
        take_round(tools, state, 0)
        assert len(seen) == 5
        for used, batch in seen:
            torch.testing.assert_close(used.uz, expected.uz)  # the first step has those of the sweep, exactly
            expected = PairMeans(
                (1 - momentum) * expected.zz + momentum * batch.zz / 60,
                (1 - momentum) * expected.uz + momentum * batch.uz / 60,
                expected.uu_square,
            )
        assert state.pairs is not None
        torch.testing.assert_close(state.pairs.zz, expected.zz)


def test_batches_of_evened_classes_do_not_move_what_is_known_of_the_atlas(store: Path) -> None:
    config = replace(quick(), loader=replace(QUICK.loader, balance_by="cell_type"))
    with joint(store, config) as (tools, state):
        assert state.target is not None
        assert state.clusters is not None
        product = state.network.mean_product.clone()
        before = tools.sweeps.similarity(state.clusters, state.target)
        take_round(tools, state, 0)
        assert state.pairs is not None
        torch.testing.assert_close(state.pairs.zz, before.zz, rtol=0, atol=0)
        torch.testing.assert_close(state.network.mean_product, product, rtol=0, atol=0)


def test_the_weight_of_the_similarity_does_not_depend_on_its_scaling(store: Path) -> None:
    weights = {}
    for similarity in ("atlas", "batch"):
        for scaling in ("pairs", "paper"):
            with joint(store, quick(similarity=similarity, similarity_scaling=scaling)) as (_, state):
                weights[similarity, scaling] = state.weights["similarity"]
    assert weights["atlas", "pairs"] == pytest.approx(weights["batch", "pairs"])
    assert weights["atlas", "paper"] * 300 == pytest.approx(weights["atlas", "pairs"], rel=1e-5)
    assert weights["batch", "paper"] * 60 == pytest.approx(weights["batch", "pairs"], rel=1e-5)


def test_training_leaves_a_running_product_near_that_of_the_sweep(store: Path) -> None:
    with joint(store, quick()) as (tools, state):
        take_round(tools, state, 0)
        running = state.network.mean_product.clone()
        tools.sweeps.freeze()
        exact = state.network.mean_product
        # Batches of 60 noisy cells, five of them: some per cent of sampling error.
        assert (running - exact).norm() < 0.2 * exact.norm()
