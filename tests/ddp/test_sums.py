"""What is summed over the atlas is the same on any number of processes, and equal to the sum in one shot."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from scipy import sparse

from scamac_scale.config import IngestConfig, InputConfig, ScamacConfig, StartConfig, TrainConfig
from scamac_scale.infer.attention import AtlasAttention
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.loader.ordered import SweepPlan
from scamac_scale.nn.embed import EMBED_CELLS, forward_block
from scamac_scale.ops.adaptive import robust_weight
from scamac_scale.ops.fuzzy import soft_assignment
from scamac_scale.ranks.world import World
from scamac_scale.simulation.drawn import simulate
from scamac_scale.sources import open_source
from scamac_scale.sweep import sweep
from scamac_scale.train.clusters.code_table import CodeTable
from scamac_scale.train.clusters.landmarks import find_landmarks
from scamac_scale.train.clusters.targets import ConsensusTarget, MembershipTarget
from scamac_scale.train.run.watch import Watch
from scamac_scale.train.start import fit_input_scale, principal_components
from scamac_scale.train.sweeps import Sweeps
from tests.support.fitted import fitted_model
from tests.support.launch import run_ranks

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.fitted import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.sources import OpenSource

EPSILON = 0.01
N_CELLS = 4501
SIZES = np.array([3, 5])


def model_of(store: Path) -> FittedModel:
    with open_source(store) as source:
        model = fitted_model(genes=tuple(source.gene_names))
        model.network.bank_cells.copy_(
            0.1 * torch.randn(model.network.bank_cells.shape, generator=torch.manual_seed(1))
        )
        model.network.refresh_bank()
        torch.nn.init.normal_(model.network.get_parameter("fusion.alpha"), generator=torch.manual_seed(2))
    return model


def targets(n_cells: int) -> dict[str, Any]:
    n_landmarks = 15
    table = CodeTable(n_cells, n_landmarks)
    table.write(np.arange(n_cells), np.arange(n_cells) % n_landmarks)
    codes = np.arange(n_landmarks)[:, None] % SIZES
    counts = np.bincount(np.arange(n_cells) % n_landmarks)
    return {"membership": MembershipTarget(), "consensus": ConsensusTarget(table, codes, np.array([1.0, 3.0]), counts)}


def sums(world: World, store: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Every sum over the atlas that a fit or a prediction takes."""
    warnings.simplefilter("error")
    found: dict[str, torch.Tensor] = {}
    model = model_of(store)
    network = model.network
    with open_source(store) as source:
        clusters = model.clusters
        fit_input_scale(network, source, InputConfig(), world)
        found["gene mean"], found["input scale"] = network.gene_mean.clone(), network.input_scale.clone()
        mean, axes = principal_components(network, source, 4, np.arange(source.n_cells), world)
        found["principal mean"], found["principal axes"] = torch.from_numpy(mean), torch.from_numpy(axes.copy())
        sweeps = Sweeps(network, source, world)
        sweeps.freeze()
        found["mean product"] = network.mean_product.clone()
        for name, target in targets(source.n_cells).items():
            centers, atlas = sweeps.fuzzy(clusters, label="", target=target, is_final=True)
            assert atlas is not None
            found["centers"], found["weight"] = centers.centers, centers.weight
            for field, value in zip(atlas._fields, atlas, strict=True):
                found[f"{name} {field}"] = value
            for again, value in zip(sweeps.similarity(clusters, target), atlas, strict=True):
                assert (again - value).norm() <= 1e-6 * value.norm()  # blocks in float32 against float64
        attention = AtlasAttention(network, source, folder, world)
        attention.compute()
        found[f"attention of {world.rank}"] = attention.read(0, attention.n_own)
        attention.close()
        found[f"latent of {world.rank}"] = latents(model_of(store), source, world)
        found |= {f"landmark {name}": part for name, part in landmarks(model_of(store), source, world, folder).items()}
    return found


