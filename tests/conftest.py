"""What the tests share: a small atlas with clear clusters, in memory and on disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

# before torch and numba, which hands torch its own number: the tests' matrices are too small for more threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support.atlas import build_tiny_atlas
from tests.support.bucket import ObjectServer
from tests.support.cluster import Cluster, running
from tests.support.nursery import Nursery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import anndata as ad

settings.register_profile("scamac", deadline=None)  # no test asserts a time
settings.load_profile("scamac")


@pytest.fixture(scope="session")
def tiny_atlas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Path of an h5ad: 300 cells, 200 genes, raw counts as CSR, four clusters in ``obs["cell_type"]``; read only."""
    path = tmp_path_factory.mktemp("atlas") / "tiny.h5ad"
    build_tiny_atlas().write_h5ad(path)
    return path


@pytest.fixture(scope="session")
def _tiny_adata() -> ad.AnnData:
    return build_tiny_atlas()


@pytest.fixture
def tiny_adata(_tiny_adata: ad.AnnData) -> ad.AnnData:
    """The same atlas in memory; each test gets its own copy."""
    return _tiny_adata.copy()


@pytest.fixture(scope="session", autouse=True)
def _no_disk_is_waited_for() -> Iterator[None]:
    """What a test kills is a process, and not the machine: what the system was given is there afterwards."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session")
def _object_server() -> Iterator[ObjectServer]:
    pytest.importorskip("moto")
    pytest.importorskip("obstore")
    with ObjectServer() as server:
        yield server


@pytest.fixture
def object_server(_object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch) -> ObjectServer:
    """A server of object storage on loopback; this process has its address and (fake) credentials in the environment."""
    for name, value in _object_server.environment.items():
        monkeypatch.setenv(name, value)
    return _object_server


@pytest.fixture
def bucket(object_server: ObjectServer) -> str:
    """URL of an empty bucket."""
    return object_server.new_bucket()


@pytest.fixture(scope="session")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Commands as real processes, which may be killed."""
    with Nursery(tmp_path_factory.mktemp("jobs")) as found:
        yield found


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A dask scheduler with two workers, started once."""
    with running(tmp_path_factory.mktemp("cluster"), "", "") as found:
        yield found
