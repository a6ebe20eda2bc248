from __future__ import annotations

import threading
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from scipy import sparse

from scamac_scale.config import IngestConfig
from scamac_scale.errors import InputError
from scamac_scale.ingestion import evidence, pipeline
from scamac_scale.ingestion.engine.local import LocalEngine
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.passes import BatchSums, Measure, sum_block, sum_moments, take_census
from scamac_scale.ingestion.pipeline import ingest
from scamac_scale.ingestion.statistics import measure
from tests.support.failing import contents
from tests.support.formats import write_zarr

if TYPE_CHECKING:
    from pathlib import Path

    import anndata as ad


def sum_of(index: int, block: sparse.csr_matrix, start: int, common: int) -> tuple[int, float]:
    return index, float(block.sum()) + common


def slow_at_first(index: int, block: sparse.csr_matrix, start: int, common: Any) -> int:
    time.sleep(0.05 if index == 0 else 0)
    if index == common:
        raise InputError(f"block {index} is broken")
    return start


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("block_cells", [1, 64, 300, 1000])
def test_results_come_in_the_order_of_the_blocks(tiny_atlas: Path, threads: int, block_cells: int) -> None:
    with open_raw(tiny_atlas) as raw, LocalEngine(block_cells, threads) as engine:
        found = list(engine.map(raw, sum_of, 1, "summing"))
        starts = list(range(0, 300, block_cells))
        expected = [
            (start, (i, raw.rows.read(start, min(start + block_cells, 300)).sum() + 1))
            for i, start in enumerate(starts)
        ]
        assert found == expected
        assert list(engine.map(raw, sum_of, 1, "summing", first=starts[-1])) == expected[-1:]


def test_the_error_of_a_block_comes_when_it_is_its_turn(tiny_atlas: Path) -> None:
    with open_raw(tiny_atlas) as raw, LocalEngine(10, 3) as engine:
        seen = []
        with pytest.raises(InputError, match="block 2 is broken"):
            seen += [start for start, _ in engine.map(raw, slow_at_first, 2, "looking")]
        for start, _ in engine.map(raw, slow_at_first, None, "looking"):
            seen.append(start)
    assert seen == list(range(0, 300, 10))


def test_few_blocks_are_read_ahead(tiny_atlas: Path) -> None:
    read: list[int] = []
    with open_raw(tiny_atlas) as raw, LocalEngine(10, 2) as engine:

        def note(index: int, block: sparse.csr_matrix, start: int, common: None) -> None:
            read.append(index)

        with closing(engine.map(raw, note, None, "looking")) as results:
            next(results)
            time.sleep(0.1)
            assert max(read) <= 2
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("blocks")]