def landmarks(model: FittedModel, source: OpenSource, world: World, folder: Path) -> dict[str, torch.Tensor]:
    """All that the pass finds which gives every cell to a landmark."""
    network = model.network
    fit_input_scale(network, source, InputConfig(), world)
    path = folder.with_name(f"{folder.name} codes")
    config = ScamacConfig(n_clusters=5, start=StartConfig(landmark_cells=50))
    found = find_landmarks(source, network, config, world, Watch(TrainConfig(), world), path)
    tensors = found.landmarks.to_plain()
    parts = {"x": tensors[0], "weights": tensors[1], "unit": found.unit, "zz": found.zz}
    parts |= {"numbers": torch.from_numpy(found.numbers), "product": network.mean_product.clone()}
    parts["of cells"] = torch.from_numpy(found.table.read(np.arange(source.n_cells)).astype(np.int64))
    found.table.close()
    return parts


def rows_of_rank(world: World) -> np.ndarray:
    return np.arange(*SweepPlan(N_CELLS, EMBED_CELLS, world).bounds)


@torch.no_grad()
def latents(model: FittedModel, source: OpenSource, world: World) -> torch.Tensor:
    """Of the cells of this rank, in blocks as a prediction takes them."""

    def add(done: list[torch.Tensor], batch: Batch) -> list[torch.Tensor]:
        x = model.network.scale_input(batch.values)
        return [*done, forward_block(model.network, x).latent[: len(batch.rows)].clone()]

    return torch.cat(sweep(source, add, [], label="", plan=SweepPlan(source.n_cells, EMBED_CELLS, world)))


def one_shot(store: Path) -> dict[str, torch.Tensor]:
    """The same from all cells at once, in float64."""
    model = model_of(store)
    network = model.network.double()
    with open_source(store) as source:
        block = source.read(np.arange(source.n_cells))
        shape = (source.n_cells, len(source.gene_names))
        all_targets = targets(source.n_cells)
    dense_cells = sparse.csr_matrix((block.data, block.indices, block.indptr), shape).toarray()
    values = torch.from_numpy(dense_cells).double()
    n_cells = len(values)
    unit = values / values.norm(dim=1, keepdim=True)
    scale = 0.5 / unit.std(dim=0, correction=0).mean()
    network.gene_mean.copy_(unit.mean(dim=0))
    network.input_scale.copy_(scale)
    x = (unit - unit.mean(dim=0)) * scale
    expected = {"gene mean": unit.mean(dim=0), "input scale": scale, "principal mean": x.mean(dim=0)}
    expected["cell length"] = x.square().sum(dim=1).mean().sqrt()
    _, _, rows = torch.linalg.svd(x - x.mean(dim=0), full_matrices=False)
    axes = rows[:4].T
    expected["principal axes"] = axes * axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)).sign()
    with torch.no_grad():
        network.refresh_bank()
        network.mean_product.copy_(network.channel_sum(x) / n_cells)
        z = network(x, frozen=True).latent
        q, k, v = network.spatial_parts(x)
    expected["mean product"] = network.mean_product
    u, _ = soft_assignment(z, model.clusters.centers.double(), model.clusters.temperature, EPSILON)
    weight = u * robust_weight(torch.cdist(z, model.clusters.centers.double()), EPSILON)
    expected["weight"] = weight.sum(dim=0)
    expected["centers"] = weight.T @ z / weight.sum(dim=0)[:, None]
    z_hat = z / z.norm(dim=1, keepdim=True)
    dense = all_targets["consensus"].of(np.arange(n_cells), z, None).dense().double()
    for name, rows_of_u in (("membership", u), ("consensus", dense)):
        u_hat = rows_of_u / rows_of_u.norm(dim=1, keepdim=True)
        expected[f"{name} zz"] = z_hat.T @ z_hat / n_cells
        expected[f"{name} uz"] = u_hat.T @ z_hat / n_cells
        expected[f"{name} uu_square"] = (u_hat @ u_hat.T).square().mean()
    expected["attention"] = torch.softmax(q @ k.mT / q.shape[2] ** 0.5, dim=-1) @ v
    return expected


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    atlas = simulate(folder / "atlas.zarr", N_CELLS, n_genes=100, n_types=5)
    return ingest(atlas, folder / "store.zarr", IngestConfig(n_genes=50))


