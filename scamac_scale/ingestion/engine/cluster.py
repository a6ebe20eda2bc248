"""Blocks of cells by the workers of a cluster, each of which opens the input by itself."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

from scamac_scale.errors import InputError
from scamac_scale.ingestion.engine.blocks import blocks_of, reported, run_block
from scamac_scale.workers.tasks import Opening, Work, in_order, opened_by_workers

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from scamac_scale.ingestion.engine.blocks import Block, BlockFunction
    from scamac_scale.ingestion.raw import RawMatrix, Recipe
    from scamac_scale.workers.connect import Client


class ClusterEngine:
    """Maps functions over blocks by workers, see `Engine`: the results are those of `LocalEngine`, to the bit.

    Parameters
    ----------
    block_cells
        Cells of a block.
    client
        From `connected`; not closed.
    """

    def __init__(self, block_cells: int, client: Client) -> None:
        self.block_cells = block_cells
        self._client = client
        self._stack = ExitStack()
        self._openings: list[tuple[RawMatrix, Opening]] = []

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Have the workers close the inputs."""
        self._stack.close()

    # Any: as of `Engine.map`
    def map(
        self, raw: RawMatrix, function: BlockFunction, common: Any, label: str, first: int = 0
    ) -> Generator[tuple[int, Any], None, None]:
        """Have all blocks read, and give what a function makes of each, in their order; see `Engine.map`.

        Raises
        ------
        InputError
            If the input is in memory.
        ClusterError, LostRankError
            As of `in_order`.
        """
        blocks = blocks_of(raw.n_cells, self.block_cells, first)
        work = Work(
            self._opening(raw),
            _run,
            (function, common),
            lambda block: f"{raw.name}: cells {block[1]} to {block[2]}",
        )
        yield from reported(raw, blocks, label, in_order(self._client, work, blocks))

    def _opening(self, raw: RawMatrix) -> Opening:
        """Say how workers open an input: the same for all passes over it."""
        if raw.recipe is None:
            raise InputError(
                f"{raw.name} cannot be read by workers; write it to a file that all of them see, or leave dask out."
            )
        for known, opening in self._openings:
            if known is raw:
                return opening
        opening = self._stack.enter_context(opened_by_workers(self._client, Opening(_open, (raw.recipe.stamped(),))))
        self._openings.append((raw, opening))
        return opening


def _open(recipe: Recipe) -> RawMatrix:
    return recipe.open()


# Any: as of `Engine.map`
def _run(raw: RawMatrix, work: tuple[BlockFunction, Any], block: Block) -> Any:
    return run_block(raw, *work, block)
