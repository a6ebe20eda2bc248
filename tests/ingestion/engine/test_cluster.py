from __future__ import annotations

import dataclasses
import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from scamac_scale.api import ingest
from scamac_scale.cli.main import main
from scamac_scale.config import IngestConfig
from scamac_scale.durable.faults import FAULT
from scamac_scale.errors import ClusterError, ConfigError, InputError, LostRankError, MissingExtraError
from scamac_scale.ingestion.engine.cluster import ClusterEngine
from scamac_scale.ingestion.many.opening import open_inputs
from scamac_scale.ingestion.open import open_raw
from scamac_scale.ingestion.passes import take_census
from scamac_scale.workers import connect, tasks
from scamac_scale.workers.address import checked_address
from scamac_scale.workers.connect import connected
from scamac_scale.workers.tasks import Opening, Work, in_order
from tests.support.atlas import build_tiny_atlas
from tests.support.cluster import Cluster, running
from tests.support.failing import contents

if TYPE_CHECKING:
    from pathlib import Path

    from scamac_scale.ingestion.raw import RawMatrix

CONFIG = IngestConfig(n_genes=50, block_cells=16, batch_key="donor")


@pytest.fixture(scope="module")
def atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    adata = build_tiny_atlas()
    adata.obs["donor"] = np.array(["a", "b", "c"])[np.arange(300) // 60 % 3]
    path = tmp_path_factory.mktemp("atlas") / "donors.h5ad"
    adata.write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def local(atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What threads of one process write."""
    return contents(ingest(atlas, tmp_path_factory.mktemp("local") / "s.zarr", CONFIG))


def test_a_store_is_the_same_to_the_byte(cluster: Cluster, atlas: Path, local: Any, tmp_path: Path) -> None:
    assert contents(ingest(atlas, tmp_path / "s.zarr", CONFIG, dask=cluster.address)) == local
    assert not list(tmp_path.glob(".*"))


def test_a_client_serves_and_stays_open(cluster: Cluster, atlas: Path, tmp_path: Path) -> None:
    config = IngestConfig(n_genes=50, block_cells=64, shuffle=False)
    with connected(cluster.address) as client:
        found = contents(ingest(atlas, tmp_path / "s.zarr", config, dask=client))
        assert client.status == "running"
        assert client.run(_count_open) == dict.fromkeys(client.run(_count_open), 0)
    assert found == contents(ingest(atlas, tmp_path / "t.zarr", config))


KINDS: dict[str, dict[str, Any]] = {
    "csc": {},
    "dense": {},
    "several": {"batch_key": "donor"},
    "picked": {"where": 'donor != "b"'},
    "seurat_v3": {"flavor": "seurat_v3", "batch_key": "donor"},
    "pearson_residuals": {"flavor": "pearson_residuals"},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_other_inputs_and_other_genes_are_the_same_to_the_byte(
    cluster: Cluster, atlas: Path, tmp_path: Path, kind: str
) -> None:
    data: Any = atlas
    adata = ad.read_h5ad(atlas)
    if kind in ("csc", "dense"):
        adata.X = adata.X.toarray() if kind == "dense" else sparse.csc_matrix(adata.X)
        data = tmp_path / "x.h5ad"
        adata.write_h5ad(data)
    elif kind == "several":
        other = adata[:, ::-1].copy()
        other.obs_names = [f"other {name}" for name in other.obs_names]
        other.write_h5ad(tmp_path / "x.h5ad")
        data = [atlas, tmp_path / "x.h5ad"]
    config = IngestConfig(n_genes=50, block_cells=64, **KINDS[kind])
    expected = contents(ingest(data, tmp_path / "s.zarr", config))
    assert contents(ingest(data, tmp_path / "t.zarr", config, dask=cluster.address)) == expected


def _count_open() -> int:
    from scamac_scale.workers import tasks

    return len(tasks._OPEN)


@pytest.mark.parametrize("value", [-1.0, np.nan])
def test_an_error_of_a_block_is_told_as_without(
    cluster: Cluster, value: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = sparse.csr_matrix(build_tiny_atlas().X.astype(np.float32))
    x.data[[4000, 9000]] = value
    ad.AnnData(x).write_h5ad(tmp_path / "x.h5ad")
    told = []
    for options in ([], ["--dask", cluster.address]):
        command = ["ingest", str(tmp_path / "x.h5ad"), "--out", str(tmp_path / "s.zarr"), "--quiet"]
        assert main([*command, "--ingest.block_cells=16", *options]) == 2
        told.append(capsys.readouterr().err)
    assert told[0] == told[1]
    assert "for cell '" in told[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.h5ad"]


def test_an_unreadable_block_is_told_as_without(cluster: Cluster, tmp_path: Path) -> None:
    x = sparse.csr_matrix(build_tiny_atlas().X.astype(np.float32))
    x.indices = x.indices.copy()
    adata = ad.AnnData(x)
    adata.write_h5ad(tmp_path / "x.h5ad")
    import h5py

    with h5py.File(tmp_path / "x.h5ad", "a") as file:
        file["X/indices"][8000] = 5000
    told = []
    for dask in (None, cluster.address):
        with pytest.raises(InputError, match="gene number 5000") as error:
            ingest(tmp_path / "x.h5ad", tmp_path / "s.zarr", CONFIG_PLAIN, dask=dask)
        told.append(str(error.value))
    assert told[0] == told[1]


CONFIG_PLAIN = IngestConfig(n_genes=50, block_cells=16)


def test_a_worker_that_does_not_see_the_file_is_named(
    cluster: Cluster, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def elsewhere(engine: ClusterEngine, raw: RawMatrix) -> Any:
        assert raw.recipe is not None
        stamps = [dataclasses.replace(stamp, path="/nowhere/donors.h5ad") for stamp in raw.stamps]
        return before(engine, dataclasses.replace(raw, recipe=dataclasses.replace(raw.recipe, stamps=tuple(stamps))))

    before = ClusterEngine._opening
    monkeypatch.setattr(ClusterEngine, "_opening", elsewhere)
    with pytest.raises(
        ClusterError, match=r"worker tcp://127\.0\.0\.1:\d+ cannot open .* /nowhere/donors\.h5ad cannot be seen"
    ):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, dask=cluster.address)
    assert not (tmp_path / "s.zarr").exists()


def _with_genes_reversed(path: Path) -> None:
    """Put a file of the same cells with its genes in another order in the place of a file."""
    ad.read_h5ad(path)[:, ::-1].copy().write_h5ad(path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


@pytest.mark.parametrize("kind", ["file", "several", "picked"])
def test_workers_refuse_a_file_that_was_replaced_after_it_was_opened(
    cluster: Cluster, atlas: Path, tmp_path: Path, kind: str
) -> None:
    data: Any = tmp_path / "now.h5ad"
    shutil.copy(atlas, data)
    config = IngestConfig(block_cells=64, where='donor != "b"' if kind == "picked" else None)
    inputs = [atlas, data] if kind == "several" else data
    with connected(cluster.address) as client, ClusterEngine(64, client) as engine, open_inputs(inputs, config) as raw:
        _with_genes_reversed(data)
        with pytest.raises(
            ClusterError, match=r"worker tcp://.* cannot open .*now\.h5ad was changed since it was opened"
        ):
            take_census(raw, engine)


def test_a_file_that_is_replaced_while_a_cluster_is_met_is_refused(
    cluster: Cluster, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(atlas, tmp_path / "now.h5ad")
    check = connect._check_processes

    def late(client: Any) -> None:
        check(client)
        _with_genes_reversed(tmp_path / "now.h5ad")

    monkeypatch.setattr(connect, "_check_processes", late)
    with pytest.raises(ClusterError, match=r"now\.h5ad was changed since it was opened"):
        ingest(tmp_path / "now.h5ad", tmp_path / "s.zarr", CONFIG, dask=cluster.address)
    assert not (tmp_path / "s.zarr").exists()


def test_a_worker_that_opens_another_file_than_it_looked_at_is_refused(atlas: Path, tmp_path: Path) -> None:
    path = tmp_path / "now.h5ad"
    shutil.copy(atlas, path)
    with open_raw(path) as raw:
        assert raw.recipe is not None
        recipe = dataclasses.replace(raw.recipe, function=_replace_and_open)
    with pytest.raises(InputError, match="was changed since it was opened"):
        recipe.open()


def _replace_and_open(path: str, *rest: Any) -> RawMatrix:
    from pathlib import Path

    _with_genes_reversed(Path(path))
    return open_raw(path, *rest)


def test_another_version_is_refused(
    cluster: Cluster, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "__version__", "7.0")
    with pytest.raises(ClusterError, match=r"has scamac_scale .*, and here is 7\.0; install the same version"):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, dask=cluster.address)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(connect, "NAME", "scamac_scale_of_nobody")
    with pytest.raises(ClusterError, match="has no scamac_scale"):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, dask=cluster.address)


def test_values_in_memory_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read by workers; write it to a file"):
        ingest(build_tiny_atlas(), tmp_path / "s.zarr", dask=cluster.address)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dask": "tcp://127.0.0.1:1", "workers": 2}, "give either"),
        ({"workers": 0}, "at least 1"),
        ({"dask": 7}, "expected an address"),
    ],
)
def test_what_names_no_cluster_is_refused(atlas: Path, tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_scheduler_that_does_not_answer_is_named(
    atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "WAIT_S", 1.0)
    with pytest.raises(LostRankError, match=r"no dask scheduler answers at tcp://127\.0\.0\.1:1"):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, dask="tcp://127.0.0.1:1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("", "is empty"),
        ("foo", "no host with a port number"),
        ("127.0.0.1", "no host with a port number"),
        ("127.0.0.1:8786x", "no host with a port number"),
        ("tcp://127.0.0.1:0", "no host with a port number"),
        ("tcp://127.0.0.1:99999", "no host with a port number"),
        ("tcp://:8786", "no host with a port number"),
        ("tcp://::1:8786", "no host with a port number"),
        ("tcp://a b:8786", "no host with a port number"),
        ("tcp://tcp://a:8786", "tcp://tcp:// is no way"),
        ("http://127.0.0.1:8787", "the dashboard"),
        ("nonsense://x:1", "nonsense:// is no way"),
    ],
)
def test_an_address_that_is_mistyped_is_refused_before_anything_waits(address: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said), connected(address):
        pass


@pytest.mark.parametrize("address", [" tcp://a.b-c:8786/ ", "tls://[::1]:8786", "10.0.0.1:1", "inproc://10.0.0.1/7/1"])
def test_other_addresses_are_taken(address: str) -> None:
    assert checked_address(address) == address.strip().rstrip("/")


@pytest.mark.slow
@pytest.mark.parametrize("address", ["tls://127.0.0.1:1", "ucx://127.0.0.1:1"])
def test_what_dask_refuses_ends_at_once_and_without_a_traceback(
    address: str, atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is half made would be waited for when the process ends, for a minute."""
    from tests.support.cluster import ROOT

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "scamac_scale", "ingest", str(atlas), "--out", str(tmp_path / "s.zarr"), "--quiet"]
    done = subprocess.run([*command, "--dask", address], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: --dask {address} ")
    assert len(done.stderr.splitlines()) == 1
    assert ("TLS__CA_FILE" in done.stderr) == address.startswith("tls")


def test_without_dask_it_is_said_what_to_install(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtraError, match=r'pip install "scamac-scale\[dask\]"'):
        ingest(atlas, tmp_path / "s.zarr", CONFIG, workers=2)


class Nothing:
    """What a worker opens that reads nothing."""

    def close(self) -> None:
        """Nothing is open."""


def fail_like_a_network_disk(opened: Nothing, number: int, task: int) -> int:
    raise OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ETIMEDOUT, errno.EIO])
