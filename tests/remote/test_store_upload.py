"""A store is written into a bucket: the bytes of a local one, found when all of it is there, and never a mixture of two."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest

from scamac_scale import IngestConfig, ingest, inspect
from scamac_scale.cli.main import main
from scamac_scale.durable import faults
from scamac_scale.errors import ConfigError, InputError, OutputError, ResumeError, StoreError
from scamac_scale.remote import bucket as remote
from scamac_scale.remote.place import parse
from scamac_scale.store import bucket as module
from scamac_scale.store import layout
from scamac_scale.store.bucket import StoreBucket
from scamac_scale.store.reader import StoreReader
from tests.support.bucket import upload
from tests.support.chaos import MIXED, Chaos, chaos
from tests.support.objects import SECRETS, Objects, files_below

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
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


@pytest.mark.slow
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


# ---------------------------------------------------------------- two jobs at one place


@pytest.fixture(scope="module")
def of_two_seeds(tiny_atlas: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Stores that differ in nothing but their seed: names and sizes of all files are the same."""
    home, patch = tmp_path_factory.mktemp("seeds"), pytest.MonkeyPatch()
    patch.setattr(layout, "CHUNK_VALUES", 1024)
    patch.setattr(layout, "SHARD_VALUES", 4096)
    first, second = (ingest(tiny_atlas, home / f"{seed}.zarr", IngestConfig(n_genes=100, seed=seed)) for seed in (0, 1))
    patch.undo()
    return first, second  # type: ignore[return-value]


class Job(StoreBucket):
    """A job of its own machine, whose store is complete; something else happens at a moment of it."""

    def __init__(self, out: str, store: Path, home: Path) -> None:
        super().__init__(parse(out))
        self._home = home
        self.path = home / self.place.name
        shutil.copytree(store, self.path)

    def before(self, key: str, happens: Callable[[], object]) -> Job:
        """Let something happen before an object is put."""
        real = self._bucket.put

        def put(name: str, content: object) -> object:
            if name == key:
                happens()
            return real(name, content)  # type: ignore[arg-type]

        self._bucket.put = put  # type: ignore[method-assign,assignment]
        return self


@pytest.fixture
def jobs(server: Chaos, out: str, of_two_seeds: tuple[Path, Path], tmp_path: Path) -> tuple[Job, Job]:
    first, second = (Job(out, store, tmp_path / f"machine {n}") for n, store in enumerate(of_two_seeds))
    return first, second


