"""The pass that gives every cell to a landmark: its sums, and how it is taken up where another process stopped."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch

from scamac_scale.config import ModelConfig, ScamacConfig, StartConfig, TrainConfig
from scamac_scale.errors import StoreError
from scamac_scale.nn.model import ScamacNetwork
from scamac_scale.ranks.world import World
from scamac_scale.train.clusters import landmarks as module
from scamac_scale.train.clusters.centers import landmark_clusters
from scamac_scale.train.clusters.labels import label_landmarks
from scamac_scale.train.clusters.landmarks import (
    LANDMARK_CENTERS,
    Landmarks,
    add_whole,
    find_landmarks,
    landmark_count,
    repeats,
)
from scamac_scale.train.clusters.selection import choose_bank
from scamac_scale.train.clusters.targets import ConsensusTarget
from scamac_scale.train.run.watch import Watch
from scamac_scale.train.start import fit_input_scale, start_from_pca
from scamac_scale.train.sweeps import Sweeps
from tests.support.memory import ArraySource
from tests.support.trees import some_tree

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.train.clusters.landmarks import Groups

N, G, K = 300, 40, 3
BYTES_SPOILT = 32
CONFIG = ScamacConfig(
    n_clusters=K,
    model=ModelConfig(encoder_width=24, latent_width=6, bank_cells=8),
    start=StartConfig(landmark_cells=50, components=(4,)),
    train=TrainConfig(checkpoint_every_s=1e-9),
)


class Fit(NamedTuple):
    """What a fit has when it looks for landmarks."""

    source: ArraySource
    network: ScamacNetwork


@pytest.fixture(scope="module")
def cells() -> ArraySource:
    """Cells of three kinds."""
    rng = np.random.default_rng(0)
    profiles = np.tile(rng.gamma(2.0, 1.0, G), (K, 1))
    for kind in range(K):
        profiles[kind, kind * 8 : kind * 8 + 8] *= 6
    return ArraySource(rng.poisson(profiles[rng.integers(0, K, N)]))


@pytest.fixture
def fit(cells: ArraySource, monkeypatch: pytest.MonkeyPatch) -> Fit:
    monkeypatch.setattr(module, "SWEEP_CELLS", 32)
    monkeypatch.setattr("scamac_scale.sweep.TICK_BATCHES", 2)
    torch.manual_seed(0)
    network = ScamacNetwork(G, CONFIG.model, CONFIG.input).eval()
    fit_input_scale(network, cells, CONFIG.input)
    start_from_pca(network, cells, CONFIG.start.pca_cells, CONFIG.seed)
    network.start_attention(choose_bank(cells, network, "random", CONFIG.seed))
    network.mean_product.copy_(0.1 * torch.randn(network.mean_product.shape))
    torch.nn.init.normal_(network.get_parameter("fusion.alpha"))
    return Fit(cells, network)


def find(fit: Fit, config: ScamacConfig = CONFIG, watch: Watch | None = None, path: Path | None = None) -> Groups:
    return find_landmarks(fit.source, fit.network, config, World(), watch or Watch(TrainConfig()), path)


def choosing(choice: str, n_landmarks: int = 50) -> ScamacConfig:
    return replace(CONFIG, start=replace(CONFIG.start, landmark_choice=choice, landmark_cells=n_landmarks))


def bits(groups: Groups) -> list[np.ndarray]:
    """All that the pass found, but for the table's place."""
    tensors = [*groups.landmarks.to_plain(), groups.unit, groups.zz]
    return [*(tensor.numpy() for tensor in tensors), groups.numbers, groups.table.read(np.arange(N))]


