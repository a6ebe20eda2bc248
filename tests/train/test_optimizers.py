"""Optimizers without the compiler take the steps that torch's own take."""

from __future__ import annotations

import pytest
import torch

from scamac_scale.train.optimizers import OPTIMIZERS

TORCH = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def steps(optimizer: torch.optim.Optimizer, weight: torch.Tensor, first: int) -> None:
    for step in range(first, first + 3):
        optimizer.zero_grad()
        (weight.square().sum() * step + weight.sum()).backward()
        optimizer.step()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_steps_have_the_bits_of_torch_also_when_they_go_on(name: str) -> None:
    start = torch.linspace(-1, 1, 12).reshape(3, 4)
    ours, theirs, slow = (start.clone().requires_grad_() for _ in range(3))
    first, peer = OPTIMIZERS[name]([ours], lr=0.1), TORCH[name]([theirs], lr=0.1, fused=True)
    one_by_one = TORCH[name]([slow], lr=0.1, foreach=False)
    steps(first, ours, 1)
    steps(peer, theirs, 1)
    steps(one_by_one, slow, 1)
    again = OPTIMIZERS[name]([ours], lr=0.1)
    again.load_state_dict(first.state_dict())
    steps(again, ours, 4)
    steps(peer, theirs, 4)
    steps(one_by_one, slow, 4)
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours, slow)  # the fused kernel rounds elsewhere
    assert again.state_dict()["state"].keys() == peer.state_dict()["state"].keys()
    assert torch.is_grad_enabled()


def test_every_optimizer_has_a_peer() -> None:
    assert set(OPTIMIZERS) == set(TORCH)
