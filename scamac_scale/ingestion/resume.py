"""What the first two passes over an input found, noted so that a later run need not repeat them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.cells.genes import GeneSpace
from scamac_scale.ingestion.evidence import Evidence
from scamac_scale.ingestion.passes import Census, Entry, take_census
from scamac_scale.ingestion.statistics import RawStatistics, measure

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scamac_scale.config import IngestConfig
    from scamac_scale.ingestion.engine.blocks import Engine
    from scamac_scale.ingestion.raw import RawMatrix
    from scamac_scale.store.journal import Journal

_CENSUS, _MEASURED = "census", "measured"


def measured(raw: RawMatrix, config: IngestConfig, journal: Journal, engine: Engine) -> RawStatistics:
    """Do what `statistics.measure` does, but for the passes that are noted.

    Parameters
    ----------
    raw, config
        As of `statistics.measure`; the journal is of this input and these settings.
    journal
        Where the result of each pass is noted, exactly.
    engine
        As of `statistics.measure`.
    """
    noted = journal.read(_MEASURED)
    if noted is not None:
        return _statistics_from(noted)
    noted = journal.read(_CENSUS)
    if noted is None or "evidence_sample" not in noted:  # the latter was noted by an earlier version
        census = take_census(raw, engine)
        journal.note(_CENSUS, **_census_note(census))
    else:
        census = _census_from(noted)
    found = measure(raw, config, census, engine)
    journal.note(_MEASURED, **_statistics_note(found))
    return found


def _census_note(census: Census) -> dict[str, Any]:  # Any: arrays and whole numbers
    fraction = np.array([] if census.fraction is None else census.fraction, np.float64)  # whole numbers below 2**53
    return {
        "n_cells": census.n_cells,
        "n_expressing": census.n_expressing,
        "largest": census.largest,
        "fraction": fraction,
        **{f"evidence_{name}": value for name, value in census.evidence.to_arrays().items()},
        **{
            f"input{number}_{name}": value
            for number, evidence in enumerate(census.of_inputs)
            for name, value in evidence.to_arrays().items()
        },
    }


def _census_from(noted: dict[str, NDArray[Any]]) -> Census:
    fraction = noted["fraction"].tolist()
    entry = Entry(int(fraction[0]), int(fraction[1]), fraction[2]) if fraction else None
    grouped: dict[str, dict[str, NDArray[Any]]] = {}
    for name, value in noted.items():
        of, _, field = name.partition("_")
        if of == "evidence" or of.startswith("input"):
            grouped.setdefault(of, {})[field] = value
    evidence = Evidence.from_arrays(grouped.pop("evidence"))
    of_inputs = tuple(Evidence.from_arrays(grouped[f"input{number}"]) for number in range(len(grouped)))
    return Census(int(noted["n_cells"]), noted["n_expressing"], noted["largest"], entry, evidence, of_inputs)


def _statistics_note(found: RawStatistics) -> dict[str, Any]:  # Any: arrays and whole numbers
    return {
        "gene_space": np.array(json.dumps(found.gene_space.to_dict(has_input=True))),
        "totals": found.totals,
        "n_empty": found.n_empty,
        "n_stored": found.n_stored,
        "largest": np.array(found.largest),
        **{f"var_{name}": column.to_numpy() for name, column in found.var.items()},
    }


def _statistics_from(noted: dict[str, NDArray[Any]]) -> RawStatistics:
    import pandas as pd

    space = GeneSpace.from_dict(json.loads(str(noted["gene_space"])))
    columns = {name.removeprefix("var_"): noted[name] for name in noted if name.startswith("var_")}
    var = pd.DataFrame(columns, index=np.array(space.chosen, dtype=object))
    return RawStatistics(
        space, noted["totals"], int(noted["n_empty"]), int(noted["n_stored"]), float(noted["largest"]), var
    )