def test_an_error_of_the_system_on_a_worker_is_told_and_not_waited_for(cluster: Cluster, number: int) -> None:
    """Python makes a TimeoutError of the first, as is raised where a result is not there yet."""
    work = Work(Opening(Nothing, ()), fail_like_a_network_disk, number, str)
    with (
        connected(cluster.address) as client,
        pytest.raises(ClusterError, match=rf"worker tcp://.*{os.strerror(number)}"),
    ):
        list(in_order(client, work, range(3)))


def run_out_of_memory(opened: Nothing, common: None, task: int) -> None:
    raise MemoryError


def test_a_worker_without_memory_is_told_and_is_not_the_client(cluster: Cluster) -> None:
    work = Work(Opening(Nothing, ()), run_out_of_memory, None, str)
    with (
        connected(cluster.address) as client,
        pytest.raises(ClusterError, match=r"worker tcp://.* has too little memory"),
    ):
        list(in_order(client, work, range(3)))


def pause_beyond(share: float, dask_worker: Any) -> None:
    """Have dask pause a worker whose memory is filled beyond this share."""
    dask_worker.memory_manager.memory_pause_fraction = share


def wait_for(client: Any, status: str) -> int:
    """Wait until all workers are so; how many there are."""
    until_s = time.monotonic() + 30
    while {info["status"] for info in client.scheduler_info(-1)["workers"].values()} != {status}:
        assert time.monotonic() < until_s
        time.sleep(0.1)
    return len(client.scheduler_info(-1)["workers"])