def late(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen while the first root that is put is on its way."""
    real, is_on_its_way = module.replace, []

    def replace(bucket: object, key: str, content: bytes, before: object) -> object:
        if b"n_cells" in content and not is_on_its_way:
            is_on_its_way.append(key)
            happens()
            return real(bucket, key, content, None)  # type: ignore[arg-type]  # it was sent when there was none
        return real(bucket, key, content, before)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "replace", replace)


def test_stores_of_two_seeds_never_mix(
    jobs: tuple[Job, Job], out: str, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = jobs

    def stopped(name: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "reach", stopped)
        with pytest.raises(KeyboardInterrupt):
            first.put(overwrite=False)
    before = {name: objects.read(name) for name in objects.names()}
    with pytest.raises(OutputError, match=r"by another ingest .*--resume --overwrite puts it from there in place"):
        second.put(overwrite=False)
    assert {name: objects.read(name) for name in objects.names()} == before
    first.put(overwrite=False)
    assert inspect(out, verify=True)["ingest"]["seed"] == 0


def test_a_record_that_arrives_when_another_job_has_the_place_is_withdrawn_by_its_own_job(
    jobs: tuple[Job, Job], out: str, of_two_seeds: tuple[Path, Path], objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second job takes the place, puts some objects and dies, while the record of the first is on its way."""
    first, second = jobs

    def stopped() -> None:
        raise KeyboardInterrupt

    second.before("X/indices/c/0", stopped)

    def taken() -> None:
        with pytest.raises(KeyboardInterrupt):
            second.put(overwrite=True)

    with monkeypatch.context() as patch:
        late(patch, taken)
        with pytest.raises(OutputError, match=r"taken over by another ingest.* --resume --overwrite puts it"):
            first.put(overwrite=False)
    with pytest.raises(StoreError, match="no commit record"):
        StoreReader(out)
    assert first.path.exists()
    third = Job(out, of_two_seeds[1], second.path.parent.with_name("machine 3"))
    third.put(overwrite=False)  # the same as the second: it goes on
    assert objects.is_folder(of_two_seeds[1])
    with pytest.raises(OutputError, match="already there"):
        first.put(overwrite=False)


@pytest.mark.parametrize("key", ["X/data/c/0", "var/n_cells/c/0"])
def test_a_record_that_arrives_late_from_a_machine_that_is_gone_is_withdrawn_by_the_job_that_has_the_place(
    key: str, jobs: tuple[Job, Job], of_two_seeds: tuple[Path, Path], objects: Objects, out: str
) -> None:
    first, second = jobs
    first.put(overwrite=False)
    root = (of_two_seeds[0] / "zarr.json").read_bytes()
    second.before(key, lambda: objects.write("zarr.json", root))
    second.put(overwrite=True)
    assert objects.is_folder(of_two_seeds[1])
    assert inspect(out, verify=True)["ingest"]["seed"] == 1


def test_an_object_that_arrives_after_the_listing_is_found_before_the_job_says_that_it_is_done(
    jobs: tuple[Job, Job], of_two_seeds: tuple[Path, Path], objects: Objects, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = jobs
    with monkeypatch.context() as patch:
        late(patch, lambda: objects.write("X/data/c/0", (of_two_seeds[1] / "X/data/c/0").read_bytes()))
        with pytest.raises(OutputError, match=r"X/data/c/0 is not as it was put.* --resume puts it from there\.$"):
            first.put(overwrite=False)
    with pytest.raises(StoreError, match="no commit record"):
        StoreReader(out)
    first.put(overwrite=False)
    assert objects.is_folder(of_two_seeds[0])


def test_a_job_that_ends_leaves_the_note_of_the_next_one(
    jobs: tuple[Job, Job], of_two_seeds: tuple[Path, Path], objects: Objects, tmp_path: Path, out: str
) -> None:
    first, second = jobs
    real = first.forget
    first.forget = lambda: None  # type: ignore[method-assign]
    first.put(overwrite=False)
    second.before("var/n_cells/c/0", real)
    third = Job(out, of_two_seeds[0], tmp_path / "machine 3")

    def refused() -> None:
        with pytest.raises(OutputError, match="by another ingest"):
            third.put(overwrite=False)

    second.before("var/n_cells/c/0", refused)
    second.put(overwrite=True)
    assert objects.is_folder(of_two_seeds[1])


@pytest.mark.parametrize("is_other", [False, True])
def test_a_note_that_was_removed_is_left_again_unless_another_job_has_finished(
    is_other: bool,
    jobs: tuple[Job, Job],
    of_two_seeds: tuple[Path, Path],
    objects: Objects,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = jobs
    seen: list[bool] = []

    def removed() -> None:
        first.put(overwrite=True) if is_other else second._above.delete(second._note)

    def reach(name: str) -> None:
        if second._noted() or is_other:
            seen.append(True)

    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr(module, "reach", reach)
    second.before("X/data/c/0", removed)
    if is_other:
        with pytest.raises(OutputError, match="taken over by another ingest"):
            second.put(overwrite=True)
        assert objects.read("zarr.json") == (of_two_seeds[0] / "zarr.json").read_bytes()
    else:
        second.put(overwrite=True)
        assert objects.is_folder(of_two_seeds[1])
    assert seen


def test_two_jobs_of_one_store_both_succeed(
    jobs: tuple[Job, Job], of_two_seeds: tuple[Path, Path], objects: Objects, tmp_path: Path, out: str
) -> None:
    first, _ = jobs
    same = Job(out, of_two_seeds[0], tmp_path / "machine 3")
    first.before("X/indices/c/0", lambda: same.put(overwrite=False))
    first.put(overwrite=False)
    assert objects.is_folder(of_two_seeds[0])
    assert first._noted() == {}


def test_what_was_refused_leaves_no_folder(source: str, bucket: str, tmp_path: Path) -> None:
    for out, resume in ((f"{bucket}-that-is-not-there/a.zarr", []), (f"{bucket}/a.h5ad/x.zarr", ["--resume"])):
        assert main(["ingest", f"{bucket}/nothing.h5ad", "--out", out, *resume]) in (2, 4)
    found = [path for path in (tmp_path / "work").rglob("*") if not path.is_dir() or path.parent.name == "stores"]
    assert not found
