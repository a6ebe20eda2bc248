"""Ranks that meet: only with those that live, whatever earlier ones have left behind."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from torch.distributed import HashStore

from scamac_scale.ranks.connections import meet
from scamac_scale.ranks.world import World

SIZE = 3


def meet_all(board: HashStore, ranks: range = range(SIZE)) -> list[str]:
    with ThreadPoolExecutor(SIZE) as pool:
        return list(pool.map(lambda rank: meet(board, World(rank, SIZE), 10.0), ranks))


def test_all_ranks_get_one_name_and_another_the_next_time() -> None:
    board = HashStore()
    names = [meet_all(board) for _ in range(3)]
    assert [len(set(found)) for found in names] == [1, 1, 1]
    assert len({found[0] for found in names}) == 3


def test_the_missing_are_named() -> None:
    board = HashStore()
    meet_all(board)  # what they left says nothing about the next time
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(meet, board, World(rank, SIZE), 0.3) for rank in (0, 2)]
        errors = [future.exception() for future in waiting]
    assert [str(error) for error in errors] == ["rank 1 did not come within 0.3 s", "rank 0 did not come within 0.3 s"]


@pytest.mark.parametrize("late", range(SIZE))
def test_a_rank_that_comes_late_does_not_find_those_who_gave_up(late: int) -> None:
    board = HashStore()
    others = [rank for rank in range(SIZE) if rank != late]
    with ThreadPoolExecutor(2) as pool:  # as far as they get without one
        gone = [pool.submit(meet, board, World(rank, SIZE), 0.2) for rank in others]
        assert all(future.exception() for future in gone)
    assert len(set(meet_all(board))) == 1


def test_an_answer_of_a_rank_0_that_has_gone_is_taken_back() -> None:
    board, found = HashStore(), []
    waiting = threading.Thread(target=lambda: found.append(meet(board, World(1, 2), 10.0)))
    waiting.start()
    hello = b""
    while not hello:
        hello = board.get("hello/1") if board.check(["hello/1"]) else b""
        time.sleep(0.01)
    board.set(f"{hello.decode()}/answer", "scamac_scale/gone")
    while not board.check(["scamac_scale/gone/here/1"]):
        time.sleep(0.01)
    name: Any = meet(board, World(0, 2), 10.0)
    waiting.join()
    assert found == [name]
