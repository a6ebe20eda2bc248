"""Kinds of values are told of each file alone; files that disagree are named."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.many import evidence
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.passes import take_census
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.store.reader import StoreReader

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = IngestConfig(n_genes=30, block_cells=33)


def counts(seed: int, n_cells: int = 80) -> np.ndarray:
    rng = np.random.default_rng(seed)
    profile = rng.lognormal(0, 1.2, 60)
    return rng.poisson(profile * rng.lognormal(1.0, 0.4, (n_cells, 1))).astype(np.float64)


def scaled(x: np.ndarray, total: float = 1e4) -> np.ndarray:
    return x * (total / np.maximum(x.sum(1, keepdims=True), 1))


KINDS: dict[str, Any] = {
    "counts": lambda x: x,
    "log": lambda x: np.log1p(scaled(x)),
    "log2": lambda x: np.log2(scaled(x) + 1),
    "log of other total": lambda x: np.log1p(scaled(x, 2500.0)),
    "proportions": lambda x: scaled(x, 1e6),
    "rates": lambda x: scaled(x, 1e6) * 3 / np.linspace(0.4, 7.7, x.shape[1]),  # per length of a gene
    "fractions": lambda x: np.where((x > 3) & (np.arange(x.shape[1]) % 7 == 0), x * 0.9731, x),
}


def files(folder: Path, *kinds: str) -> list[Path]:
    paths = []
    for number, kind in enumerate(kinds):
        values = KINDS[kind](counts(number)).astype(np.float32)
        paths.append(folder / f"f{number}.h5ad")
        adata = ad.AnnData(sparse.csr_matrix(values))
        adata.var_names = [f"gene{gene}" for gene in range(adata.n_vars)]
        adata.write_h5ad(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        (("counts", "log", "counts"), "f0.h5ad, .*f2.h5ad hold counts; .*f1.h5ad holds log .base e, 10,000 a cell"),
        (("log", "counts"), "f0.h5ad holds log .base e.*; .*f1.h5ad holds counts"),
        (("log", "log2"), "f0.h5ad holds log .base e.*; .*f1.h5ad holds log .base 2"),
        (("log", "log of other total"), "10,000 a cell.*f1.h5ad holds log .base e, 2,500 a cell"),
        (("counts", "proportions"), "f0.h5ad holds counts; .*f1.h5ad holds linear .1,000,000 a cell"),
        (("counts", "fractions"), "f0.h5ad holds counts; .*f1.h5ad holds linear"),
        (("rates", "counts", "counts"), "f0.h5ad holds linear; .*f2.h5ad hold counts"),
        (("proportions", "log"), "linear .*; .*f1.h5ad holds log"),
    ],
)
def test_files_that_disagree_are_named_with_their_kinds(tmp_path: Path, kinds: tuple[str, ...], words: str) -> None:
    paths = files(tmp_path, *kinds)
    with pytest.raises(InputError, match=f"the inputs hold values of different kinds: .*{words}"):
        ingest(paths, tmp_path / "a.zarr", CONFIG)
    assert not (tmp_path / "a.zarr").exists()


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        (("log", "log"), "log"),
        (("fractions",) * 2, "linear"),
        (("rates", "proportions"), "linear"),
        (("proportions",) * 3, "linear"),
    ],
)
def test_files_that_agree_are_taken(tmp_path: Path, kinds: tuple[str, ...], kind: str) -> None:
    store = StoreReader(ingest(files(tmp_path, *kinds), tmp_path / "a.zarr", CONFIG))
    assert store.gene_space.kind == kind


@pytest.mark.parametrize("other", ["proportions", "rates"])
def test_where_a_kind_is_said_it_is_a_warning(tmp_path: Path, other: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ingest(files(tmp_path, "counts", other), tmp_path / "a.zarr", replace(CONFIG, kind="linear"))
    assert "different kinds" in caplog.text
    assert "all are taken as linear, as was said" in caplog.text


@pytest.mark.parametrize("block_cells", [1, 50, 80, 1000])
@pytest.mark.slow
def test_evidence_of_a_file_is_that_of_the_file_alone(
    tmp_path: Path, block_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "FEW_SAMPLES", 20)
    monkeypatch.setattr(evidence, "ALL_SAMPLES", 60)
    paths = files(tmp_path, "log", "counts", "fractions")
    with open_inputs(paths, CONFIG) as raw, LocalEngine(block_cells) as engine:
        found = take_census(raw, engine).of_inputs
    assert [len(own.sample) <= 20 for own in found] == [True] * 3
    for path, own in zip(paths, found, strict=True):
        with open_inputs(path, CONFIG) as raw, LocalEngine(1000) as engine:
            alone = take_census(raw, engine)
        assert alone.of_inputs == ()
        for name in ("n_cells", "n_empty", "n_whole", "n_counts", "n_fraction", "largest"):
            assert getattr(own, name) == getattr(alone.evidence, name)
