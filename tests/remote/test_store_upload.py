"""A store is written into a bucket: the bytes of a local one, found when all of it is there, and never a mixture of two."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from scamac_scale import IngestConfig, ingest, inspect
from scamac_scale.cli.main import main
from scamac_scale.durable import faults
from scamac_scale.errors import ConfigError, InputError, OutputError, ResumeError, StoreError
from scamac_scale.remote import bucket as remote
from scamac_scale.store import bucket as module
from scamac_scale.store import layout
from scamac_scale.store.bucket import StoreBucket
from scamac_scale.store.reader import StoreReader
from tests.support.bucket import upload
from tests.support.chaos import MIXED, Chaos, chaos
from tests.support.objects import SECRETS, Objects, files_below

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.bucket import ObjectServer

CONFIG = IngestConfig(n_genes=100)
OTHER = IngestConfig(n_genes=50)


@pytest.fixture(autouse=True)
def many_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "CHUNK_VALUES", 1024)
    monkeypatch.setattr(layout, "SHARD_VALUES", 4096)


@pytest.fixture
def server(object_server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Chaos]:
    """A quiet proxy before the server, to be aimed with."""
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "work"))
    monkeypatch.setenv("SCAMAC_CACHE_DIR", str(tmp_path / "cache"))
    with chaos(object_server.address, shares={}, stall_s=0.1) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@pytest.fixture
def source(server: Chaos, bucket: str, tiny_atlas: Path) -> str:
    return upload(tiny_atlas, f"{bucket}/tiny.h5ad")


@pytest.fixture
def out(bucket: str) -> str:
    return f"{bucket}/stores/tiny.store.zarr"


@pytest.fixture
def objects(object_server: ObjectServer, out: str) -> Objects:
    return Objects(object_server, out)


def test_a_store_goes_from_bucket_to_bucket_through_a_bad_network_and_its_record_comes_last(
    server: Chaos,
    source: str,
    out: str,
    objects: Objects,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    local = ingest(source, tmp_path / "tiny.store.zarr", CONFIG)
    server.shares = MIXED
    assert ingest(source, out, CONFIG) == out
    server.calm()
    assert objects.is_folder(local)
    puts = [path.rpartition("tiny.store.zarr/")[2] for path in server.paths("PUT") if "tiny.store.zarr/" in path]
    assert set(puts[puts.index("zarr.json") :]) == {"zarr.json"}
    assert server.n_faults() > 10
    assert not files_below(tmp_path / "work")
    assert objects.names() == sorted(path.relative_to(local).as_posix() for path in files_below(local))
    assert inspect(out, verify=True)["kind"] == "training store"
    assert not any(secret in caplog.text for secret in SECRETS)
    with pytest.raises(OutputError, match="is already there"):
        ingest(source, out, CONFIG)
    assert ingest(source, out, CONFIG, resume=True) == out
    with pytest.raises(ResumeError, match="another ingest"):
        ingest(source, out, OTHER, resume=True)


@pytest.mark.parametrize(
    "point",
    ["bucket.store", *(pytest.param(point, marks=pytest.mark.slow) for point in ("ingest.shard", "ingest.rename"))],
)
@pytest.mark.slow
def test_a_killed_ingest_leaves_no_store_and_resumes_to_the_same_bytes(
    point: str, source: str, out: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = ingest(source, tmp_path / "tiny.store.zarr", CONFIG)
    real, hits = faults.reach, []

    def reach(name: str) -> None:
        if name == point and not hits:
            hits.append(name)
            raise KeyboardInterrupt
        real(name)

    for home in ("scamac_scale.store.bucket", "scamac_scale.store.shards", "scamac_scale.durable.atomic"):
        monkeypatch.setattr(f"{home}.reach", reach)
    with pytest.raises(KeyboardInterrupt):
        ingest(source, out, CONFIG)
    assert hits
    with pytest.raises(StoreError):
        StoreReader(out)
    assert files_below(tmp_path / "work")
    assert ingest(source, out, CONFIG, resume=True) == out
    assert objects.is_folder(local)
    assert not files_below(tmp_path / "work")


@pytest.mark.slow
def test_on_another_machine_a_killed_upload_is_begun_anew_and_cleaned(
    server: Chaos, source: str, out: str, objects: Objects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "0.5")
    local = ingest(source, tmp_path / "tiny.store.zarr", CONFIG)
    server.aim("slow_down", "PUT", "/tiny.store.zarr/zarr.json", times=1000)
    with pytest.raises(OutputError, match=r"zarr\.json cannot be written.*is complete in .*--resume") as caught:
        ingest(source, out, CONFIG)
    assert not any(secret in str(caught.value) for secret in SECRETS)
    objects.write("X/data/c/99", b"of another time")
    server.calm()
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "20")
    monkeypatch.setenv("SCAMAC_WORK_DIR", str(tmp_path / "other machine"))
    with pytest.raises(OutputError, match="another ingest"):  # it may still be going on
        ingest(source, out, OTHER)
    assert ingest(source, out, CONFIG, resume=True) == out
    assert objects.is_folder(local)
    names = Objects.names(objects)
    assert "X/data/c/99" not in names


def test_a_record_whose_answer_is_lost_is_neither_a_conflict_nor_a_false_success(
    server: Chaos, source: str, out: str, objects: Objects
) -> None:
    server.aim("lose", "PUT", "/tiny.store.zarr/zarr.json")
    ingest(source, out, CONFIG)
    assert server.n_faults("lose") == 1
    with StoreReader(out) as reader:
        reader.verify()


def test_another_store_that_appears_meanwhile_is_not_replaced(
    source: str, out: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "reach", lambda name: objects.write("zarr.json", b"of another"))
    with pytest.raises(OutputError, match="by another job in the meantime"):
        ingest(source, out, CONFIG)
    assert objects.read("zarr.json") == b"of another"


def test_an_object_that_another_job_has_put_meanwhile_is_seen_before_the_record(
    source: str, out: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = remote.Bucket.delete

    def delete(self: remote.Bucket, keys: object) -> None:
        real(self, keys)  # type: ignore[arg-type]
        objects.write("X/data/c/0", b"of another")

    monkeypatch.setattr(remote.Bucket, "delete", delete)
    with pytest.raises(OutputError, match="another job is writing there"):
        ingest(source, out, CONFIG)
    assert "zarr.json" not in objects.names()


def test_a_job_whose_place_was_taken_stops(source: str, out: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "reach", lambda name: StoreBucket(module_place(out))._say("0" * 64, overwrite=True))
    with pytest.raises(OutputError, match="taken over by another ingest"):
        ingest(source, out, CONFIG)


def module_place(url: str) -> remote.BucketPlace:
    return remote.parse(url)


@pytest.mark.slow
def test_overwriting_replaces_a_store_and_nothing_else(
    source: str, out: str, bucket: str, objects: Objects, tmp_path: Path, object_server: ObjectServer
) -> None:
    ingest(source, out, OTHER)
    with StoreReader(out) as reader:
        local = ingest(source, tmp_path / "tiny.store.zarr", CONFIG)
        ingest(source, out, CONFIG, overwrite=True)
        assert objects.is_folder(local)
        with pytest.raises(StoreError, match=r"replaced|missing|not there"):
            reader.verify()
    upload(tmp_path / "tiny.store.zarr" / "obs", f"{bucket}/frame.zarr")
    for overwrite, where in ((True, "frame.zarr"), (False, "stores"), (True, "stores"), (True, "tiny.h5ad")):
        before = Objects(object_server, bucket).names()
        with pytest.raises(OutputError, match=r"already|no training store|is an object|is the input"):
            ingest(source, f"{bucket}/{where}", CONFIG, overwrite=overwrite)
        assert Objects(object_server, bucket).names() == before


def test_what_cannot_be_written_is_refused_before_any_work(
    source: str, bucket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="name the store in it"):
        ingest(source, bucket, CONFIG)
    with pytest.raises(OutputError, match="no bucket"):
        ingest(source, "s3://no-such-bucket/x.store.zarr", CONFIG)
    with pytest.raises(OutputError, match="lies inside"):
        ingest(source, f"{source}/x.store.zarr", CONFIG)
    with pytest.raises(InputError, match="no object"):
        ingest(f"{bucket}/nothing.h5ad", f"{bucket}/x.store.zarr", CONFIG)
    (tmp_path / "file").write_text("x")
    out = f"{bucket}/x.store.zarr"
    assert main(["ingest", source, "--out", out, "--scratch", str(tmp_path / "file" / "x")]) == 4
    assert "file/x" in capsys.readouterr().err


def test_from_the_command_line_with_a_scratch_folder(
    source: str, out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scratch = tmp_path / "scratch"
    assert main(["ingest", source, "--out", out, "--scratch", str(scratch), "--ingest.n_genes", "100", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == out
    assert told["input"] == [source]
    assert scratch.is_dir()
    assert not files_below(scratch)
    assert main(["ingest", source, "--out", out, "--ingest.n_genes", "100"]) == 4
    assert main(["ingest", f"{source}?X-Amz-Signature=hush", "--out", out + "2"]) == 2
    said = capsys.readouterr().err
    assert out in said
    assert "hush" not in said
    assert not any(secret in said for secret in SECRETS)


def test_an_anndata_in_memory_goes_to_a_bucket(tiny_adata: object, server: Chaos, out: str) -> None:
    ingest(tiny_adata, out, CONFIG)  # type: ignore[arg-type]
    with StoreReader(out) as reader:
        assert reader.n_cells == 300