def assert_same(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("choice", "n_landmarks"), [("kmeans", 50), ("random", 50), ("kmeans", N)])
def test_every_sum_of_the_pass_is_that_of_loops_over_cells(fit: Fit, choice: str, n_landmarks: int) -> None:
    config = choosing(choice, n_landmarks)
    fit.network.refresh_bank()
    slow = deepcopy(fit.network).double()  # with the mean product of before the pass
    centers = module.find_centers(fit.source, fit.network, config)
    assert (centers is None) == (n_landmarks == N)
    groups = find(fit, config)
    codes = groups.table.read(np.arange(N)).astype(np.int64)
    with torch.no_grad():
        x = slow.scale_input(torch.from_numpy(fit.source.values).double())
        z = slow.embed(x)
        product = slow.channel_sum(x) / N
    if centers is None:
        np.testing.assert_array_equal(codes, np.arange(N))
    else:
        apart = torch.cdist(z, centers.double()).numpy()
        np.testing.assert_allclose(apart[np.arange(N), codes], apart.min(axis=1), atol=1e-5)  # or a tie
    unit = z / z.norm(dim=1, keepdim=True)
    np.testing.assert_array_equal(groups.numbers, np.unique(codes))
    for place, number in enumerate(groups.numbers):
        own = codes == number
        assert groups.landmarks.weights[place] == own.sum()
        np.testing.assert_allclose(groups.landmarks.x[place], x[own].mean(dim=0), atol=2e-6)  # float32 cells
        np.testing.assert_allclose(groups.unit[number], unit[own].sum(dim=0), atol=2e-6 * own.sum())
    np.testing.assert_allclose(groups.zz, unit.T @ unit, rtol=1e-5, atol=1e-5 * N)
    np.testing.assert_allclose(fit.network.mean_product, product, rtol=1e-4, atol=1e-5 * float(product.abs().max()))
    assert groups.landmarks.weights.sum() == N
    assert groups.landmarks.x.dtype == torch.float32


def test_whole_sums_are_the_same_in_any_order_and_as_exact_as_their_steps() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(0, [1e-3, 1.0, 1e3], (500, 3)).astype(np.float32))
    codes = torch.from_numpy(rng.integers(0, 7, 500))
    found = []
    for order in (np.arange(500), rng.permutation(500), np.arange(500)[::-1].copy()):
        sums = torch.zeros(7, 3, dtype=torch.int64)
        for part in np.array_split(order, rng.integers(1, 9)):
            add_whole(codes[part], values[part], sums)
        found.append(sums)
    expected = torch.zeros(7, 3, dtype=torch.float64).index_add_(0, codes, values.double())
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    # half a step for each cell at most
    most = torch.bincount(codes).double()[:, None] / 2 / module.STEPS_PER_UNIT
    assert bool(((found[0].double() / module.STEPS_PER_UNIT - expected).abs() <= most).all())


