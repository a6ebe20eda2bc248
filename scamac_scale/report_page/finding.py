"""What a check says: a finding, and the command that cuts the tree of a model anew."""

from __future__ import annotations

import os
import shlex
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, TypedDict

from scamac_scale.remote.place import is_url

if TYPE_CHECKING:
    from scamac_scale.report_page.gather import Facts

Severity = Literal["bad", "look", "note"]
"""``bad``: the result is most likely not what was meant; ``look``: look before you go on; ``note``: good to know."""


class Finding(TypedDict):
    """One thing that a check has found; plain text.

    Attributes
    ----------
    severity
        See `Severity`.
    check
        What was looked at.
    found
        What was found.
    advice
        What to do.
    command
        What to type for that; empty where there is no one command.
    """

    severity: Severity
    check: str
    found: str
    advice: str
    command: str


def recut_command(facts: Facts, n_clusters: int) -> str:
    """Write the command that gives another number of clusters, with the paths of this run.

    Parameters
    ----------
    facts
        Of the run, and of its result where there is one.
    n_clusters
        To ask for; cut to what the tree has.

    Returns
    -------
    str
        Ready to paste where the run knows the store of its cells, else with STORE for it; empty where the model has no tree.
    """
    tree = facts.run.model.tree
    if tree is None or len(tree) < 2:
        return ""
    n_clusters = min(max(n_clusters, 2), len(tree))
    made = facts.run.path.rstrip("/") if facts.result is None else facts.result.path.rstrip("/")
    head, slash, name = made.rpartition("/")
    suffix = PurePosixPath(name).suffix if facts.result is not None else ".h5ad"
    out = f"{head}{slash}{name.removesuffix(suffix)}-{n_clusters}-clusters{suffix}"
    store = facts.run.store or "STORE"
    if os.path.isabs(store) and not os.path.isabs(facts.run.path) and not is_url(facts.run.path):
        near = os.path.relpath(store)  # as the run was named
        store = store if near.startswith(os.pardir) else near
    parts = ["scamac-scale", "predict", "--run", facts.run.path, "--input", store, "--out", out]
    return shlex.join([*parts, "--n-clusters", str(n_clusters)])
