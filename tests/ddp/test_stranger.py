"""A stranger at all ports of a training neither runs code, nor reads or changes anything: the result has the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import asdict
from ipaddress import ip_address
from typing import TYPE_CHECKING

import pytest
import yaml

from scamac_scale import IngestConfig, ingest
from scamac_scale.durable.differences import plain
from scamac_scale.ranks.secret import SECRET, new_secret
from tests.support.fingerprint import fingerprint
from tests.support.settings import QUICK
from tests.support.stranger import Stranger, recorded_session

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.nursery import Nursery

pytestmark = pytest.mark.ddp


def prepared(folder: Path, atlas: Path) -> tuple[Path, list[str]]:
    """A store, and the command that trains on it; the run folder is still to be named."""
    store = ingest(atlas, folder / "store.zarr", IngestConfig(n_genes=100))
    (folder / "config.yaml").write_text(yaml.safe_dump(plain(asdict(QUICK))))
    return store, ["train", "--store", str(store), "--config", str(folder / "config.yaml"), "--quiet", "--run"]


@pytest.mark.slow
def test_a_stranger_at_all_ports_of_a_training_has_no_effect(jobs: Nursery, tiny_atlas: Path, tmp_path: Path) -> None:
    secret, bomb = new_secret(), tmp_path / "bomb"
    known = {SECRET: secret}  # to somebody who has recorded what ranks of this job say
    store, command = prepared(tmp_path, tiny_atlas)
    assert jobs.run(*command, str(tmp_path / "quiet"), ranks=2, environ=known).codes == [0, 0]
    with Stranger(jobs.pid, bomb, recorded_session(secret.encode())) as stranger:
        ended = jobs.run(*command, str(tmp_path / "attacked"), ranks=2, environ=known)
    assert ended.codes == [0, 0], ended.errors
    assert fingerprint(tmp_path / "attacked", store) == fingerprint(tmp_path / "quiet", store)
    assert not bomb.exists()
    assert stranger.n_connections >= 300
    assert len(stranger.seen) >= 3  # the board, and gloo
    assert all(ip_address(address).is_loopback for address, _ in stranger.seen), stranger.seen


@pytest.mark.slow
def test_a_stranger_has_no_effect_on_ranks_that_our_launcher_starts(tiny_atlas: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb"
    store, command = prepared(tmp_path, tiny_atlas)
    program = [sys.executable, "-m", "scamac_scale", *command]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, str(tmp_path / "quiet"), "--devices", "2"], env=environ, check=True)
    attacked = subprocess.Popen([*program, str(tmp_path / "attacked"), "--devices", "2"], env=environ)
    with Stranger(attacked.pid, bomb, recorded_session(new_secret().encode())) as stranger:
        assert attacked.wait() == 0
    assert fingerprint(tmp_path / "attacked", store) == fingerprint(tmp_path / "quiet", store)
    assert not bomb.exists()
    assert stranger.n_connections >= 300
    assert all(ip_address(address).is_loopback for address, _ in stranger.seen), stranger.seen
