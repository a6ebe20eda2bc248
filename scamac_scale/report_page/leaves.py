"""The tree that is drawn, and what its leaves are called."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scamac_scale.report_page.shown import MOST

if TYPE_CHECKING:
    from scamac_scale.ops.tree import Floats
    from scamac_scale.report_page.gather import Facts


def leaves_of(facts: Facts) -> tuple[Floats, list[str]] | None:
    """Linkage and leaves of the tree that is drawn: over all clusters, or over its top branches where there are more than `MOST`."""
    result, model = facts.result, facts.run.model
    names = [str(number) for number in range(model.n_clusters)] if result is None else result.clusters.names
    top = None if result is None else result.tree
    if top is None and model.tree is not None and 2 <= len(names) <= len(model.tree):
        top = model.tree.top(len(names))
    if top is None or len(names) < 2:
        return None
    if len(names) <= MOST:
        return top, [f"{name}{_majority(facts, at)}" for at, name in enumerate(names)]
    if model.tree is None or len(model.tree) < len(names):
        return None
    of = model.tree.coarser(len(names), MOST)
    told = []
    for branch in range(MOST):
        inside = np.flatnonzero(of == branch)
        one = names[inside[0]]
        told.append(one if len(inside) == 1 else f"{one} to {names[inside[-1]]} ({len(inside)} clusters)")
    return model.tree.top(MOST), told


def _majority(facts: Facts, cluster: int) -> str:
    """Commonest label of a cluster, if there is one."""
    result = facts.result
    if result is None or result.labels is None or not result.labels.names:
        return ""
    table = facts.own.get("crossed_labels")
    if table is None:
        table = facts.own["crossed_labels"] = result.crossed(result.labels)
    return f" · {result.labels.names[int(table[cluster].argmax())]}" if table[cluster].any() else ""