def double(opened: Nothing, common: None, task: int) -> int:
    return 2 * task


@pytest.mark.slow
def test_workers_that_take_nothing_are_not_waited_for_for_ever(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "LOST_S", 2.0)
    monkeypatch.setattr(tasks, "LOOK_S", 0.5)
    work = Work(Opening(Nothing, ()), double, None, str)
    with connected(cluster.address) as client:
        client.run(pause_beyond, 1e-9)
        try:
            n_workers = wait_for(client, "paused")
            with pytest.raises(LostRankError, match=rf"\({n_workers} are paused, short of memory"):
                list(in_order(client, work, range(3)))
        finally:
            client.run(pause_beyond, 0.8)
        wait_for(client, "running")
        assert list(in_order(client, work, range(3))) == [0, 2, 4]


@pytest.mark.slow
def test_a_worker_that_is_killed_changes_nothing(atlas: Path, local: Any, tmp_path: Path) -> None:
    with running(tmp_path, "cluster.task:2:kill", "") as cluster:
        with connected(cluster.address) as client:
            client.wait_for_workers(2, timeout=60)
        assert contents(ingest(atlas, tmp_path / "s.zarr", CONFIG, dask=cluster.address)) == local
        assert cluster.workers[0].wait(10) == -signal.SIGKILL
        assert cluster.workers[1].poll() is None


