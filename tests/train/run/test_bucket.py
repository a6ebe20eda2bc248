"""The folder of a run in a bucket: what is there when, whose it is, and what a lost answer means."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch

from scamac_scale import IngestConfig, ScAMAC, ingest
from scamac_scale.cli.main import main
from scamac_scale.durable.plain import sealed
from scamac_scale.errors import ConfigError, OutputError, StoreError
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.place import parse
from scamac_scale.train.run.checkpoints import Checkpoints
from scamac_scale.train.run.folder import RunFolder
from scamac_scale.train.run.latest import Latest, Part
from scamac_scale.train.run.lease import Lease
from scamac_scale.train.run.place import find_run
from tests.support.chaos import Chaos, chaos
from tests.support.command_line import QUICK as OPTIONS
from tests.support.objects import SECRETS, Objects
from tests.support.settings import QUICK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.support.bucket import ObjectServer


@pytest.fixture(scope="module")
def store(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ingest(tiny_atlas, tmp_path_factory.mktemp("store") / "store.zarr", IngestConfig(n_genes=100))


@pytest.fixture
def server(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chaos]:
    """A quiet proxy before the server, to be aimed with."""
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "work"))
    with chaos(object_server.address, shares={}) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture
def run(bucket: str) -> str:
    return f"{bucket}/runs/1"


@pytest.fixture
def objects(object_server: ObjectServer, run: str) -> Objects:
    return Objects(object_server, run)


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weight": torch.full((100,), float(step)), "target": None}


def opened(run: str, *, resume: bool = False) -> RunFolder:
    """The folder of a fit that goes on."""
    folder = RunFolder(run, QUICK, resume=resume)
    folder.begin()
    return folder


def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / name))


def kinds(names: Iterable[str]) -> list[str]:
    """Names of objects or files, without what stands for a time or a content."""
    return sorted(re.sub(r"(?<=events|s/0000).*", "", name) for name in names)


# ------------------------------------------------------------------ what is there


def test_a_run_in_a_bucket_is_that_of_a_folder_and_run_json_is_put_last(
    server: Chaos, store: Path, run: str, objects: Objects, tmp_path: Path
) -> None:
    model = ScAMAC(config=QUICK).fit(store, run=run)
    local = ScAMAC(config=QUICK).fit(store, run=tmp_path / "run")
    files = [path.relative_to(tmp_path / "run") for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert kinds(objects.names()) == sorted([*kinds(map(str, files)), "latest.json"])
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert objects.read("model/model.safetensors") == weights
    assert [path.rpartition("runs/1/")[2] for path in server.paths("PUT")][-1] == "run.json"
    assert model.fitted.n_clusters == local.fitted.n_clusters
    assert not list((tmp_path / "work").rglob("*.pt"))
    again = ScAMAC(config=QUICK).fit(store, run=run, resume=True)
    assert again.report["steps"] == model.report["steps"]
    assert ScAMAC.load(f"{run}/model").fitted.cells_digest == model.fitted.cells_digest
    with pytest.raises(OutputError, match=f"the run {run} is finished"):
        ScAMAC(config=QUICK).fit(store, run=run)
    with pytest.raises(ConfigError, match=r"cannot go on with other settings: .*seed"):
        ScAMAC(config=QUICK, seed=7).fit(store, run=run, resume=True)


def test_what_has_not_changed_is_not_put_again_nor_held(server: Chaos, run: str, objects: Objects) -> None:
    with opened(run) as folder:
        folder.log({"loss": 1.0}, 1)
        folder.save(state(1))
        n_puts = len(server.paths("PUT"))
        folder.save(state(2))
        puts = [path.rpartition("runs/1/")[2] for path in server.paths("PUT")[n_puts:]]
        assert [path.partition("/")[0] for path in puts] == ["checkpoints", "latest.json"]
        folder.log({"loss": 0.5}, 3)
        folder.save(state(3))
        assert objects.read("metrics.csv") == (folder.path / "metrics.csv").read_bytes()
        lease = folder._bucket._own  # type: ignore[union-attr]
        assert all(known is None or len(known.sha256) == 64 for known in lease._objects.values())
        assert "metrics.csv" in lease._objects


def test_checkpoints_are_named_after_they_are_there_and_old_ones_go(server: Chaos, run: str, objects: Objects) -> None:
    with opened(run) as folder:
        for step in range(4):
            folder.save(state(step))
            newest = objects.latest()["newest"]
            assert newest["name"] in objects.checkpoints()
            assert newest["bytes"] == len(objects.read(f"checkpoints/{newest['name']}"))
        names = [path.name for path in sorted(folder.checkpoints.folder.glob("*.pt"))]
        assert objects.checkpoints() == names
        assert [objects.latest()["older"][0]["name"], objects.latest()["newest"]["name"]] == names
    assert not [path for path in server.paths("PUT") if path.endswith(("run.json", "model.json"))]


def test_another_machine_takes_the_newest_checkpoint(
    server: Chaos, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(run) as folder:
        for step in range(3):
            folder.log({"loss": 1.0}, step)
            folder.save(state(step))
    elsewhere(monkeypatch, tmp_path, "other")
    with opened(run, resume=True) as folder:
        assert folder.saved is not None
        assert folder.saved["state"]["step"] == 2
        assert folder.n_logged == 3
        folder.save(state(3))
    assert objects.latest()["generation"] == 2
    assert [name.split("-")[2] for name in objects.checkpoints()] == ["2", "3"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    server: Chaos, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with opened(run) as folder:
        for step in range(3):
            folder.save(state(step))
    newest = objects.checkpoints()[-1]
    content = objects.read(f"checkpoints/{newest}")
    objects.write(f"checkpoints/{newest}", content[:-1] + b"?")
    elsewhere(monkeypatch, tmp_path, "other")
    with opened(run, resume=True) as folder:
        assert folder.saved is not None
        assert folder.saved["state"]["step"] == 1
        folder.save(state(2))
    assert f"{newest} cannot be used" in caplog.text
    assert objects.read(f"checkpoints/{newest}") == content
    for name in objects.checkpoints():
        objects.delete(f"checkpoints/{name}")
    elsewhere(monkeypatch, tmp_path, "third")
    with pytest.raises(StoreError, match="all checkpoints are damaged or missing"):
        opened(run, resume=True)


def test_a_run_folder_that_was_copied_into_a_bucket_goes_on(
    server: Chaos, run: str, objects: Objects, tmp_path: Path
) -> None:
    with RunFolder(tmp_path / "run", QUICK) as local:
        for step in range(3):
            local.save(state(step))
    objects.copy_from(tmp_path / "run")
    with pytest.raises(OutputError, match="add --resume"):
        opened(run)
    with opened(run, resume=True) as folder:
        assert folder.saved is not None
        assert folder.saved["state"]["step"] == 2


@pytest.mark.parametrize("name", ["notes.txt", "other/run.json", "model/model.json"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_place_with_other_objects_is_refused(
    server: Chaos, run: str, objects: Objects, name: str, resume: bool
) -> None:
    objects.write(name, b"{}")
    with pytest.raises(OutputError, match="no run has written all that is in it"):
        opened(run, resume=resume)
    assert objects.names() == [name]


# ------------------------------------------------------------------ whose it is


def test_a_machine_that_comes_back_late_changes_nothing_and_says_so(
    server: Chaos, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = opened(run)
    late.save(state(0))
    late.save(state(1))
    elsewhere(monkeypatch, tmp_path, "other")
    with opened(run, resume=True) as newer:
        newer.save(state(2))
        before = {name: objects.read(name) for name in objects.names()}
        late.log({"loss": 1.0}, 5)
        with pytest.raises(
            OutputError, match=r"was taken over by another process \(.*, since 20.*\), so this one stops"
        ):
            late.save(state(9))
        assert late.checkpoints.folder.is_dir()
        late.__exit__(None, None, None)
        assert {name: objects.read(name) for name in objects.names()} == before
        newer.save(state(3))
        newer.save(state(4))
    elsewhere(monkeypatch, tmp_path, "third")
    with opened(run, resume=True) as third:
        assert third.saved is not None
        assert third.saved["state"]["step"] == 4
        third.save(state(5))
    assert len(objects.checkpoints()) == 2
    assert objects.latest()["generation"] == 3


def test_who_takes_a_run_keeps_what_its_holder_saves_until_then(
    server: Chaos, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = opened(run)
    holder.save(state(0))
    holder.save(state(1))
    elsewhere(monkeypatch, tmp_path, "other")
    with RunFolder(run, QUICK, resume=True) as newer:
        holder.save(state(2))
        newer.begin()
        assert objects.latest()["newest"]["name"].startswith("000002")
        newer.save(state(2))
    holder.__exit__(None, None, None)


def test_of_two_that_start_at_once_one_has_the_run(
    server: Chaos, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunFolder(run, QUICK)
    elsewhere(monkeypatch, tmp_path, "other")
    second = RunFolder(run, QUICK)
    first.begin()
    with pytest.raises(OutputError, match="was taken over by another process"):
        second.begin()
    for each in (first, second):
        each.__exit__(None, None, None)


def test_what_is_refused_takes_the_run_from_nobody(
    server: Chaos, store: Path, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(run) as folder:
        folder.save(state(0))
        folder.save(state(1))
        before = objects.read("latest.json")
        elsewhere(monkeypatch, tmp_path, "other")
        with pytest.raises(OutputError, match="holds a run that was stopped; add --resume"):
            RunFolder(run, QUICK)
        with pytest.raises(ConfigError, match=f"{run} cannot go on with other settings"):
            ScAMAC(config=QUICK, seed=5).fit(store, run=run, resume=True)
        with pytest.raises(ConfigError, match="was started with other cells"):
            ScAMAC(config=QUICK).fit(store, run=run, resume=True)
        assert objects.read("latest.json") == before


def test_a_run_that_is_refused_at_its_start_leaves_nothing(
    server: Chaos, tiny_adata: Any, run: str, objects: Objects, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError):
        ScAMAC(301, config=QUICK).fit(tiny_adata, run=run)
    assert objects.names() == []
    assert not [path for path in (tmp_path / "work").rglob("*") if path.is_file()]


def test_ranks_that_do_not_share_the_local_folder_are_named(
    server: Chaos, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = find_run(run)
    elsewhere(monkeypatch, tmp_path, "other")
    there = find_run(run)
    assert here.bucket is not None
    assert there.bucket is not None
    here.bucket.copy.meet("token")
    assert here.bucket.copy.sees("token")
    assert not there.bucket.copy.sees("token")
    assert "is not seen by rank 1, 3: ranks share a folder" in str(here.bucket.copy.unseen([1, 3]))


# ------------------------------------------------------------------ lost answers


@pytest.mark.parametrize("action", ["reset", "cut", "lose", "slow_down", "half"])
@pytest.mark.slow
def test_no_fault_of_one_request_is_a_conflict_or_a_success(
    server: Chaos, run: str, objects: Objects, action: Any
) -> None:
    server.aim(action, "PUT", "latest.json", times=2)
    folder = opened(run)
    for step, ending in enumerate(("latest.json", "metrics.csv", ".pt")):
        server.aim(action, "PUT", ending)
        folder.log({"loss": 1.0}, step)
        folder.save(state(step))
        assert objects.latest()["newest"]["name"] == objects.checkpoints()[-1]
        assert objects.read("metrics.csv") == (folder.path / "metrics.csv").read_bytes()
    assert objects.latest()["generation"] == 1
    assert server.n_faults(action) == 5
    folder.__exit__(None, None, None)


@pytest.mark.parametrize("actions", [("lose",), ("slow_down", "lose"), ("cut", "reset")], ids=str)
@pytest.mark.slow
def test_a_lost_answer_is_no_success_where_another_machine_came_first(
    server: Chaos, run: str, objects: Objects, actions: tuple[Any, ...]
) -> None:
    late, newer = Lease(Bucket(run)), Lease(Bucket(run))
    for action in actions:
        server.aim(action, "PUT", "latest.json")
    late.take()
    with pytest.raises(OutputError, match="was taken over"):
        newer.take()  # it has seen an empty place
    newer = Lease(Bucket(run))
    for action in actions:
        server.aim(action, "PUT", "latest.json")
    newer.take()
    newer.put("metrics.csv", b"of the newer one")
    for write in (lambda: late.write(late.latest), lambda: late.put("metrics.csv", b"of the late one"), late.check):
        for action in actions:
            server.aim(action, "PUT", "latest.json")
        with pytest.raises(OutputError, match="was taken over by another process"):
            write()
    newer.write(newer.latest)
    assert objects.read("metrics.csv") == b"of the newer one"
    assert objects.latest()["token"] == newer.latest.token
    objects.delete("latest.json")
    with pytest.raises(OutputError, match="was removed while this run was going on"):
        newer.write(newer.latest)


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_put_is_kept_here_and_goes_on_from_here(
    server: Chaos, store: Path, run: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "0.3")
    # the first one of the run, number 0, comes through
    server.aim("slow_down", "PUT", ".pt", times=10**6, header="x-never")
    options = ["--store", str(store), "--run", run, *OPTIONS, "--train.checkpoint_every_steps", "3"]
    aims = _from_the_second_checkpoint_on(server)
    assert main(["train", *options, "--debug"]) == 4
    text = capsys.readouterr().err
    assert "What was done is kept in" in text
    assert str(tmp_path / "work") in text
    assert "s3://" in text
    assert not any(secret in text for secret in SECRETS)
    kept = list((tmp_path / "work").rglob("000001-*.pt"))
    assert len(kept) == 1
    aims.clear()
    assert main(["train", *options[:4], "--resume", "--json"]) == 0, "with the settings that lie in the bucket"
    capsys.readouterr()
    assert main(["train", *options[:2], "--run", str(tmp_path / "local"), *options[4:]]) == 0
    assert objects.read("model/model.safetensors") == (tmp_path / "local/model/model.safetensors").read_bytes()


def _from_the_second_checkpoint_on(server: Chaos) -> set[str]:
    """Let no checkpoint but the first one come through, until the set is emptied."""
    wanted = {"on"}
    fate_of = server.fate_of

    def fate(method: str, path: str, headers: dict[str, str]) -> Any:
        if wanted and method == "PUT" and path.endswith(".pt") and "/000000-" not in path:
            return "slow_down"
        return fate_of(method, path, headers)

    server.fate_of = fate  # type: ignore[method-assign]
    return wanted


def test_latest_json_of_a_stranger_is_refused(server: Chaos, run: str, objects: Objects) -> None:
    with opened(run) as folder:
        folder.save(state(0))
        folder.save(state(1))
    sound = json.loads(objects.read("latest.json"))
    for change in (
        {"newest": {"name": "../../x", "bytes": 1, "sha256": ""}},
        {"generation": -1},
        {"token": "x"},
        {"a": 1},
    ):
        content = {name: value for name, value in sound.items() if name != "sha256"} | change
        objects.write("latest.json", sealed(content).encode())
        with pytest.raises(StoreError, match=r"latest\.json cannot be used"):
            opened(run, resume=True)
    objects.write("latest.json", b"\xff{")
    with pytest.raises(StoreError, match=r"latest\.json cannot be used: .*remove it"):
        opened(run, resume=True)
    objects.delete("latest.json")
    with opened(run, resume=True) as folder:
        assert folder.saved is not None


def test_what_stands_in_latest_json_comes_back(bucket: str) -> None:
    latest = Latest().taken()
    for number in range(3):
        latest = latest.with_new(Part(f"{number:06d}-step-{number}-{'a' * 16}.pt", 3, "b" * 64), None).counted()
    assert Latest.from_bytes(latest.to_bytes(), parse(bucket)) == latest
    assert len(latest.checkpoints) == 2


def test_a_local_folder_is_not_reused_when_others_had_the_run_since(
    server: Chaos, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(run) as folder:
        for step in range(2):
            folder.save(state(step))
        here = folder.path
    shutil.copytree(tmp_path / "work", tmp_path / "kept")
    elsewhere(monkeypatch, tmp_path, "other")
    with opened(run, resume=True) as folder:
        folder.save(state(7))
    elsewhere(monkeypatch, tmp_path, "kept")
    back = tmp_path / "kept" / here.relative_to(tmp_path / "work")
    stale = Checkpoints(back / "checkpoints")
    stale.save(state(99), 99)
    stale.save(state(99), 100)
    with opened(run, resume=True) as folder:
        assert folder.saved is not None
        assert folder.saved["state"]["step"] == 7
