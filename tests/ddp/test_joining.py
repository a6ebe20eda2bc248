"""Two real processes join, although a stranger takes the place of one of them on gloo's port, and send one another all sorts of things."""

from __future__ import annotations

import os
import socket
import struct
import warnings
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from scamac_scale.errors import ConfigError, LostRankError, OutputError, ScamacError
from scamac_scale.ranks import pairs, store
from scamac_scale.ranks.collectives import barrier, from_first, gather_objects
from scamac_scale.ranks.connections import joined
from scamac_scale.ranks.place import Place
from scamac_scale.ranks.secret import SECRET, new_secret
from scamac_scale.ranks.world import World
from tests.support.launch import start_ranks
from tests.support.machine import free_port
from tests.support.stranger import Bomb, listeners

if TYPE_CHECKING:
    from pathlib import Path

SENT = {
    "tensor": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "none": torch.zeros(0, 4),
    "array": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "tuple": (1, [2.5, None, True], {3: "vier"}),
}


def take_places(held: list[socket.socket]) -> None:
    """Connect to gloo's ports of this process as the ranks that it waits for, before those know where to connect to."""
    for place in listeners({os.getpid()}):
        for number in range(4):
            held.append(socket.create_connection(place))
            held[-1].sendall(struct.pack("<q", number))


def same(found: Any, sent: Any) -> None:
    """Of the same types, and with the same bits."""
    assert type(found) is type(sent)
    for name, value in sent.items():
        assert type(found[name]) is type(value)
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(found[name], value, rtol=0, atol=0)
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value, strict=True)
            assert found[name].strides == value.strides
        else:
            assert found[name] == value


def fail() -> None:
    error = OutputError("no room")
    error.errno = 28
    raise error


def be_rank(rank: int, port: int, secret: str, folder: Path) -> None:
    warnings.simplefilter("error")
    os.environ[SECRET] = secret
    torch.set_num_threads(1)
    world, held, true_set = World(rank, 2), [], store.BoardStore.set

    def set_slowly(self: store.BoardStore, key: str, value: bytes) -> None:
        if "cpu" in key and not held:
            take_places(held)
        true_set(self, key, value)

    store.BoardStore.set = set_slowly  # type: ignore[method-assign]
    place = Place(world, rank, "127.0.0.1", port)
    with joined(place, is_cuda=False, timeout_s=3, setup_timeout_s=60):
        assert held  # a stranger was faster, and all ranks began anew
        for found in gather_objects({**SENT, "rank": rank, "long": "x" * (rank * 10_000)}, world)[::-1]:
            same({name: found[name] for name in SENT}, SENT)
        assert [found["rank"] for found in gather_objects({"rank": rank}, world)] == [0, 1]
        same(from_first(lambda: SENT, world), SENT)
        with pytest.raises(OutputError, match=r"^no room$") as caught:
            from_first(fail, world)
        assert caught.value.errno == 28
        assert caught.value.exit_code == 4
        with pytest.raises(TypeError, match="no Bomb"):
            gather_objects(Bomb(folder / "bomb"), world)
        barrier(world)
        with pytest.raises(LostRankError, match="somebody else has connected in the place of rank"):
            pairs.verify({"all": None}, world, b"what only this rank knows: %d" % rank, timedelta(seconds=20))
    with joined(place, is_cuda=False, timeout_s=3, setup_timeout_s=60):
        barrier(world)
    (folder / f"{rank}").touch()


@pytest.mark.ddp
@pytest.mark.slow
def test_two_ranks_join_beside_a_stranger_and_send_plain_data(tmp_path: Path) -> None:
    start_ranks(be_rank, 2, free_port(), new_secret(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def test_ranks_of_several_machines_are_refused_without_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    place = Place(World(1, 2), 0, "node0", 29400)
    with (
        pytest.raises(
            ScamacError, match=r"ranks of several machines need a secret.*openssl rand.*SCAMAC_JOB_SECRET_FILE"
        ) as caught,
        joined(place, is_cuda=False, timeout_s=1, setup_timeout_s=1),
    ):
        pass
    assert isinstance(caught.value, ConfigError)
