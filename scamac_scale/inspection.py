"""What a store, a run folder, a model, a result or an atlas holds, as plain data; on request every chunk is read back.

A kind of path is an entry of `KINDS`: how it is recognised, and what is told of it.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from scamac_scale.durable.foreign import at_home, odd_kind
from scamac_scale.durable.plain import bytes_below
from scamac_scale.errors import InputError, StoreError
from scamac_scale.host.memory import explained
from scamac_scale.progress import track
from scamac_scale.remote.place import BucketPlace, is_url, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pandas as pd

    from scamac_scale.cells.arrays import FloatArray
    from scamac_scale.cells.genes import GeneSpace

Found = dict[str, Any]
"""What is told: plain data."""

SHOWN_LEVELS = 20
"""Technical batches of a column that are named, at most."""
READ_CELLS = 8192
"""Cells read back at a time."""


@explained("inspect")
def inspect(path: str | Path, *, verify: bool = False) -> Found:
    """Tell what a path holds.

    Parameters
    ----------
    path
        Training store, run folder, model folder, result of predict, or raw data; or the URL of one.
    verify
        Read everything back and check it.

    Returns
    -------
    dict
        Plain data; ``kind`` says which of `KINDS` it is, ``verified`` what was read back.

    Raises
    ------
    InputError
        If it is none of these, or damaged.
    StoreError
        If it is a damaged store.
    """
    if is_url(path):
        return _inspect_there(parse(path), verify)
    path = at_home(path)
    if odd := odd_kind(path):
        raise InputError(f"{path} is {odd}, which is not opened; name a store, run folder, model, result or atlas.")
    if not path.exists():
        raise InputError(f"there is nothing at {path}; name a store, run folder, model, result or atlas.")
    for kind, (is_kind, look) in KINDS.items():
        if is_kind(path):
            return {"path": str(path), "kind": kind, **look(path, verify), "disk_bytes": disk_bytes(path)}
    raise InputError(f"{path} is none of {', '.join(KINDS)}; name one of these.")


def disk_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else bytes_below(path)


def _is_run(path: Path) -> bool:
    from scamac_scale.train.run.report import CONFIG_FILE

    return path.is_dir() and os.path.lexists(path / CONFIG_FILE)


_REPORTED: dict[str, type | tuple[type, ...]] = {
    "n_cells": int,
    "n_clusters": int,
    "is_count_estimated": bool,
    "seed": int,
    "steps": int,
    "seconds": (int, float),
    "peak_memory_bytes": int,
    "commit": (str, type(None)),
    "seconds_by_part": dict,
    "versions": dict,
}
"""What is told of a run.json, and of which type it is; the last two stand at the end."""


def _look_at_run(path: Path, is_verified: bool) -> Found:
    from scamac_scale.durable.plain import read_yaml
    from scamac_scale.train.run.report import CONFIG_FILE, MODEL_FOLDER, check_run_tree, checked_report, verify_files

    check_run_tree(path)
    try:
        read_yaml(path / CONFIG_FILE)
    except (OSError, ValueError) as error:
        raise InputError(f"{path / CONFIG_FILE} is damaged: {error}; put it back as it was.") from error
    report = checked_report(path)
    for name, kind in _REPORTED.items():
        if name in report and not isinstance(report[name], kind):
            raise InputError(f"{path}/run.json has a {type(report[name]).__name__} as {name}; no fit has written it.")
    found: Found = {"is_finished": report.get("finished") is True}
    *names, by_part, versions = _REPORTED
    found |= {name: report[name] for name in names if name in report}
    if _is_model(path / MODEL_FOLDER):
        found["model"] = _look_at_model(path / MODEL_FOLDER, is_verified)
    if last := _last_metrics(path):
        found["last_metrics"] = last
    if is_verified:
        found["verified"] = verify_files(path, report)
    return found | {name: report[name] for name in (by_part, versions) if name in report}


def _last_metrics(run: Path) -> dict[str, float]:
    """Last value of every column of the metrics.csv; nothing where there is none."""
    from scamac_scale.train.run.report import METRICS_FILE
    from scamac_scale.train.run.writers import read_rows

    last: dict[str, float] = {}
    try:
        for row in read_rows(run / METRICS_FILE):
            last |= {name: float(value) for name, value in row.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run / METRICS_FILE} is damaged: {error}; the model and the checkpoints do not depend on it, and `train --resume` goes on "
            "from the latter."
        ) from error
    return last


def _is_model(path: Path) -> bool:
    from scamac_scale.fitted import DESCRIPTION_FILE

    return os.path.lexists(path / DESCRIPTION_FILE)


def _look_at_model(path: Path | str, is_verified: bool) -> Found:
    from scamac_scale.fitted import load_model

    fitted = load_model(path)
    model = fitted.config.model
    found: Found = {
        "n_clusters": fitted.n_clusters,
        "n_genes": len(fitted.genes.chosen),
        "values": fitted.genes.kind,
        "target_sum": fitted.genes.target_sum,
        "encoder_width": model.encoder_width,
        "latent_width": model.latent_width,
        "spatial_form": model.spatial_form,
        "batches": {column: list(levels[:SHOWN_LEVELS]) for column, levels in fitted.tech_levels.items()},
        "corrections": 0 if fitted.network.correction is None else len(fitted.network.correction.layers),
        "temperature": fitted.clusters.temperature,
        **_of_input(fitted.genes),
    }
    if is_verified:
        tensors = {
            **fitted.network.state_dict(),
            "centers": fitted.clusters.centers,
        }  # all were checked when they were read
        found["verified"] = f"{len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values()):,} numbers"
    return found


def _of_input(space: GeneSpace) -> Found:
    """Say what the input held and what filters took away, where a store or model knows it."""
    record = space.input
    if record is None:
        return {}
    return {"n_input_cells": record.n_cells, "n_input_genes": record.n_genes, "left_out": dict(record.left_out)}


def _is_store(path: Path | BucketPlace) -> bool:
    from scamac_scale.store.record import is_store

    return is_store(path)


def _look_at_store(path: Path | BucketPlace, is_verified: bool) -> Found:
    from scamac_scale.cells.tech_batches import find_tech_batches, split_key
    from scamac_scale.store.reader import StoreReader

    with StoreReader(path) as store:
        space, obs = store.gene_space, store.obs
        found: Found = {
            "n_cells": store.n_cells,
            "n_genes": store.n_genes,
            "n_filtered_genes": len(space.filtered),
            "n_stored_values": store.n_values,
            "density": store.n_values / max(store.n_cells * store.n_genes, 1),
            "values": space.kind,
            "target_sum": space.target_sum,
            "profile": store.profile,
            "value_type": store.value_dtype.name,
            "obs_columns": list(map(str, obs.columns)),
            "batch_key": store.batch_key,
            "input": [entry.get("path") or entry.get("name") for entry in store.inputs],
            "ingest": store.config,
            **_of_input(space),
        }
        found |= {name: store.config[name] for name in ("flavor", "genes", "min_cells") if name in store.config}
        if columns := split_key(store.batch_key):
            levels = find_tech_batches(obs, columns, where=f"{path}: obs").counts
            found["batches"] = [{"column": column, "levels": n} for column, n in zip(columns, levels, strict=True)]
        if is_verified:
            found["verified"] = f"{_read_back(store):,} cells, all columns, every checksum"
    return found


def _read_back(store: Any) -> int:  # Any: a StoreReader, imported where it is opened
    """Read every array, and so recompute every checksum; a missing or damaged chunk is an error of the reader."""
    store.verify()
    rows = np.sort(store.source_rows)
    if (np.diff(rows) == 0).any():
        raise StoreError(f"{store.path} holds source rows that repeat; ingest again.")
    return int(store.n_cells)


def _is_result(path: Path) -> bool:
    from scamac_scale.infer.output.table import CLUSTER_KEY

    if path.is_dir():
        return (path / "zarr.json").is_file() and (path / "obs" / CLUSTER_KEY).is_dir()
    import h5py

    try:
        with h5py.File(path) as file:
            return isinstance(file.get("obs"), h5py.Group) and CLUSTER_KEY in file["obs"]
    except (OSError, RuntimeError, ValueError, KeyError):
        return False  # raw data, which says what is wrong


def _look_at_result(path: Path | BucketPlace, is_verified: bool) -> Found:
    from scamac_scale.infer.output.table import CLUSTER_KEY, DENOISED_KEY, LABEL_KEY, LATENT_KEY, UNS_KEY
    from scamac_scale.ingestion.open import read_obs

    obs = read_obs(path)
    counts = obs[CLUSTER_KEY].value_counts(sort=False)
    with _opened(path) as group:
        found: Found = {
            "n_cells": len(obs),
            "n_clusters": len(counts),
            "latent_width": int(group[f"obsm/{LATENT_KEY}"].shape[1]),
            "is_denoised": DENOISED_KEY in group["layers"] if "layers" in group else False,
            "obs_columns": list(map(str, obs.columns)),
            **_confidence(group),
        }
        if UNS_KEY in group["uns"] and "is_count_estimated" in group[f"uns/{UNS_KEY}"]:
            found["is_count_estimated"] = bool(group[f"uns/{UNS_KEY}/is_count_estimated"][()])
        if is_verified:
            found["verified"] = _check_arrays(path, group)
    found["clusters"] = _shares(counts, "cluster")
    if LABEL_KEY in obs:
        found["labels"] = _shares(obs[LABEL_KEY].value_counts(sort=False), "label")
    return found


def _confidence(group: Any) -> Found:  # Any: an h5py or zarr group
    """Tell how sure the labels are, by one pass over the memberships."""
    from scamac_scale.infer.output.table import MEMBERSHIP_KEY, UNSURE

    if MEMBERSHIP_KEY not in group["obsm"]:
        return {}
    array, total, n_unsure = group[f"obsm/{MEMBERSHIP_KEY}"], 0.0, 0
    n_cells = array.shape[0]
    for start in range(0, n_cells, READ_CELLS):
        largest = array[start : start + READ_CELLS].max(axis=1)
        total += float(largest.sum(dtype=np.float64))
        n_unsure += int((largest < UNSURE).sum())
    return {"mean_membership": total / max(n_cells, 1), "unsure_share": n_unsure / max(n_cells, 1)}


def _shares(counts: pd.Series[int], what: str) -> list[Found]:
    n_cells = max(int(counts.sum()), 1)
    return [
        {what: str(name), "cells": int(count), "share": round(int(count) / n_cells, 4)}
        for name, count in counts.items()
    ]


def _check_arrays(path: Path | BucketPlace, group: Any) -> str:  # Any: an h5py or zarr group
    from scamac_scale.infer.output.table import DENOISED_KEY, LATENT_KEY, MEMBERSHIP_KEY, UNCORRECTED_KEY

    names = [f"obsm/{LATENT_KEY}", f"obsm/{MEMBERSHIP_KEY}"]
    if UNCORRECTED_KEY in group["obsm"]:
        names.append(f"obsm/{UNCORRECTED_KEY}")
    if "layers" in group and DENOISED_KEY in group["layers"]:
        names.append(f"layers/{DENOISED_KEY}")
    for name in names:
        array = group[name]
        missing = array.nchunks - array.nchunks_initialized if hasattr(array, "nchunks_initialized") else 0
        if missing:
            raise InputError(f"{path}/{name} lacks {missing} of {array.nchunks} chunks; predict again.")
        with track(f"verify {name}", array.shape[0], "cells") as progress:
            for start in range(0, array.shape[0], READ_CELLS):
                block = array[start : start + READ_CELLS]
                _check_block(block, f"{path}/{name}", start, is_membership=name.endswith(MEMBERSHIP_KEY))
                progress.advance(len(block))
    return f"{', '.join(names)}"


def _check_block(block: FloatArray, name: str, start: int, *, is_membership: bool) -> None:
    from scamac_scale.infer.output.assemble import SUM_TOLERANCE

    if not np.isfinite(block).all():
        raise InputError(f"{name} holds values that are not finite from row {start} on; predict again.")
    if is_membership and not np.allclose(block.sum(axis=1), 1, atol=SUM_TOLERANCE):
        raise InputError(f"{name} holds rows that do not sum to 1 from row {start} on; predict again.")


def _is_raw(path: Path) -> bool:
    from scamac_scale.ingestion.formats.mtx_files import find_market

    is_one = path.is_file() or (path / "zarr.json").is_file() or (path / ".zgroup").is_file()
    return is_one or find_market(path) is not None


def _look_at_raw(path: Path | BucketPlace, is_verified: bool) -> Found:
    from scamac_scale.ingestion.open import open_raw
    from scamac_scale.ingestion.raw import read_blocks

    with open_raw(path) as raw:
        found: Found = {
            "n_cells": raw.n_cells,
            "n_genes": raw.n_genes,
            "n_stored_values": raw.n_stored,
            "density": raw.n_stored / max(raw.n_cells * raw.n_genes, 1),
            "type": str(raw.dtype),
            "obs_columns": list(map(str, raw.obs.columns)),
            **_look_at_values(raw),
        }
        if is_verified:
            found["verified"] = (
                f"{sum(block.shape[0] for _, block in read_blocks(raw, READ_CELLS, 'verify')):,} cells of X"
            )
    return found


_NO_VALUES = "values are negative or not finite: give the matrix before scaling or correction (ingest.matrix)."


def _look_at_values(raw: Any) -> Found:  # Any: a RawMatrix, imported where it is opened
    """Tell what the values of some cells are, as ingest would, and how genes are named."""
    from scamac_scale.ingestion.compare import look_at
    from scamac_scale.ingestion.kinds import judge
    from scamac_scale.ingestion.names import described, name_doubts

    evidence = look_at(raw).evidence
    told: Found = {"values": "unknown", "values_cells": evidence.n_cells, "gene_names": described(raw.gene_names)}
    if not evidence.n_cells:
        why = _NO_VALUES if raw.n_cells else "there are no cells: write the file again, with them."
        return told | {"notes": [*name_doubts(raw), why]}
    found = judge(evidence, raw.cell_named, raw.noted_base)
    told["values"] = "of two kinds" if found.conflict else found.named
    told["values_evidence"] = found.conflict or found.why
    told["values_are_sure"] = found.is_sure and not found.conflict
    notes = [*found.remarks, *name_doubts(raw)]
    if not told["values_are_sure"]:
        notes.append("it is not sure what the values are: tell ingest with --ingest.kind.")
    return told | ({"notes": notes} if notes else {})


KINDS: dict[str, tuple[Callable[[Path], bool], Callable[[Path, bool], Found]]] = {
    "run folder": (_is_run, _look_at_run),
    "model": (_is_model, _look_at_model),
    "training store": (_is_store, _look_at_store),
    "result of predict": (_is_result, _look_at_result),
    "raw data": (_is_raw, _look_at_raw),
}
"""Every kind of path that `inspect` knows, the more particular first."""


@contextmanager
def _opened(path: Path | BucketPlace) -> Iterator[Any]:  # Any: an h5py or zarr group
    """Open a result; what is damaged inside is one clear error."""
    import h5py
    import zarr

    if isinstance(path, BucketPlace):
        from scamac_scale.ingestion.files import open_file

        with open_file(path) as group:
            yield group
        return
    try:
        if path.is_dir():
            yield zarr.open_group(path, mode="r")
        else:
            with h5py.File(path) as file:
                yield file
    except InputError:
        raise
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"{path} is damaged ({error}); predict again.") from error


# ------------------------------------------------------------------ in a bucket


def _inspect_there(place: BucketPlace, is_verified: bool) -> Found:
    """Tell what a place in a bucket holds; what is small is fetched, the rest read where it lies."""
    from scamac_scale.fitted import DESCRIPTION_FILE
    from scamac_scale.remote.bucket import Bucket
    from scamac_scale.train.run.inspected import RUN_NAMES, fetched_run

    bucket = Bucket(place)
    entry = bucket.find()
    entries = [entry] if entry is not None else bucket.listing()
    names = {each.key for each in entries}
    if not names:
        raise InputError(f"there is nothing at {place}; name a store, run folder, model, result or atlas.")
    found: Found
    if names & RUN_NAMES:
        with fetched_run(bucket, entries, is_verified=is_verified) as (copy, latest):
            kind, found = "run folder", {**_look_at_run(copy, is_verified), **latest}
    elif DESCRIPTION_FILE in names:
        kind, found = "model", _look_at_model(str(place), is_verified)
    elif _is_store(place):
        kind, found = "training store", _look_at_store(place, is_verified)
    else:
        kind = "result of predict" if _is_result_there(place) else "raw data"
        found = (_look_at_result if kind == "result of predict" else _look_at_raw)(place, is_verified)
    return {"path": str(place), "kind": kind, **found, "disk_bytes": sum(each.size for each in entries)}


def _is_result_there(place: BucketPlace) -> bool:
    from scamac_scale.infer.output.table import CLUSTER_KEY

    with _opened(place) as group:
        return "obs" in group and hasattr(group["obs"], "keys") and CLUSTER_KEY in group["obs"]