def test_threads_change_no_byte_of_a_store(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_adata.obs["donor"] = np.array(["a", "b", "c"])[np.arange(300) % 3]
    tiny_adata.write_h5ad(tmp_path / "x.h5ad")
    config = IngestConfig(n_genes=50, block_cells=32, batch_key="donor")
    stores = []
    for threads in (1, 4):
        monkeypatch.setattr("scamac_scale.ingestion.engine.local.default_threads", lambda n=threads: n)
        stores.append(contents(ingest(tmp_path / "x.h5ad", tmp_path / f"{threads}.zarr", config)))
    assert stores[0] == stores[1]


def test_sums_of_technical_batches_are_exact_whatever_the_blocks(tiny_adata: ad.AnnData) -> None:
    rng = np.random.default_rng(0)
    tech = np.array([0, 1, 1, 3])[rng.integers(0, 4, 300)]
    tiny_adata.X = sparse.csr_matrix(tiny_adata.X.toarray() * rng.lognormal(0, 3, (300, 1)))
    raw = open_raw(tiny_adata)
    x = tiny_adata.X.toarray()
    found = []
    for block_cells in (1, 7, 100, 300):
        engine = LocalEngine(block_cells)
        census = take_census(raw, engine)
        is_filtered = census.n_expressing >= 15
        verdict = type("Verdict", (), {"kind": "linear", "base": None})
        found.append(sum_moments(raw, is_filtered, verdict, engine, tech)[1])  # type: ignore[arg-type]
    scaled = x[:, is_filtered] / x[:, is_filtered].sum(1, keepdims=True)
    for batch, part in enumerate(found[0]):
        exact = scaled[tech == batch].astype(np.longdouble)
        np.testing.assert_allclose(part.total, exact.sum(0).astype(float), rtol=1e-15)
        np.testing.assert_allclose(part.squared, (exact * exact).sum(0).astype(float), rtol=1e-15)
        assert part.n_cells == (tech == batch).sum()
        for other in found[1:]:
            np.testing.assert_array_equal(other[batch].total, part.total)
            np.testing.assert_array_equal(other[batch].squared, part.squared)


def test_a_block_tells_of_its_own_technical_batches_alone(tiny_adata: ad.AnnData) -> None:
    tech = np.arange(300) // 10
    block = tiny_adata.X[40:60].tocsr()
    part = sum_block(0, block, 40, Measure(np.ones(200, bool), "counts", None, tech)).sums
    assert isinstance(part, BatchSums)
    assert part.batches.tolist() == [4, 5]
    assert len(part.genes) == sum(np.count_nonzero(block[rows].sum(0)) for rows in (slice(10), slice(10, 20)))


@pytest.mark.parametrize("share", [1.0, 0.3, 0.02])
def test_the_sample_is_the_same_when_few_cells_hold_fractions(
    tiny_adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(evidence, "SAMPLE_CELLS", 12)
    x = tiny_adata.X.toarray().astype(np.float64)
    is_broken = np.random.default_rng(1).random(300) < share
    x[is_broken] *= 0.37
    tiny_adata.X = sparse.csr_matrix(x)
    raw = open_raw(tiny_adata)
    found = [take_census(raw, LocalEngine(block_cells)).evidence for block_cells in (1, 16, 128, 300)]
    assert len(found[0].sample) == min(12, is_broken.sum())
    assert is_broken[found[0].sample[:, evidence.CELL].astype(int)].all()
    assert (found[0].sample[:, evidence.N_VALUES] > 0).all()
    assert found[0].waiting.size == 0
    for other in found[1:]:
        np.testing.assert_array_equal(other.sample, found[0].sample)
        np.testing.assert_array_equal(other.count_totals, found[0].count_totals)


def test_every_cell_has_the_same_chance_to_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    n_cells, size = 4000, 400
    monkeypatch.setattr(evidence, "SAMPLE_CELLS", size)
    raw = open_raw_of(sparse.random(n_cells, 5, 0.9, format="csr", random_state=0))
    cells = take_census(raw, LocalEngine(500)).evidence.sample[:, evidence.CELL]
    assert len(cells) == size
    counts = np.histogram(cells, 10, (0, n_cells))[0]
    assert ((counts - size / 10) ** 2 / (size / 10)).sum() < 27.9  # chi square of 9 degrees, one in a thousand


def open_raw_of(values: sparse.csr_matrix) -> Any:
    import anndata as ad

    return open_raw(ad.AnnData(values))


def test_measuring_takes_any_engine(tiny_atlas: Path) -> None:
    config = IngestConfig(n_genes=50, block_cells=64)
    with open_raw(tiny_atlas) as raw, LocalEngine(64, 3) as engine:
        assert measure(raw, config, engine=engine).gene_space == measure(raw, config).gene_space


@pytest.mark.parametrize("kind", ["h5ad", "zarr", "several", "mtx"])
def test_an_input_that_is_changed_while_it_is_read_is_refused(
    tiny_adata: ad.AnnData, tiny_atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data = tmp_path / "x"
    if kind == "mtx":
        _write_market(tiny_adata, data)
    else:
        write_zarr(tiny_adata, data) if kind == "zarr" else tiny_adata.write_h5ad(data)
    changed = {"zarr": data / "X" / "data", "mtx": data / "matrix.mtx"}.get(kind, data)
    fill = pipeline.fill_store

    def late(*told: Any, **options: Any) -> None:
        fill(*told, **options)
        file = next(path for path in sorted(changed.rglob("*")) if path.is_file()) if changed.is_dir() else changed
        file.with_name("new").write_bytes(file.read_bytes())
        file.with_name("new").replace(file)

    inputs = [tiny_atlas, data] if kind == "several" else data
    ingest(inputs, tmp_path / "s.zarr", IngestConfig(n_genes=20))
    monkeypatch.setattr(pipeline, "fill_store", late)
    with pytest.raises(InputError, match="was changed while it was read"):
        ingest(inputs, tmp_path / "t.zarr", IngestConfig(n_genes=20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.zarr", "x"]


def test_what_lies_beside_the_files_of_a_matrix_may_change(
    tiny_adata: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_market(tiny_adata, tmp_path / "x")
    fill = pipeline.fill_store
    monkeypatch.setattr(
        pipeline,
        "fill_store",
        lambda *told, **options: (fill(*told, **options), (tmp_path / "x" / "log.txt").write_text("a line")),
    )
    assert ingest(tmp_path / "x", tmp_path / "s.zarr", IngestConfig(n_genes=20)).exists()


def _write_market(adata: ad.AnnData, folder: Path) -> None:
    from scipy.io import mmwrite

    folder.mkdir()
    mmwrite(folder / "matrix.mtx", sparse.csr_matrix(adata.X).T.astype(np.int64))
    (folder / "barcodes.tsv").write_text("\n".join(adata.obs_names))
    (folder / "genes.tsv").write_text("\n".join(f"{name}\t{name}" for name in adata.var_names))
