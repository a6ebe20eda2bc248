import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scamac_scale.errors import InputError, OutputError
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.memory import MemoryOutput
from scamac_scale.infer.output.table import (
    CHUNK_BYTES,
    CHUNK_CELLS,
    DENOISED_KEY,
    LATENT_KEY,
    Table,
    chunk_cells,
    cluster_column,
)
from scamac_scale.nn.embed import EMBED_CELLS

ROOT = Path(__file__).parents[3]
FRAME = {"zarr.json", "obs", "obsm", "obsp", "var", "varm", "varp", "layers", "uns"}
OBS = pd.DataFrame({"batch": ["a", None, "b", "a", "b"]}, index=[f"cell{index}" for index in range(5)])
LATENT = np.arange(10, dtype=np.float32).reshape(5, 2)
LABELS = np.array([0, 2, 1, 0, 2])


def fill(output: Any) -> Any:
    with output:
        for start in (3, 0):  # any order
            stop = min(start + 3, 5)
            output.write(np.arange(start, stop), LABELS[start:stop], {LATENT_KEY: LATENT[start:stop]})
        return output.finish(3, {"seed": 1})


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.slow
def test_disk_and_memory_hold_the_same(tmp_path: Path, suffix: str) -> None:
    genes, widths = ["g1", "g2"], {LATENT_KEY: 2}
    expected = fill(MemoryOutput(Table(OBS, genes, widths)))
    path = fill(DiskOutput(tmp_path / f"out{suffix}", Table(OBS, genes, widths), {}))
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    np.testing.assert_array_equal(found.obsm[LATENT_KEY], LATENT)
    np.testing.assert_array_equal(expected.obsm[LATENT_KEY], LATENT)
    assert found.obs["scamac_cluster"].tolist() == expected.obs["scamac_cluster"].tolist() == list("02102")
    assert found.obs_names.tolist() == OBS.index.tolist()
    assert found.var_names.tolist() == genes
    assert found.uns["scamac"]["seed"] == 1


@pytest.mark.parametrize("suffix", [".zarr", pytest.param(".h5ad", marks=pytest.mark.slow)])
def test_rows_in_any_order_come_to_their_places(tmp_path: Path, suffix: str) -> None:
    n_cells = 2 * 2**14 + 5  # three chunks
    obs = pd.DataFrame(index=[str(i) for i in range(n_cells)])
    order = np.random.default_rng(0).permutation(n_cells)
    widths = {LATENT_KEY: 2, DENOISED_KEY: 1}
    with DiskOutput(tmp_path / f"out{suffix}", Table(obs, ["g"], widths), {}) as output:
        for start in range(0, n_cells, 1000):
            rows = order[start : start + 1000]
            values = np.stack([rows, -rows], axis=1).astype(np.float32)
            output.write(rows, rows % 3, {LATENT_KEY: values, DENOISED_KEY: values[:, :1]})
        output.finish(3, {})
    (path,) = tmp_path.iterdir()  # and nothing else
    found = ad.read_zarr(path) if suffix == ".zarr" else ad.read_h5ad(path)
    np.testing.assert_array_equal(found.obsm[LATENT_KEY][:, 0], np.arange(n_cells))
    np.testing.assert_array_equal(found.layers[DENOISED_KEY][:, 0], np.arange(n_cells))
    np.testing.assert_array_equal(found.obs["scamac_cluster"].cat.codes, np.arange(n_cells) % 3)
    if suffix == ".zarr":
        assert {entry.name for entry in path.iterdir()} == FRAME


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
@pytest.mark.parametrize(("error", "left"), [(ValueError, []), (KeyboardInterrupt, ["partial"])])
def test_nothing_is_left_after_an_error_but_what_an_interrupt_can_go_on_from(
    tmp_path: Path, suffix: str, error: type[BaseException], left: list[str]
) -> None:
    def fail() -> None:
        with DiskOutput(tmp_path / f"out{suffix}", Table(OBS, ["g"], {LATENT_KEY: 2}), {}) as output:
            output.write(np.arange(2), LABELS[:2], {LATENT_KEY: LATENT[:2]})
            raise error

    with pytest.raises(error):
        fail()
    assert [path.name.rsplit(".", 1)[-1] for path in tmp_path.iterdir()] == left


