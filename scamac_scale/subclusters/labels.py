"""The clusters of a result, for the cells of an input; and the names of their parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from scamac_scale.errors import InputError
from scamac_scale.infer.output.journal import refuse_other_model
from scamac_scale.ingestion.files import open_file, place_of
from scamac_scale.ingestion.open import read_obs

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.cells.arrays import IntArray
    from scamac_scale.fitted import FittedModel
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.subclusters.options import RefineOptions


class Labels(NamedTuple):
    """Clusters of all cells: names in their order, (N,) codes, and the codes of those that are cut."""

    names: list[str]
    codes: IntArray
    chosen: list[int]


def read_labels(result: str | Path, raw: RawMatrix, model: FittedModel, options: RefineOptions) -> Labels:
    """Read the clusters of a result; raises InputError where it is not of these cells and this model, or none can be cut."""
    obs = read_obs(result)
    if options.key not in obs:
        raise InputError(
            f"{result}: obs has no column {options.key!r}; it has {', '.join(map(str, obs.columns)) or 'none'}."
        )
    if len(obs) != raw.n_cells or not np.array_equal(obs.index.to_numpy(), raw.obs.index.to_numpy()):
        raise InputError(
            f"{result} holds {len(obs):,} cells and {raw.name} {raw.n_cells:,}, or not the same ones in the same order; give the input that "
            "was predicted."
        )
    with open_file(place_of(result)) as group:
        refuse_other_model(result, group, model)
    column = pd.Categorical(obs[options.key].astype("category"))
    names = [str(name) for name in column.categories]
    codes = np.asarray(column.codes, dtype=np.int64)
    sizes = np.bincount(codes[codes >= 0], minlength=len(names))
    if options.clusters is not None:
        unknown = [name for name in options.clusters if name not in names]
        if unknown:
            raise InputError(
                f"{result}: {options.key} has no cluster {', '.join(map(repr, unknown))}; it has {', '.join(names[:20])}"
                f"{', ...' if len(names) > 20 else ''}."
            )
    asked = [code for code, name in enumerate(names) if options.clusters is None or name in options.clusters]
    chosen = [code for code in asked if sizes[code] >= options.min_cells]
    if not chosen:
        largest = max((int(sizes[code]) for code in asked), default=0)
        raise InputError(
            f"{result}: no cluster of {options.key} that was asked for has {options.min_cells:,} cells, the largest has {largest:,}; lower "
            "min_cells."
        )
    for code in chosen:
        alike = [
            name for name in names if name.startswith(f"{names[code]}.") and name[len(names[code]) + 1 :].isdigit()
        ]
        if alike:
            raise InputError(
                f"{result}: {options.key} has {names[code]!r} and {alike[0]!r}, which is how a part of the former would be named; rename one."
            )
    return Labels(names, codes, chosen)


def column_of(labels: Labels, parts: dict[int, IntArray]) -> pd.Categorical:
    """Names of sub-clusters: "3.1", "3.2" by size, "5" where a cluster does not split; cells without a cluster have none."""
    names: list[str] = []
    codes = np.full(len(labels.codes), -1, dtype=np.int64)
    for code, name in enumerate(labels.names):
        own = labels.codes == code
        found = parts.get(code)
        n_parts = 1 if found is None or not len(found) else int(found.max()) + 1
        codes[own] = len(names) + (0 if found is None or n_parts == 1 else found)
        names += [name] if n_parts == 1 else [f"{name}.{part + 1}" for part in range(n_parts)]
    return pd.Categorical.from_codes(codes, categories=pd.Index(names, dtype=object))
