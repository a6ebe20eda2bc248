"""The noise of a step: a function of seed, step and block, drawn ahead by the feed as it would be drawn in the step."""

from __future__ import annotations

import torch

from scamac_scale.config import InputConfig
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.plan import EpochPlan
from scamac_scale.ranks.world import ALONE, World
from scamac_scale.train.noise import Noise
from tests.support.memory import MatrixSource

CONFIG = InputConfig(noise_low=-1.0, noise_high=3.0)
G = 5


def drawn(seed: int, step: int, world: World = ALONE) -> torch.Tensor:
    plan = EpochPlan(300, 120, seed=0, world=world)
    n_cells = len(plan.share(step).rows)
    return Noise(CONFIG, seed, plan, 4, world).fill(step, torch.full((n_cells, G), torch.nan))


def test_noise_is_a_function_of_seed_and_step() -> None:
    noise = drawn(7, 3)
    assert torch.equal(noise, drawn(7, 3))
    assert noise.min() >= -1
    assert noise.max() < 3
    assert not torch.equal(noise, drawn(8, 3)[: len(noise)])
    assert not torch.equal(drawn(7, 0), drawn(7, 1))


def test_blocks_have_noise_of_their_own() -> None:
    first, second = drawn(7, 0).split(len(drawn(7, 0)) // 2)
    assert not torch.equal(first, second)


def test_ranks_put_together_have_the_noise_of_one_process() -> None:
    for size in (2, 4):
        parts = [drawn(7, 3, World(rank, size)) for rank in range(size)]
        assert torch.equal(torch.cat(parts), drawn(7, 3))


def test_the_feed_draws_ahead_what_a_step_would_draw() -> None:
    source = MatrixSource()
    plan = EpochPlan(source.n_cells, 60, seed=0)
    noise = Noise(CONFIG, 7, plan, 4, ALONE)
    n_seen = 0
    with Feed(source, threads=3) as feed:
        for step, batch in enumerate(feed.run(plan, 2, 9, beside=noise.fill), start=2):
            assert batch.beside is not None
            assert torch.equal(batch.beside, noise.fill(step, torch.empty_like(batch.values)))
            batch.beside.zero_()  # the step may write there
            n_seen += 1
        assert all(batch.beside is None for batch in feed.run(plan, 0, 2))
    assert n_seen == 7
