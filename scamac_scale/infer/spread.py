"""A prediction by the workers of a cluster: what is predicted of a block of cells depends on model and cells alone.

Each worker opens the input by itself; the model is sent to it. Only the client writes.
"""

from __future__ import annotations

import os
import pickle
import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scamac_scale.errors import ConfigError, InputError
from scamac_scale.infer.predictor import Predicted, Predictor
from scamac_scale.infer.tech_batches import tell_levels
from scamac_scale.loader.feed import Feed
from scamac_scale.loader.ordered import RowsPlan, SweepPlan
from scamac_scale.sources import OpenSource, open_source, seen_elsewhere
from scamac_scale.workers.connect import connected
from scamac_scale.workers.tasks import Opening, Work, in_order, opened_by_workers, unpickled

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from scamac_scale.config import IngestConfig
    from scamac_scale.fitted import FittedModel
    from scamac_scale.infer.options import PredictOptions
    from scamac_scale.ranks.world import World
    from scamac_scale.remote.stamps import Stamp
    from scamac_scale.workers.connect import Client


@dataclass(frozen=True)
class Spread:
    """Workers that predict.

    Attributes
    ----------
    client
        From `cluster.connect.connected`.
    data
        What names the input, as all of them see it.
    paths
        All files and folders of it.
    ingest
        How raw data is read.
    stamps
        Looks at the input before this process opened it: a worker that sees another one refuses it.
    """

    client: Client
    data: Any
    paths: tuple[str, ...]
    ingest: IngestConfig
    stamps: tuple[Stamp, ...] = ()


@dataclass(frozen=True)
class Asked:
    """What a worker needs beside the model: how the input is read, the options, and the widths of the blocks that are written."""

    ingest: IngestConfig
    options: PredictOptions
    widths: dict[str, int]


@contextmanager
def spread_over(
    data: Any,  # Any: a path, or what cannot be sent
    ingest: IngestConfig,
    dask: Client | str | None,
    workers: int | None,
) -> Iterator[Spread | None]:
    """Meet the workers that shall predict, see `connected`; None where none are asked for.

    Raises
    ------
    InputError
        If the input is in memory.
    """
    if dask is None and workers is None:
        yield None
        return
    named, paths = seen_elsewhere(data)
    with connected(dask, workers) as client:
        yield Spread(client, named, paths, ingest)


def check_spread(options: PredictOptions, world: World) -> None:
    """Refuse what workers do not do.

    Raises
    ------
    ConfigError
        If cells attend to the whole atlas, or several ranks predict.
    """
    if options.attention == "atlas":
        raise ConfigError(
            "attention=atlas needs all cells in one place, and is not done by dask workers; leave dask out."
        )
    if world.size > 1:
        raise ConfigError(
            f"{world.size} processes of one job and dask workers do not go together; leave one of them out."
        )


def predicted_turns(
    spread: Spread, model: FittedModel, options: PredictOptions, widths: dict[str, int], turns: list[tuple[int, int]]
) -> Generator[list[Predicted], None, None]:
    """Have turns of batches predicted.

    Parameters
    ----------
    spread
        The workers.
    model
        On the CPU, with what it was told of new technical batches.
    options, widths
        As of `Asked`.
    turns
        First batch of each, and the one after the last, as of a `SweepPlan` of `Predictor.batch_cells`.

    Yields
    ------
    list of Predicted
        Of the batches of a turn.
    """
    first = spread.paths[0]
    asked = Asked(spread.ingest, options, widths)
    opening = Opening(_Side, (spread.data, spread.stamps, asked))
    work = Work(opening, _predict_turn, pickle.dumps(model), lambda turn: f"{first}: batches {turn[0]} to {turn[1]}")
    with opened_by_workers(spread.client, opening):
        yield from in_order(spread.client, work, turns)


class _Side:
    """What a worker keeps: the input, open, and the predictor, once it has the model."""

    def __init__(self, data: Any, stamps: tuple[Stamp, ...], asked: Asked) -> None:
        self._stamps = stamps
        self._look()
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # workers are as many as there are cores
        self._data, self._asked = data, asked
        self._stack, self._lock = ExitStack(), threading.Lock()
        self._predictor: Predictor | None = None

    def predictor(self, model: bytes) -> Predictor:
        """Make the predictor, or give the one that was made."""
        with self._lock:
            if self._predictor is None:
                self._predictor = self._make(unpickled(model))
            return self._predictor

    def _look(self) -> None:
        for stamp in self._stamps:
            stamp.check()

    def _make(self, model: FittedModel) -> Predictor:
        options = self._asked.options
        source: OpenSource = self._stack.enter_context(
            open_source(self._data, model.genes, ingest=self._asked.ingest, accepted=options.accept)
        )
        self._look()
        if source.n_cells == 0:
            raise InputError(f"{self._data} has no cells.")
        tell_levels(model, source, options.batch_key)
        return Predictor.make(model, source, options, self._asked.widths)

    def close(self) -> None:
        self._stack.close()


def _predict_turn(side: _Side, model: bytes, turn: tuple[int, int]) -> list[Predicted]:
    """Predict the batches of a turn, on a worker."""
    predictor = side.predictor(model)
    plan = SweepPlan(predictor.source.n_cells, predictor.batch_cells)
    rows = [plan.rows(index) for index in range(*turn)]
    with torch.no_grad(), Feed(predictor.source, threads=1) as feed:
        return [predictor(int(batch.rows[0]), batch) for batch in feed.run(RowsPlan(rows), 0)]
