"""Opening what a user names as input: one `RawMatrix` of all of its cells, or of those that are taken."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.digests import sha256_of
from scamac_scale.errors import InputError
from scamac_scale.ingestion.files import place_of
from scamac_scale.ingestion.many.frames import join_frames, kept_columns, warn_of_repeated, with_constants
from scamac_scale.ingestion.many.genes import JointGenes, join_genes, onto
from scamac_scale.ingestion.many.identifiers import Identifiers
from scamac_scale.ingestion.many.inputs import list_inputs
from scamac_scale.ingestion.many.selection import asked_cells
from scamac_scale.ingestion.many.stack import Handles, PickedRows, StackedRows
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.raw import FILE, FILE_ROW, Part, RawMatrix, Recipe
from scamac_scale.store.record import is_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.many.genes import Names
    from scamac_scale.ingestion.many.inputs import OneInput
    from scamac_scale.ingestion.rows import Rows

    Join = Callable[[Sequence[tuple[str, Names]], IngestConfig], JointGenes]

logger = logging.getLogger(__name__)


def open_inputs(
    data: Any,  # Any: as of `list_inputs`
    config: IngestConfig,
    join: Join = join_genes,
    check: Callable[[RawMatrix], None] | None = None,
    column_of: Callable[[RawMatrix], str | None] | None = None,
) -> RawMatrix:
    """Open one or several inputs as one.

    Parameters
    ----------
    data
        A path, a glob, a manifest, an AnnData, or a list of these; see `list_inputs`.
    config
        Where values lie (``matrix``), how genes are joined (``join``), which cells (``where``, ``cells``) and which columns of obs
        are taken. What `min_genes` and `max_mito` leave out needs a pass over the values: see `quality.without_poor`.
    join
        Makes the genes of all inputs of those of each.
    check
        Looks at each input, where there are several, and raises if it cannot be used; None compares identifiers of genes.
    column_of
        Says of each input in which column of var the names of its genes are, in place of its index; None where they are that.

    Returns
    -------
    RawMatrix
        Cells in the order of the inputs. A single input of which all cells are taken is what `open_raw` gives; otherwise obs has the
        columns ``scamac_file`` and ``scamac_file_row``, and `parts` names the inputs.

    Raises
    ------
    InputError
        If an input cannot be used, is given twice, or shares no gene with the others; or no cell is taken.
    """
    inputs = list_inputs(data)
    opened = partial(_open_one, config=config, column_of=None if config.gene_column else column_of)
    raw = _open_single(inputs[0], opened) if len(inputs) == 1 else _open_several(inputs, config, join, opened, check)
    try:
        asked = asked_cells(raw.obs if raw.parts else with_origin(raw), config, raw.name)
        if asked is not None:
            raw = take_cells(raw, *asked)
        if config.columns is not None:
            raw = _with_obs(raw, kept_columns(raw.obs, config.columns, config.batch_key, raw.name, (FILE, FILE_ROW)))
    except BaseException:
        raw.close()
        raise
    return raw


def _open_one(one: OneInput, config: IngestConfig, column_of: Callable[[RawMatrix], str | None] | None) -> RawMatrix:
    if isinstance(one.data, (str, os.PathLike)) and is_store(place_of(one.data)):
        raise InputError(
            f"{one.name} is a training store: its genes were chosen already, and totals of the others are gone. Give the raw file that it was "
            "made from, for some of its cells with --cells or --where."
        )
    matrix = one.matrix or config.matrix
    raw = open_raw(one.data, matrix, config.gene_column)
    try:
        column = None if column_of is None else column_of(raw)
    except BaseException:
        raw.close()
        raise
    if column is not None:
        raw.close()
        raw = open_raw(one.data, matrix, column)
    return replace(raw, name=one.name) if raw.path is None else raw


def _open_single(one: OneInput, opened: Callable[[OneInput], RawMatrix]) -> RawMatrix:
    raw = opened(one)
    try:
        _refuse_ours(one)
        return _with_obs(raw, with_constants(raw.obs, one.columns, raw.name)) if one.columns else raw
    except BaseException:
        raw.close()
        raise


def _open_several(
    inputs: Sequence[OneInput],
    config: IngestConfig,
    join: Join,
    opened: Callable[[OneInput], RawMatrix],
    check: Callable[[RawMatrix], None] | None,
) -> RawMatrix:
    identifiers = Identifiers()

    def each() -> Iterator[tuple[RawMatrix, str, pd.DataFrame]]:
        for one in inputs:
            _refuse_ours(one)
            raw = opened(one)
            try:
                if check is None:
                    identifiers.look(raw, one.name)
                else:
                    check(raw)
            except BaseException:
                raw.close()
                raise
            yield raw, one.name, with_constants(raw.obs, one.columns, one.name)

    raw = _stack(each(), config.matrix, lambda genes: join(genes, config))
    identifiers.tell()
    warn_of_repeated(raw.obs.index, raw.name)
    return raw


def _stack(
    opened: Iterator[tuple[RawMatrix, str, pd.DataFrame]],
    matrix: str,
    join: Callable[[Sequence[tuple[str, Names]]], JointGenes],
) -> RawMatrix:
    """Put inputs one below the other; each comes open, with its name and its columns of obs."""
    handles = Handles()
    parts: list[Part] = []
    frames, dtypes = [], []
    known: dict[Names, Names] = {}
    try:
        for number, (raw, name, columns) in enumerate(opened):
            handles.add(number, raw)
            frames.append(_origin(columns, name, np.arange(raw.n_cells)))
            dtypes.append(raw.dtype)
            genes = known.setdefault(raw.gene_names, raw.gene_names)  # names that are alike are held once
            parts.append(_part(raw, name, genes))
        joint = join([(part.name, part.gene_names) for part in parts])
        starts = np.cumsum([0, *(part.n_cells for part in parts)], dtype=np.int64)
        shape, n_stored = (int(starts[-1]), len(joint.names)), sum(part.n_stored for part in parts)
        rows = StackedRows(handles, starts, joint.targets, shape, np.dtype(np.result_type(*dtypes)), n_stored)
        obs = join_frames(frames, [part.name for part in parts])
    except BaseException:
        handles.close()
        raise
    name = f"{len(parts)} inputs ({parts[0].name}, ...)"
    return RawMatrix(
        name,
        None,
        matrix,
        joint.names,
        rows,
        lambda: obs,
        handles.close,
        _noted_base(parts),
        _recipe(handles, parts, joint),
        lambda: handles.vars([part.name for part in parts]),
        tuple(parts),
    )


def _part(raw: RawMatrix, name: str, genes: tuple[str, ...]) -> Part:
    return Part(name, raw.path, raw.matrix, genes, raw.noted_base, raw.n_cells, raw.n_stored, raw.n_cells)


def _noted_base(parts: Sequence[Part]) -> float | None:
    """Take the base that is noted, where none notes another one."""
    noted = {part.noted_base for part in parts} - {None}
    return noted.pop() if len(noted) == 1 else None


def _refuse_ours(one: OneInput) -> None:
    taken = [name for name in one.columns if name.startswith("scamac_")]
    if taken:
        raise InputError(f"a manifest has a column {taken[0]!r}, a name that stores keep for themselves; rename it.")


def _origin(obs: pd.DataFrame, name: str, rows: NDArray[np.int64]) -> pd.DataFrame:
    """Say of cells which input they are from, and of which row."""
    import pandas as pd

    replaced = [column for column in (FILE, FILE_ROW) if column in obs]
    if replaced:
        logger.warning("%s: the columns %s of obs are replaced", name, ", ".join(replaced))
    file = pd.Categorical.from_codes(np.zeros(len(obs), np.int8), pd.Index([name], dtype=object))
    found = obs.drop(columns=replaced)  # a copy, for its columns are to be set
    found[FILE], found[FILE_ROW] = file, rows
    return found


def with_origin(raw: RawMatrix) -> pd.DataFrame:
    """Columns of a single input, with those that tell where its cells are from."""
    return _origin(raw.obs, raw.name, np.arange(raw.n_cells))


def take_cells(raw: RawMatrix, picks: NDArray[np.int64], left_out: Mapping[str, int]) -> RawMatrix:
    """Take some cells of an input.

    Parameters
    ----------
    raw
        Open; closed with what is returned.
    picks
        (n,) its rows to take, ascending.
    left_out
        Cells that each filter leaves out, by its setting.

    Returns
    -------
    RawMatrix
        These cells alone; categories that none of them has are gone from obs.
    """
    base = raw.obs if raw.parts else with_origin(raw)
    obs = base.iloc[picks].copy()
    for column in obs.columns[[hasattr(dtype, "categories") for dtype in obs.dtypes]]:
        obs[column] = obs[column].cat.remove_unused_categories()
    parts = raw.parts or (_part(raw, raw.name, raw.gene_names),)
    bounds = np.searchsorted(picks, np.cumsum([0, *(part.n_taken for part in parts)]))
    rows = obs[FILE_ROW].to_numpy()
    taken = tuple(
        replace(part, n_taken=int(stop - start), taken=sha256_of(rows[start:stop].astype(np.int64)))
        for part, start, stop in zip(parts, bounds[:-1], bounds[1:], strict=True)
    )
    again = None
    if raw.recipe is not None:
        again = Recipe.of_others(_take_again, (raw.recipe, picks), [raw.recipe])
    told = {**raw.left_out, **left_out}
    return replace(
        raw, rows=PickedRows(raw.rows, picks), read_obs=lambda: obs, parts=taken, recipe=again, left_out=told
    )


def with_all_genes(raw: RawMatrix) -> RawMatrix:
    """Give the same cells with the genes of any input, where the join left some out; closed with `raw`."""
    picks = raw.rows.picks if isinstance(raw.rows, PickedRows) else None
    stack = raw.rows.base if isinstance(raw.rows, PickedRows) else raw.rows
    names = tuple(dict.fromkeys(gene for genes in {part.gene_names: None for part in raw.parts} for gene in genes))
    if not isinstance(stack, StackedRows) or set(names) <= set(raw.gene_names):
        return raw
    found = onto(names, [part.gene_names for part in raw.parts])
    joint = JointGenes(names, tuple(found[part.gene_names] for part in raw.parts))
    rows: Rows = replace(stack, targets=joint.targets, shape=(stack.shape[0], len(names)))
    recipe = _recipe(stack.handles, raw.parts, joint)
    if picks is not None:
        rows = PickedRows(rows, picks)
        recipe = None if recipe is None else Recipe(_take_again, (recipe, picks), recipe.files)
    return replace(raw, gene_names=names, rows=rows, recipe=recipe)


def _with_obs(raw: RawMatrix, obs: pd.DataFrame) -> RawMatrix:
    return replace(raw, read_obs=lambda: obs)


def _recipe(handles: Handles, parts: Sequence[Part], joint: JointGenes) -> Recipe | None:
    found = handles.recipes(len(parts))
    if found is None:
        return None
    args = (found, tuple(part.name for part in parts), joint)
    return Recipe.of_others(_stack_again, args, found)


def _stack_again(recipes: tuple[Recipe, ...], names: tuple[str, ...], joint: JointGenes) -> RawMatrix:
    """Open inputs again as one, in another process: the values, and of obs where cells are from."""

    def opened() -> Iterator[tuple[RawMatrix, str, pd.DataFrame]]:
        for recipe, name in zip(recipes, names, strict=True):
            raw = recipe.open()
            yield raw, name, raw.obs[[]]

    return _stack(opened(), "X", lambda genes: joint)


def _take_again(recipe: Recipe, picks: NDArray[np.int64]) -> RawMatrix:
    return take_cells(recipe.open(), picks, {})