@pytest.mark.slow
def test_a_block_that_ends_every_worker_is_told(atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES", "1")  # 3, if nobody says
    with running(tmp_path, *["cluster.task:1:kill"] * 3) as cluster, connected(cluster.address) as client:
        client.wait_for_workers(3, timeout=120)
        with pytest.raises(
            ClusterError, match=r"2 workers ended, one after the other, while they had .*cells 0 to 300"
        ):
            ingest(atlas, tmp_path / "s.zarr", dask=client)


@pytest.mark.slow
def test_a_stopped_ingest_goes_on_without_dask(
    atlas: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path, "", "") as cluster:
        command = [sys.executable, "-m", "scamac_scale", "ingest", str(atlas), "--out", str(tmp_path / "s.zarr")]
        command += ["--dask", cluster.address, "--ingest.block_cells=16", "--ingest.n_genes=50", "--batch-key=donor"]
        monkeypatch.setenv(FAULT, "ingest.read:45:kill")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        monkeypatch.delenv(FAULT)
        assert not (tmp_path / "s.zarr").exists()
        assert contents(ingest(atlas, tmp_path / "s.zarr", CONFIG, resume=True)) == local


@pytest.mark.slow
def test_processes_of_this_machine_are_started_and_ended(
    atlas: Path, local: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    command = ["ingest", str(atlas), "--out", str(tmp_path / "s.zarr"), "--workers", "2", "--ingest.block_cells=16"]
    assert main([*command, "--ingest.n_genes=50", "--batch-key=donor"]) == 0
    assert contents(tmp_path / "s.zarr") == local
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.slow
def test_an_interrupt_of_a_terminal_is_told_by_one_process(
    atlas: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to all processes of the group."""
    from tests.support.cluster import ROOT

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(FAULT, "cluster.task:2:sleep")
    monkeypatch.setenv("SCAMAC_FAULT_LOG", str(tmp_path / "faults.log"))
    heard = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    command = [sys.executable, "-c", heard]  # a shell has what it starts in the background ignore it
    command += [
        sys.executable,
        "-m",
        "scamac_scale",
        "ingest",
        str(atlas),
        "--out",
        str(tmp_path / "s.zarr"),
        "--quiet",
    ]
    command += ["--workers", "2", "--ingest.block_cells=16"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        until_s = time.monotonic() + 60
        while not (tmp_path / "faults.log").exists() and process.poll() is None and time.monotonic() < until_s:
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, told = process.communicate(timeout=50)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 75, told
    assert "Traceback" not in told
    assert "--resume" in told
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s and _is_group_there(process.pid):
        time.sleep(0.1)
    assert not _is_group_there(process.pid)


def _is_group_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
