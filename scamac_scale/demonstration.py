"""The whole pipeline on real labelled cells that scanpy carries, and on a simulated atlas of any size.

The cells are 700 of the 68,000 PBMC of Zheng et al. (2017), with the labels of their bulk references; scanpy keeps the
log-normalised values of 765 genes. Nothing is fetched. It ends with a report, whose cells are laid out by t-SNE: UMAP would
be compiled first, which takes longer than all the rest.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scamac_scale.config import IngestConfig, ScamacConfig
from scamac_scale.durable.foreign import at_home
from scamac_scale.errors import InputError, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import anndata as ad

logger = logging.getLogger(__name__)

PBMC_FILE = "10x_pbmc68k_reduced.h5ad"
PBMC_LABEL = "bulk_labels"
ATLAS_LABEL = "cell_type"
ATLAS_TYPES = 8
MIN_CELLS = 100
REPORT_FOLDER = "report"
MARK = ".scamac_demo"
"""File that tells an earlier demo, which may be replaced, from a folder of the user."""


def demo(out: str | Path, *, n_cells: int | None = None, config: ScamacConfig | None = None) -> dict[str, Any]:
    """Run the whole pipeline on real labelled cells, and on a simulated atlas if one is asked for.

    Parameters
    ----------
    out
        Folder of the results; made if it is missing, emptied if it holds an earlier demo.
    n_cells
        Cells of the simulated atlas; None leaves it out.
    config
        All settings; the default is the recipe for all data. The number of clusters is the number of labels.

    Returns
    -------
    dict
        Plain data: ``steps`` (what was done and how long it took), ``scores`` (of the real cells and of the atlas),
        ``results`` (where they lie), ``report`` (the page), ``peak_memory_bytes`` of this process, ``next`` (lines to type).

    Raises
    ------
    OutputError
        If the folder holds something else, or cannot be written.
    InputError
        If scanpy's file is not there, or too few cells are asked for.
    """
    from scamac_scale.api import report
    from scamac_scale.host.memory import peak_memory_bytes

    if n_cells is not None and n_cells < MIN_CELLS:
        raise InputError(f"cells={n_cells}; the simulated atlas needs at least {MIN_CELLS}.")
    folder = prepare(at_home(out))
    config = config or ScamacConfig()
    clock = _Clock()
    adata, raw = read_pbmc(), folder / "pbmc.h5ad"
    with clock.step("copy", f"PBMC of Zheng et al. (2017), which scanpy carries -> {raw.name}", adata.n_obs):
        adata.write_h5ad(raw)
    known = replace(config, n_clusters=adata.obs[PBMC_LABEL].nunique())
    scores = [_pipeline(clock, raw, PBMC_LABEL, adata.n_obs, known, IngestConfig(kind="log"))]
    if n_cells is not None:
        from scamac_scale.simulation.drawn import simulate

        atlas = folder / "atlas.zarr"
        with clock.step("simulate", f"{n_cells:,} cells of {ATLAS_TYPES} types", n_cells):
            simulate(atlas, n_cells, n_types=ATLAS_TYPES, seed=config.seed)
        streamed = replace(config, n_clusters=ATLAS_TYPES, loader=replace(config.loader, cache="none"))
        scores.append(_pipeline(clock, atlas, ATLAS_LABEL, n_cells, streamed, IngestConfig()))
    result, run = folder / "pbmc.result.zarr", folder / "pbmc.run"
    with clock.step("report", f"{result.name} -> {REPORT_FOLDER}", adata.n_obs):
        page = report(run, result, label=PBMC_LABEL, layout="tsne", out=folder / REPORT_FOLDER)["report"]
    return {
        "report": page,
        "results": [entry["result"] for entry in scores],
        "peak_memory_bytes": peak_memory_bytes(),
        "steps": clock.steps,
        "scores": [{name: value for name, value in entry.items() if name != "result"} for entry in scores],
        "next": [
            f"open {page} in a browser",
            f"{program()} inspect {result}",
            f"{program()} train --store {folder / 'pbmc.store.zarr'} --run {folder / 'auto.run'} --n-clusters auto",
            f"{program()} cluster YOUR.h5ad --out result.h5ad",
        ],
    }


def program() -> str:
    """Name the command line as it can be typed here: it is not on the PATH of an environment that is not activated."""
    if shutil.which("scamac-scale"):
        return "scamac-scale"
    script = Path(sys.executable).with_name("scamac-scale")  # not resolved: python may be a link out of the environment
    return os.path.relpath(script) if script.is_file() else f"{sys.executable} -m scamac_scale"


def prepare(folder: Path) -> Path:
    """Make the folder of a demo, or empty that of an earlier one.

    Parameters
    ----------
    folder
        Where it shall lie.

    Returns
    -------
    Path
        The folder, empty but for the mark.

    Raises
    ------
    OutputError
        If it holds something that no demo wrote, or cannot be written.
    """
    try:
        if folder.is_dir() and any(folder.iterdir()):
            if not (folder / MARK).is_file():
                raise OutputError(f"{folder} holds files that no demo wrote; name a new folder with --out.")
            for entry in folder.iterdir():
                if entry.is_dir():
                    shutil.rmtree(entry)
                elif entry.name != MARK:
                    entry.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARK).touch()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}; name another folder with --out.") from error
    return folder


def read_pbmc() -> ad.AnnData:
    """Read the cells that scanpy carries, without importing scanpy.

    Returns
    -------
    AnnData
        700 cells, 765 genes; X holds log values, ``obs["bulk_labels"]`` ten cell types.

    Raises
    ------
    InputError
        If scanpy is not installed, or its file has moved.
    """
    import anndata as ad

    spec = importlib.util.find_spec("scanpy")
    path = Path(spec.origin).parent / "datasets" / PBMC_FILE if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise InputError(f"scanpy's file {PBMC_FILE} is not installed; install scanpy 1.11.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file is of an old format, which anndata says at length
        adata = ad.read_h5ad(path)
    # raw holds the log values, X scaled ones that are negative
    return ad.AnnData(adata.raw.X, obs=adata.obs[[PBMC_LABEL]], var=adata.raw.var[[]])


def _pipeline(
    clock: _Clock, raw: Path, label: str, n_cells: int, config: ScamacConfig, values: IngestConfig
) -> dict[str, Any]:
    """Ingest, train, predict, evaluate and find the markers of one file; every result lies beside it."""
    from scamac_scale.api import ScAMAC, evaluate, ingest, markers

    base = raw.with_suffix("")
    store, run, result = (base.with_name(f"{base.name}.{name}") for name in ("store.zarr", "run", "result.zarr"))
    with clock.step("ingest", f"{raw.name} -> {store.name}", n_cells):
        ingest(raw, store, values)
    with clock.step("train", f"{store.name} -> {run.name}, {config.n_clusters} clusters", n_cells):
        model = ScAMAC(config=config).fit(store, run=run)
    with clock.step("predict", f"{store.name} -> {result.name}", n_cells):
        model.predict(store, result)
    with clock.step("evaluate", f"{result.name} against the labels in {label}", n_cells):
        scores = evaluate(result, label)
    with clock.step("markers", f"genes of each cluster -> {result.name}", n_cells):
        markers(result, raw, ingest=values)
    return {"data": raw.name, **scores, "result": str(result)}


@dataclass
class _Clock:
    """What was done, and how long it took."""

    steps: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def step(self, name: str, what: str, n_cells: int) -> Iterator[None]:
        logger.info("%s: %s", name, what)
        start_s = time.perf_counter()
        yield
        seconds = time.perf_counter() - start_s
        rate = round(n_cells / max(seconds, 1e-9))
        self.steps.append({"step": name, "what": what, "seconds": round(seconds, 2), "cells_per_s": rate})
