from __future__ import annotations

import tracemalloc
from typing import TYPE_CHECKING

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr

from scamac_scale.infer.output.convert import convert
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.table import CHUNK_BYTES, DENOISED_KEY, LATENT_KEY, Table

if TYPE_CHECKING:
    from pathlib import Path


def result(path: Path, n_cells: int, n_genes: int) -> Path:
    """A result of predict with the denoised layer."""
    rng = np.random.default_rng(0)
    text = pd.Categorical.from_codes(np.arange(n_cells) % 3, ["é", "b", "c"])
    obs = pd.DataFrame({"batch": text, "depth": rng.random(n_cells)}, index=[f"cell{i}" for i in range(n_cells)])
    genes = [f"gene{i}" for i in range(n_genes)]
    with DiskOutput(path, Table(obs, genes, {LATENT_KEY: 3, DENOISED_KEY: n_genes}), {}) as output:
        for start in range(0, n_cells, 1000):
            labels = np.arange(start, min(start + 1000, n_cells))
            latent = rng.random((len(labels), 3), dtype=np.float32)
            denoised = np.repeat(labels[:, None].astype(np.float32), n_genes, axis=1)
            output.write(labels, labels % 2, {LATENT_KEY: latent, DENOISED_KEY: denoised})
        written: Path = output.finish(
            2, {"seed": 1, "config": "{}", "genes": np.array(genes, dtype=object), "versions": {"torch": "2.5"}}
        )
        return written


def test_an_h5ad_holds_what_its_zarr_holds(tmp_path: Path) -> None:
    source = result(tmp_path / "a.zarr", 2500, 2000)  # three chunks, the last one cut
    convert(source, tmp_path / "a.h5ad")
    expected, found = ad.read_zarr(source), ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    np.testing.assert_array_equal(found.obsm[LATENT_KEY], expected.obsm[LATENT_KEY])
    np.testing.assert_array_equal(found.layers[DENOISED_KEY], expected.layers[DENOISED_KEY])
    assert found.layers[DENOISED_KEY].dtype == np.float32
    assert set(found.obsm) == {LATENT_KEY}
    assert found.X is None
    assert found.uns["scamac_details"]["genes"].tolist() == found.var_names.tolist()
    assert found.uns["scamac_details"]["versions"] == {"torch": "2.5"}
    assert (found.uns["scamac"]["seed"], found.uns["scamac_details"]["config"]) == (1, "{}")


def test_an_h5ad_has_the_encoding_that_anndata_gives_it(tmp_path: Path) -> None:
    source = result(tmp_path / "a.zarr", 50, 20)
    convert(source, tmp_path / "ours.h5ad")
    ad.read_zarr(source).write_h5ad(tmp_path / "theirs.h5ad")

    def encodings(path: Path) -> dict[str, tuple[str, str]]:
        found = {}
        with h5py.File(path) as file:
            names = ["/"]
            file.visit(names.append)
            for name in names:
                attributes = file[name].attrs
                found[name] = (attributes.get("encoding-type"), attributes.get("encoding-version"))
        return found

    assert encodings(tmp_path / "ours.h5ad") == encodings(tmp_path / "theirs.h5ad")


def test_arrays_are_compressed_in_chunks(tmp_path: Path) -> None:
    convert(result(tmp_path / "a.zarr", 2500, 2000), tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        array = file["layers"][DENOISED_KEY]
        assert array.compression == "gzip"
        assert 4 * np.prod(array.chunks) <= CHUNK_BYTES
        assert array.id.get_storage_size() < array.nbytes / 2


def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    peaks = []
    for n_chunks in (2, 6):
        source = tmp_path / f"{n_chunks}.zarr"
        group = zarr.open_group(source, mode="w", zarr_format=3)
        chunk = (500, 1000)
        group.create_group("layers").create_array("x", shape=(500 * n_chunks, 1000), chunks=chunk, dtype="float32")
        tracemalloc.start()
        try:
            convert(source, tmp_path / f"{n_chunks}.h5ad")
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    chunk_bytes = 4 * 500 * 1000
    assert peaks[1] - peaks[0] < chunk_bytes  # four chunks more
    with h5py.File(tmp_path / "6.h5ad") as file:
        assert file["layers/x"].shape == (3000, 1000)


def test_a_source_that_is_no_result_leaves_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "none.zarr", tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []
