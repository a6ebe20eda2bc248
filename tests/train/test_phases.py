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
from scamac_scale.train.landmarks import choose_landmarks, label_landmarks, landmark_clusters
from scamac_scale.train.loop import build_network, launch
from scamac_scale.train.objective import Objective, Scene
from scamac_scale.train.phases import Stepper
from scamac_scale.train.selection import choose_bank
from scamac_scale.train.start import fit_input_scale, start_from_pca
from scamac_scale.train.sweeps import Sweeps
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from scamac_scale.config import ScamacConfig
    from scamac_scale.world import World


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("phases") / "store.zarr", IngestConfig(n_genes=100))


def quick(**loss: Any) -> ScamacConfig:
    return replace(QUICK, loss=replace(QUICK.loss, **loss))


@contextmanager
def joint(store: Path, config: ScamacConfig) -> Iterator[Stepper]:
    """A fit before its first round: 300 cells, batches of 60, five steps a round."""
    config = replace(config, train=replace(config.train, batch_cells=60))
    with open_source(store, loader=config.loader) as source:
        fabric = launch(config)
        network = build_network(source, config)
        fit_input_scale(network, source, 0.5, True)
        start_from_pca(network, source, config)
        network.start_attention(choose_bank(source, network, config))
        stepper = Stepper(fabric, network, source, config)
        stepper.sweeps.freeze()
        landmarks = choose_landmarks(source, network, config)
        target = label_landmarks(landmarks, network, source, config)
        stepper.cluster(landmark_clusters(landmarks, network, config), target, landmarks)
        yield stepper


@pytest.mark.parametrize(("every", "expected"), [(None, [0]), (2, [0, 2, 4]), (1, [0, 1, 2, 3, 4])])
@pytest.mark.parametrize("target", ["consensus", "membership"])
def test_sums_are_taken_anew_after_so_many_steps(
    store: Path, every: int | None, expected: list[int], target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at: list[int] = []
    with joint(store, quick(similarity_refresh_steps=every, similarity_target=target)) as stepper:
        fresh = Sweeps.similarity

        def count(self: Sweeps, *arguments: Any) -> Any:
            at.append(stepper.step)
            return fresh(self, *arguments)

        monkeypatch.setattr(Sweeps, "similarity", count)
        stepper.take_round(0)
        assert at == expected
        assert stepper.clusters is not None
        stepper.sweep(stepper.clusters, "sweep")
        at.clear()
        stepper.take_round(1)
        assert at == [step + 5 for step in expected[1:]]  # the sweep of the round has the sums of the first step


def test_sums_right_after_the_sweep_are_those_of_a_sweep_of_their_own(store: Path) -> None:
    with joint(store, quick()) as stepper:
        stepper.take_round(0)
        stepper.network.refresh_bank()
        start, target = stepper.clusters, stepper.target
        assert start is not None
        assert target is not None
        expected = stepper.sweeps.similarity(start, target)
        stepper.sweep(start, "sweep")
        assert stepper.atlas is not None
        for found, wanted in zip(stepper.atlas, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_every_batch_moves_the_sums_by_the_momentum(
    store: Path, momentum: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with joint(store, quick(similarity_momentum=momentum)) as stepper:
        assert stepper.target is not None
        assert stepper.clusters is not None
        expected = stepper.sweeps.similarity(stepper.clusters, stepper.target)
        seen: list[tuple[PairMeans, Grams]] = []
        followed = Objective.followed

        def look(self: Objective, scenes: list[Scene], world: World) -> PairMeans | None:
            (scene,) = scenes  # a batch of 60 is one block
            assert scene.atlas is not None
            seen.append((scene.atlas, gram_matrices(scene.u, unit_rows(scene.latent.detach()))))
            return followed(self, scenes, world)

        monkeypatch.setattr(Objective, "followed", look)
        stepper.take_round(0)
        assert len(seen) == 5
        for used, batch in seen:
            torch.testing.assert_close(used.uz, expected.uz)  # the first step has those of the sweep, exactly
            expected = PairMeans(
                (1 - momentum) * expected.zz + momentum * batch.zz / 60,
                (1 - momentum) * expected.uz + momentum * batch.uz / 60,
                expected.uu_square,
            )
        assert stepper.atlas is not None
        torch.testing.assert_close(stepper.atlas.zz, expected.zz)


def test_batches_of_evened_classes_do_not_move_what_is_known_of_the_atlas(store: Path) -> None:
    config = replace(quick(), loader=replace(QUICK.loader, balance_by="cell_type"))
    with joint(store, config) as stepper:
        assert stepper.target is not None
        assert stepper.clusters is not None
        product = stepper.network.mean_product.clone()
        before = stepper.sweeps.similarity(stepper.clusters, stepper.target)
        stepper.take_round(0)
        assert stepper.atlas is not None
        torch.testing.assert_close(stepper.atlas.zz, before.zz, rtol=0, atol=0)
        torch.testing.assert_close(stepper.network.mean_product, product, rtol=0, atol=0)


def test_the_weight_of_the_similarity_does_not_depend_on_its_scaling(store: Path) -> None:
    weights = {}
    for similarity in ("atlas", "batch"):
        for scaling in ("pairs", "paper"):
            with joint(store, quick(similarity=similarity, similarity_scaling=scaling)) as stepper:
                weights[similarity, scaling] = stepper.weights["similarity"]
    assert weights["atlas", "pairs"] == pytest.approx(weights["batch", "pairs"])
    assert weights["atlas", "paper"] * 300 == pytest.approx(weights["atlas", "pairs"], rel=1e-5)
    assert weights["batch", "paper"] * 60 == pytest.approx(weights["batch", "pairs"], rel=1e-5)


def test_training_leaves_a_running_product_near_that_of_the_sweep(store: Path) -> None:
    with joint(store, quick()) as stepper:
        stepper.take_round(0)
        running = stepper.network.mean_product.clone()
        stepper.sweeps.freeze()
        exact = stepper.network.mean_product
        # Batches of 60 noisy cells, five of them: some per cent of sampling error.
        assert (running - exact).norm() < 0.2 * exact.norm()