def test_centers_without_cells_make_no_landmarks(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_far_ones(points: np.ndarray, n_centers: int, seed: int) -> np.ndarray:
        found = centers(points, n_centers, seed)
        return np.insert(found, [0, 20, n_centers], 1e4, axis=0)

    centers = LANDMARK_CENTERS["kmeans"]
    monkeypatch.setitem(LANDMARK_CENTERS, "kmeans", with_far_ones)
    found = find(fit)
    n_centers = landmark_count(N, CONFIG.start, K)
    assert found.table.n_codes == n_centers + 3
    assert not {0, 21, n_centers + 2} & set(found.numbers.tolist())
    assert len(found.landmarks.weights) == len(found.numbers) == len(found.landmarks.x) <= n_centers
    assert found.landmarks.weights.min() >= 1
    target, pairs = label_landmarks(found, fit.network, CONFIG, World())
    assert isinstance(target, ConsensusTarget)
    assert pairs is not None
    assert all(bool(part.isfinite().all()) for part in pairs)
    u = target.of(np.arange(N), torch.zeros(N, 2), None).dense().double()
    np.testing.assert_allclose(float(target.uu_square), float((u @ u.T).square().sum()), rtol=1e-5)


def test_the_first_pairs_are_those_of_a_sweep_with_the_mean_product_of_before(fit: Fit) -> None:
    fit.network.refresh_bank()
    before = fit.network.mean_product.clone()
    groups = find(fit)
    target, pairs = label_landmarks(groups, fit.network, CONFIG, World())
    assert pairs is not None
    assert target is not None
    clusters = landmark_clusters(groups.landmarks, fit.network, CONFIG.loss)
    renewed = fit.network.mean_product.clone()
    assert not torch.allclose(renewed, before)
    fit.network.mean_product.copy_(before)
    for ours, theirs in zip(pairs, Sweeps(fit.network, fit.source).similarity(clusters, target), strict=True):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-6  # steps of 2^-22, and batches in float32
    fit.network.mean_product.copy_(renewed)
    after = Sweeps(fit.network, fit.source).similarity(clusters, target)
    assert float((pairs.uz - after.uz).norm() / after.uz.norm()) > 1e-6


def test_landmarks_are_repeated_where_few_cells_differ() -> None:
    numbers, weights = repeats(np.array([0, 7, 0, 1, 100, 0, 0, 0, 0]), 9)
    np.testing.assert_array_equal(numbers, [1, 1, 1, 3, 4, 4, 4])
    np.testing.assert_array_equal(weights, [3, 2, 2, 1, 34, 33, 33])
    numbers, weights = repeats(np.array([3, 0, 2, 9]), 4)  # one without cells is no reason
    np.testing.assert_array_equal(numbers, [0, 2, 3])
    np.testing.assert_array_equal(weights, [3, 2, 9])


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")  # of the members, which cannot have five
@pytest.mark.parametrize(("n_distinct", "n_clusters"), [(1, "auto"), (3, "auto"), (3, 5)])
def test_cells_that_repeat_few_profiles_are_clustered_by_them(fit: Fit, n_distinct: int, n_clusters: int | str) -> None:
    same = np.arange(N) % n_distinct
    source = ArraySource(np.random.default_rng(3).poisson(4.0, (n_distinct, G))[same])
    found = find(Fit(source, fit.network))
    label_landmarks(found, fit.network, replace(CONFIG, n_clusters=n_clusters), World())
    landmarks = found.landmarks
    assert landmarks.weights.sum() == N
    assert len(landmarks.weights) > 50
    assert landmarks.labels.max() + 1 == (n_distinct if n_clusters == "auto" else n_clusters)
    of_center = np.zeros(found.table.n_codes, dtype=np.int64)
    of_center[found.numbers] = landmarks.labels
    labels = of_center[found.table.read(np.arange(N))]
    for profile in range(n_distinct):
        assert len(set(labels[same == profile])) == 1
    assert len(set(labels)) == n_distinct


@pytest.mark.parametrize("before", ["same", "other centers", "spoilt codes", "odd codes", "lost codes", "longer"])
def test_a_pass_in_flight_is_taken_up_where_centers_and_codes_are_as_they_were(
    fit: Fit, tmp_path: Path, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "codes"
    saved: list[dict[str, Any] | None] = []
    batches: list[str] = []
    monkeypatch.setattr(module, "reach", batches.append)
    watch = Watch(CONFIG.train, write=lambda flight: saved.append(deepcopy(flight)))
    first_product = fit.network.mean_product.clone()
    expected = find(fit, watch=watch, path=path)
    whole, digest = bits(expected), expected.table.known_digest
    product = fit.network.mean_product.clone()
    expected.table.close()
    n_all, flight = len(batches), saved[1]
    assert flight is not None
    assert flight["label"] == "landmarks"
    codes = path.read_bytes()
    spoilt = bytes(int(code == 0) for code in codes[:BYTES_SPOILT]) + codes[BYTES_SPOILT:]
    changed = {
        "spoilt codes": spoilt,
        "odd codes": b"\xff" + codes[1:],
        "lost codes": codes[:9],
        "longer": codes + b"x",
    }
    # what comes after was not written yet
    path.write_bytes(changed.get(before, codes[: 4 * 32] + bytes(N - 4 * 32)))
    if before == "other centers":
        flight["parts"][0]["centers"] = "others"
    watch.in_flight = flight
    fit.network.mean_product.copy_(first_product)
    found = find(fit, watch=watch, path=path)
    assert_same(bits(found), whole)
    assert found.table.known_digest == digest
    assert torch.equal(fit.network.mean_product, product)
    found.table.close()
    assert path.read_bytes() == codes
    is_taken_up = len(batches) - n_all < n_all  # what is done is not done again
    assert is_taken_up is (before in ("same", "longer"))


def test_sums_in_flight_of_another_shape_are_refused(fit: Fit, tmp_path: Path) -> None:
    saved: list[dict[str, Any] | None] = []
    watch = Watch(CONFIG.train, write=saved.append)
    first_product = fit.network.mean_product.clone()
    find(fit, watch=watch, path=tmp_path / "codes").table.close()
    fit.network.mean_product.copy_(first_product)
    flight = saved[1]
    assert flight is not None
    flight["parts"][0]["sums"]["x"] = flight["parts"][0]["sums"]["x"][:, 1:]
    watch.in_flight = flight
    with pytest.raises(StoreError, match="cannot go on"):
        find(fit, watch=watch, path=tmp_path / "codes")


def test_landmarks_grow_without_a_jump_between_their_bounds() -> None:
    start = StartConfig()
    sizes = np.unique(np.geomspace(1, 2e7, 4000).astype(np.int64))
    counts = [landmark_count(int(size), start, "auto") for size in sizes]
    assert (np.diff(counts) >= 0).all()
    assert max(counts) == module.MOST_LANDMARKS
    assert all(count <= size for count, size in zip(counts, sizes, strict=True))
    for size in (999, 62_500, 1_000_000, 4_000_000):
        assert landmark_count(size + 1, start, "auto") - landmark_count(size, start, "auto") in (0, 1)
    assert landmark_count(1_000_000, start, "auto") == 4000
    assert landmark_count(1_000_000, start, 700) == 7000
    assert landmark_count(10_000, start, 500) == 5000
    assert landmark_count(300, start, 200) == 300
    assert landmark_count(10_000, replace(start, landmark_cells=9000), 3) == 9000


def test_landmarks_come_back_from_plain_data_with_their_tree() -> None:
    rng = np.random.default_rng(0)
    tree = some_tree(9)
    weights = tree.weights.astype(np.int64)
    found = Landmarks(torch.from_numpy(rng.normal(size=(9, 4)).astype(np.float32)), weights, tree.labels(3), tree)
    n_cells = int(weights.sum())
    again = Landmarks.from_plain(found.to_plain(), n_cells, 4)
    assert torch.equal(again.x, found.x)
    np.testing.assert_array_equal(again.weights, weights)
    np.testing.assert_array_equal(again.labels, found.labels)
    assert again.tree is not None
    np.testing.assert_array_equal(again.tree.merges, tree.merges)
    assert Landmarks.from_plain(found.to_plain()[:3], n_cells, 4).tree is None


@pytest.mark.parametrize(
    "damage", ["genes", "cells", "not finite", "no cells", "weights", "labels", "negative labels", "labels of none"]
)
def test_landmarks_of_no_fit_are_refused(damage: str) -> None:
    plain = [torch.ones(5, 4), torch.ones(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)]
    assert len(Landmarks.from_plain(plain, 5, 4).x) == 5
    if damage == "not finite":
        plain[0][2, 1] = float("nan")
    elif damage == "no cells":
        plain[1][3] = 0
    elif damage == "weights":
        plain[1] = plain[1][:4]
    elif damage == "labels":
        plain[2] = plain[2].double()
    elif damage == "negative labels":
        plain[2][0] = -1
    elif damage == "labels of none":
        plain[2][0] = 5
    with pytest.raises(ValueError, match="none of this fit"):
        Landmarks.from_plain(plain, 6 if damage == "cells" else 5, 5 if damage == "genes" else 4)


@pytest.mark.gpu
@pytest.mark.parametrize("choice", LANDMARK_CENTERS)
def test_the_pass_on_cuda_finds_the_landmarks_of_the_cpu(
    fit: Fit, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit.network.refresh_bank()
    config = choosing(choice)
    centers = module.find_centers(fit.source, fit.network, config)
    monkeypatch.setattr(module, "find_centers", lambda *_: centers)  # faiss finds others, where it has a GPU
    there = Fit(fit.source, deepcopy(fit.network).to("cuda"))
    expected, found = find(fit, config), find(there, config)
    codes, ours = expected.table.read(np.arange(N)), found.table.read(np.arange(N))
    assert (codes != ours).mean() <= 0.01  # cells between two centers
    if np.array_equal(codes, ours):
        np.testing.assert_array_equal(found.landmarks.weights, expected.landmarks.weights)
        torch.testing.assert_close(found.landmarks.x, expected.landmarks.x, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.unit, expected.unit, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.zz.cpu(), expected.zz, rtol=1e-4, atol=1e-4 * N)
    product = fit.network.mean_product
    atol = 1e-4 * float(product.abs().max())
    torch.testing.assert_close(there.network.mean_product.cpu(), product, rtol=1e-4, atol=atol)