@pytest.mark.ddp
@pytest.mark.parametrize("sizes", [(1, 2), pytest.param((1, 4), marks=pytest.mark.slow)])
def test_any_number_of_ranks_has_the_sums_of_one_shot(store: Path, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    expected = one_shot(store)
    expected_latent, expected_landmarks = None, None
    for size in sizes:
        folder = tmp_path / f"files {size}"
        folder.mkdir()
        found = (
            [sums(World(), store, folder)] if size == 1 else run_ranks(sums, size, tmp_path / f"{size}", store, folder)
        )
        attention = torch.cat([found[rank].pop(f"attention of {rank}") for rank in range(size)], dim=1)
        order = torch.from_numpy(np.concatenate([rows_of_rank(World(rank, size)) for rank in range(size)]))
        torch.testing.assert_close(attention.double(), expected["attention"][:, order], rtol=0, atol=1e-5)
        latent = torch.empty(N_CELLS, expected["centers"].shape[1])
        latent[order] = torch.cat([found[rank].pop(f"latent of {rank}") for rank in range(size)])
        expected_latent = latent if size == 1 else expected_latent
        torch.testing.assert_close(latent, expected_latent, rtol=0, atol=0)
        assert list(folder.iterdir()) == []
        for ours in found:
            pass_over_cells = {name: ours.pop(name) for name in list(ours) if name.startswith("landmark ")}
            assert pass_over_cells["landmark weights"].sum() == N_CELLS
            expected_landmarks = expected_landmarks or pass_over_cells
            for name, value in pass_over_cells.items():
                torch.testing.assert_close(value, expected_landmarks[name], rtol=0, atol=0, msg=name)
        for rank, ours in enumerate(found):
            for name, value in ours.items():
                scale = expected["cell length" if name == "principal mean" else name].norm()  # the mean itself is 0
                error = (value.double() - expected[name]).norm() / scale
                # Cells in float32, sums in float64: the errors of cells, some 1e-7, do not add up.
                # Axes are no sum: the gap between their variances magnifies the error of the covariance.
                assert error < (1e-4 if name == "principal axes" else 1e-6), (size, rank, name, float(error))
                torch.testing.assert_close(value, found[0][name], rtol=0, atol=0)


def sums_of_few(world: World, store: Path, folder: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    model = model_of(store)
    with open_source(store) as source:
        sweeps = Sweeps(model.network, source, world)
        sweeps.freeze()
        found, atlas = sweeps.fuzzy(model.clusters, label="", target=MembershipTarget())
        assert atlas is not None
        attention = AtlasAttention(model.network, source, folder, world)
        attention.compute()
        own = attention.read(0, attention.n_own)
        attention.close()
        return found.centers, atlas.zz, own


@pytest.mark.ddp
@pytest.mark.slow
def test_a_rank_without_cells_joins_in(tmp_path: Path) -> None:
    atlas = simulate(tmp_path / "atlas.zarr", 3, n_genes=30, n_types=2)
    store = ingest(atlas, tmp_path / "store.zarr", IngestConfig(min_cell_fraction=0.0))
    alone = sums_of_few(World(), store, tmp_path)
    found = run_ranks(sums_of_few, 4, tmp_path / "ranks", store, tmp_path)
    assert 0 in [ours[2].shape[1] for ours in found]
    for centers, zz, _ in found:
        torch.testing.assert_close(centers, alone[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(zz, alone[1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.cat([ours[2] for ours in found], dim=1), alone[2], rtol=0, atol=1e-5)
