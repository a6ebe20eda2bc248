"""How far a prediction on disk has come, and what it belongs to; one small file, replaced as a whole.

It is written when the data that it speaks of is on the disk, so that what stands there is true whatever ends the process, or the
machine.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from scamac_scale.durable.atomic import atomic_file
from scamac_scale.durable.differences import differences, told
from scamac_scale.durable.digests import sha256_of
from scamac_scale.durable.plain import parse_json, read_sealed, sealed
from scamac_scale.errors import InputError, ResumeError
from scamac_scale.infer.output.table import IDENTITY, detail_in
from scamac_scale.ranks.collectives import from_first
from scamac_scale.sources import cells_digest

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.fitted import FittedModel
    from scamac_scale.ranks.world import World
    from scamac_scale.remote.place import BucketPlace
    from scamac_scale.sources import OpenSource

FILE = "journal.json"
MARKS = "content"
"""Of the input: the key of `with_marks`, for messages."""


@dataclass(frozen=True)
class Progress:
    """What stands in the journal.

    Attributes
    ----------
    job
        Name of the run that wrote it last.
    belongs
        `identity` of the work.
    n_ranks, turn_cells
        Processes, and cells of each in a turn.
    turns
        Turns of the sweep whose cells are on the disk.
    assembled
        Name of the zarr in which all arrays are in their final form, once they are.
    """

    job: str
    belongs: dict[str, Any]
    n_ranks: int
    turn_cells: int
    turns: int = 0
    assembled: str = ""


_JOB = re.compile(r"[0-9a-f]{32}")
_TYPES = {"job": str, "belongs": dict, "n_ranks": int, "turn_cells": int, "turns": int, "assembled": str}


def read_progress(folder: Path) -> Progress | None:
    """Read the journal of a folder; None where there is none that is as it was written."""
    try:
        found = read_sealed(folder / FILE)
        progress = Progress(**found)
    except (OSError, ValueError, TypeError):
        return None
    is_sound = all(type(getattr(progress, name)) is kind for name, kind in _TYPES.items())
    if not is_sound or progress.n_ranks < 1 or progress.turn_cells < 1 or progress.turns < 0:
        return None
    names = (progress.job, progress.assembled.removesuffix(".zarr") or progress.job)  # of files in this very folder
    return progress if all(map(_JOB.fullmatch, names)) else None


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the journal of a folder, durably; it is sealed."""
    with atomic_file(folder / FILE) as partial:
        partial.write_text(sealed(asdict(progress)))


def identity(model: FittedModel, source: OpenSource, **options: Any) -> dict[str, Any]:  # Any: plain data
    """Tell one prediction from another: digests of the model and of the input, and the options.

    Notes
    -----
    Of the input: number and order of the cells, their names, genes, and the values of some cells (`sources.cells_digest`). A value that was changed elsewhere
    is seen by `with_marks`.
    """
    return {
        "model": model_digest(model),
        "cells": source.n_cells,
        "input": cells_digest(source),
        "device": model.network.gene_mean.device.type,
        **options,
    }


def with_marks(belongs: dict[str, Any], source: OpenSource, world: World) -> dict[str, Any]:
    """Add a digest of what tells the input from a changed one, as rank 0 sees it: others may read copies of other times."""
    found = from_first(lambda: source.marks, world)
    return {**belongs, MARKS: sha256_of(found)} if found else belongs


def model_digest(model: FittedModel) -> str:
    """SHA-256 of all that a prediction takes from a model."""
    about = [model.clusters.temperature, model.clusters.epsilon, model.genes.to_dict(), repr(model.config.model)]
    if model.tech_levels:
        about += [model.tech_levels, model.config.correction.sigma]
    parts: list[Any] = [about]
    for name, tensor in [*sorted(model.network.state_dict().items()), ("centers", model.clusters.centers)]:
        parts += [f"{name} {tuple(tensor.shape)} {tensor.dtype}", tensor.detach().cpu().numpy()]
    if model.tree is not None and model.landmarks is not None:
        parts += ["tree", model.tree.merges, model.tree.weights, model.landmarks.cpu().numpy()]
    return sha256_of(*parts)


def refuse_other_model(result: str | Path, group: Any, model: FittedModel) -> None:  # Any: an h5py or zarr group
    """Refuse a result of another fit, where it says of which it is; those of earlier versions do not.

    Parameters
    ----------
    result
        As it was named, for the message.
    group
        The same, open.
    model
        That it should be of; before its tree is cut anew.

    Raises
    ------
    InputError
        If it is of another one.
    """
    try:
        text = detail_in(group["uns"], IDENTITY)[()]
        found = parse_json(text if isinstance(text, bytes) else str(text))["model"]
    except (LookupError, ValueError, TypeError, AttributeError):
        return
    if found != model_digest(model):
        raise InputError(f"{result} is a result of another model; give the run that it was predicted with.")


def check_same(before: dict[str, Any], now: dict[str, Any], where: Path | BucketPlace) -> None:
    """Refuse to go on with other work than what was begun.

    Raises
    ------
    ResumeError
        Naming what differs.
    """
    names = [name for name in now if name != MARKS or name in before]  # a program before this one has left none
    names += [name for name in before if name not in now and name != MARKS]  # options that nobody asks for now
    found = list(differences({name: before.get(name) for name in names}, {name: now.get(name) for name in names}))
    if found:
        named = told(found, digests=("model", "input", MARKS))
        raise ResumeError(f"{where} was begun otherwise: {named}. Give what it was begun with, or name another output.")
