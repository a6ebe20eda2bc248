"""Cells that are predicted take their place among the technical batches of the fit; those of unknown ones by two sums over them."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch

from scamac_scale.cells.tech_batches import UNKNOWN, TechBatches, find_tech_batches, split_key
from scamac_scale.errors import InputError
from scamac_scale.loader.source import levels_of
from scamac_scale.ops.harmony import Reference, level_sums, map_levels
from scamac_scale.sweep import sum_over_cells

if TYPE_CHECKING:
    from scamac_scale.fitted import FittedModel
    from scamac_scale.loader.feed import Batch
    from scamac_scale.nn.correction import TechCorrection
    from scamac_scale.ranks.world import World
    from scamac_scale.sources import OpenSource

logger = logging.getLogger(__name__)


class _Sums(NamedTuple):
    """What `map_levels` needs of cells of unknown levels."""

    observed: torch.Tensor
    weighted: torch.Tensor

    def __add__(self, other: _Sums) -> _Sums:  # type: ignore[override]  # sums, not concatenated tuples
        return _Sums(self.observed + other.observed, self.weighted + other.weighted)


def match_tech_batches(model: FittedModel, obs: pd.DataFrame, key: str | None) -> TechBatches:
    """Find the technical batches of cells among those of a fit.

    Parameters
    ----------
    model
        That knows technical batches.
    obs
        Of the cells.
    key
        Columns of `obs` that stand for those of the fit, in their order; None takes the same names. Where `obs` has none of these, and none
        was named, all cells are one new technical batch.

    Returns
    -------
    TechBatches
        Cells with an unknown level are of new ones, one for each combination of levels.

    Raises
    ------
    InputError
        If the columns are not as many as those of the fit, or cannot be used.
    """
    known = model.tech_levels
    columns = split_key(key) or tuple(known)
    if len(columns) != len(known):
        raise InputError(
            f"the batch key {key!r} names {len(columns)} columns; the model was fitted with {len(known)} ({', '.join(known)})."
        )
    if key is None and not any(column in obs for column in columns):
        logger.warning(
            "the cells have no column %s, by which the model knows technical batches: all of them are taken for one new batch",
            " or ".join(columns),
        )
        codes = np.full((len(obs), len(columns)), UNKNOWN, dtype=np.int32)
        return TechBatches(columns, tuple(known.values()), codes, np.zeros(len(obs), dtype=np.int32))
    found = find_tech_batches(obs, columns, tuple(known.values()), where="obs of the input")
    is_new = (found.codes == UNKNOWN).any(axis=1)
    if not is_new.any():
        return found
    parts = [pd.factorize(obs.loc[is_new, column].astype(str), sort=True) for column in columns]
    rows, numbers = np.unique(np.stack([codes for codes, _ in parts], axis=1), axis=0, return_inverse=True)
    named = [", ".join(str(names[code]) for code, (_, names) in zip(row, parts, strict=True)) for row in rows]
    logger.info("technical batches that the fit has not seen: %s", "; ".join(named[:20]))
    new = np.full(len(obs), UNKNOWN, dtype=np.int32)
    new[is_new] = numbers.reshape(-1)
    return replace(found, new=new)


def tell_levels(model: FittedModel, source: OpenSource, key: str | None) -> None:
    """Tell a source where its cells come from, as `match_tech_batches` finds it.

    Raises
    ------
    InputError
        If the columns cannot be used, or a key was named and the model knows no technical batches.
    """
    if model.tech_levels:
        source.tech_batches = match_tech_batches(model, source.obs, key)
    elif key is not None:
        raise InputError(
            f"batch key {key!r}: the model was fitted without technical batches and cannot correct any; leave it out, or train with it."
        )


def place_new_batches(model: FittedModel, source: OpenSource, world: World) -> None:
    """Tell the correction of a model where technical batches lie that the fit has not seen; those of another source are forgotten.

    Parameters
    ----------
    model
        Fitted.
    source
        N cells, that know their levels.
    world
        This rank, and how many there are.

    Notes
    -----
    A pass over the cells where there are new batches, which is taken again when a prediction is resumed.

    References
    ----------
    Symphony, Nature Communications 2021; see `ops.harmony.map_levels`.
    """
    correction, tech = model.network.correction, source.tech_batches
    if correction is None or tech is None:
        return
    correction.new_beta = None
    if tech.new is not None:
        correction.new_beta = _map_new(model, source, correction, int(tech.new.max()) + 1, world)


def _map_new(
    model: FittedModel, source: OpenSource, correction: TechCorrection, n_new: int, world: World
) -> torch.Tensor:
    """(L', Q, d) offsets of new technical batches."""
    network, n_levels = model.network, correction.beta.shape[1]
    device = network.gene_mean.device

    @torch.no_grad()
    def part(batch: Batch) -> _Sums:
        levels = levels_of(source, batch.rows)
        assert levels is not None
        new = levels[:, 0].to(device) - n_levels
        z = correction.components(network.scale_input(batch.values.to(device)))
        sums = level_sums(z, torch.where(new < 0, n_new, new), correction.new_clusters(z), n_new)
        return _Sums(*(each.cpu() for each in sums))

    sums = sum_over_cells(source, part, label="new technical batches", world=world)
    reference = Reference(*(each.cpu() for each in correction.reference))
    return map_levels(sums.observed, sums.weighted, reference).float().to(device)