@pytest.mark.parametrize(("suffix", "needed"), [(".zarr", 5 * (2 * 10 + 1) * 4), (".h5ad", 5 * (2 * 10 + 1) * 4)])
def test_an_output_is_refused_before_any_work_where_its_disk_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, needed: int
) -> None:
    import shutil

    def disk_with(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9999, 0, free))  # type: ignore[attr-defined]

    disk_with(needed - 1)
    with pytest.raises(OutputError, match=rf"needs up to {needed} bytes, {needed - 1} are free.*make room"):
        DiskOutput(tmp_path / f"out{suffix}", Table(OBS, ["g"], {LATENT_KEY: 2, DENOISED_KEY: 8}), {})
    disk_with(needed)
    DiskOutput(tmp_path / f"out{suffix}", Table(OBS, ["g"], {LATENT_KEY: 2, DENOISED_KEY: 8}), {})
    assert list(tmp_path.iterdir()) == []


def test_an_h5ad_is_not_begun_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    output = DiskOutput(tmp_path / "out.h5ad", Table(OBS, ["g"], {LATENT_KEY: 2}), {})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))  # type: ignore[attr-defined]
    with pytest.raises(OutputError, match=r"write \.zarr, or make room"):
        fill(output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("names", [("cell_type", "cell/type"), ("a", "a"), ("scamac/cluster", "b")])
def test_columns_that_clash_are_refused_before_any_work(tmp_path: Path, names: tuple[str, str]) -> None:
    obs = OBS.assign(more=1).set_axis(names, axis=1)
    with pytest.raises(InputError, match="rename or remove"):
        DiskOutput(tmp_path / "out.zarr", Table(obs, ["g"], {LATENT_KEY: 2}), {})


def test_clusters_of_an_earlier_run_are_replaced(tmp_path: Path) -> None:
    path = fill(DiskOutput(tmp_path / "out.zarr", Table(OBS.assign(scamac_cluster="old"), ["g"], {LATENT_KEY: 2}), {}))
    assert ad.read_zarr(path).obs["scamac_cluster"].tolist() == list("02102")


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    output = DiskOutput(tmp_path / "out.h5ad", Table(OBS, ["g"], {LATENT_KEY: 2}), {})
    (tmp_path / "out.h5ad").write_text("theirs")
    with pytest.raises(OutputError, match="already there"):
        fill(output)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5ad"]
    assert (tmp_path / "out.h5ad").read_text() == "theirs"


@pytest.mark.slow
def test_an_h5ad_is_written_from_a_folder_with_modules_of_the_same_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("h5py", "scamac_scale"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('the wrong module')")
    monkeypatch.chdir(tmp_path)
    assert ad.read_h5ad(fill(DiskOutput("out.h5ad", Table(OBS, ["g"], {LATENT_KEY: 2}), {}))).n_obs == len(OBS)


FILE_TOO_LARGE = """
import resource, sys
import numpy as np, pandas as pd
from scamac_scale.errors import OutputError
from scamac_scale.infer.output.disk import DiskOutput
from scamac_scale.infer.output.table import DENOISED_KEY, Table
def limit():
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**21, resource.RLIM_INFINITY))
values = np.random.default_rng(0).random((3 * 2**14, 16), dtype=np.float32)
obs = pd.DataFrame(index=[str(i) for i in range(len(values))])
try:
    with DiskOutput(sys.argv[1], Table(obs, [str(i) for i in range(16)], {DENOISED_KEY: 16}), {}) as output:
        if sys.argv[2] == "rows":
            limit()
        output.write(np.arange(len(values)), np.zeros(len(values), dtype=np.int64), {DENOISED_KEY: values})
        limit()  # chunks stay below it, an h5ad does not
        output.finish(1, {})
except OutputError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        ("rows", "File too large; the file system or a limit allows no larger files; choose another disk."),
        pytest.param("h5ad", "File too large; make room, or write .zarr.", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_said_and_nothing_is_left_behind(tmp_path: Path, stage: str, reason: str) -> None:
    command = [sys.executable, "-c", FILE_TOO_LARGE, tmp_path / "out.h5ad", stage]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("4 "), done.stderr
    assert f"out.h5ad cannot be written: {reason}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [1, 10, 2000, 3000, 30_000, 10**8])
def test_chunks_are_bounded_and_hold_whole_blocks_or_divide_one(width: int) -> None:
    cells = chunk_cells(width)
    assert cells == 1 or 4 * cells * width <= CHUNK_BYTES
    assert cells <= CHUNK_CELLS
    assert cells % EMBED_CELLS == 0 or EMBED_CELLS % cells == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        DiskOutput(tmp_path / "out.zarr", Table(OBS, ["g"], {LATENT_KEY: 2}), {})


def test_every_cluster_is_a_category_also_an_empty_one() -> None:
    assert cluster_column(np.array([0, 2]), 4).categories.tolist() == ["0", "1", "2", "3"]
