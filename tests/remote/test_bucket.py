"""Objects of a bucket on a real server of object storage, on loopback."""

import os
import sys
from pathlib import Path

import pytest

from scamac_scale.errors import ConfigError, InputError, MissingExtraError, OutputError, PlanError, StoreError
from scamac_scale.remote import bucket as module
from scamac_scale.remote.bucket import Bucket
from scamac_scale.remote.patterns import glob
from tests.support.bucket import ACCESS_KEY, SECRET_KEY, TOKEN, ObjectServer


def test_objects_are_put_read_listed_and_removed(bucket: str, tmp_path: Path) -> None:
    at = Bucket(f"{bucket}/runs/one")
    content = os.urandom(3 * module.PIECE_BYTES + 17)
    (tmp_path / "big").write_bytes(content)
    small, big = at.put("a/ü b+%.json", b"{}"), at.put("big", tmp_path / "big")
    at.put("empty", b"")
    at.put("../one-more/x".replace("../", ""), b"1")
    assert [(entry.key, entry.size) for entry in at.listing()] == [
        ("a/ü b+%.json", 2),
        ("big", len(content)),
        ("empty", 0),
        ("one-more/x", 1),
    ]
    assert at.listing("a") == [small]
    assert at.level() == (["a", "one-more"], [big, at.find("empty")])
    assert (at.kind("a"), at.kind("big"), at.kind("bi"), at.kind()) == ("folder", "object", None, "folder")
    assert at.read("a/ü b+%.json", small.etag) == b"{}"
    assert at.read_range("big", 5, module.PIECE_BYTES, big.etag) == content[5 : 5 + module.PIECE_BYTES]
    assert at.fetch("big", tmp_path / "copy") == big
    assert (tmp_path / "copy").read_bytes() == content
    at.fetch("empty", tmp_path / "nothing")
    assert (tmp_path / "nothing").read_bytes() == b""
    assert at.delete_below() == 4
    at.delete("gone already")
    assert at.listing() == []
    assert at.find("big") is None


def test_only_one_writer_creates_an_object_and_a_lost_answer_is_no_conflict(bucket: str) -> None:
    at = Bucket(bucket)
    assert at.put_if_absent("record", b"mine") == "created"
    assert at.put_if_absent("record", b"mine") == "same"
    assert at.put_if_absent("record", b"yours") == "other"
    assert at.read("record") == b"mine"


def test_an_object_that_was_replaced_is_told(bucket: str, tmp_path: Path) -> None:
    at = Bucket(bucket, StoreError)
    old = at.put("x", b"old")
    at.put("x", b"new")
    for read in (
        lambda: at.read("x", old.etag),
        lambda: at.read_range("x", 0, 2, old.etag),
        lambda: at.fetch("x", tmp_path / "x", old),
    ):
        with pytest.raises(StoreError, match="replaced"):
            read()
    assert not (tmp_path / "x").exists()


def test_what_is_not_there_is_an_error_of_its_own(bucket: str, tmp_path: Path) -> None:
    at = Bucket(bucket)
    for read in (lambda: at.read("x"), lambda: at.fetch("x", tmp_path / "x"), lambda: at.read_range("x", 0, 1)):
        with pytest.raises(FileNotFoundError):
            read()
    with pytest.raises(InputError, match="there is no bucket no-such-bucket; check its name"):
        Bucket("s3://no-such-bucket/x").read()
    with pytest.raises(InputError, match="there is no bucket"):
        Bucket("s3://no-such-bucket/x").listing()
    with pytest.raises(OutputError, match=r"no-such-bucket/x.* no bucket"):
        Bucket("s3://no-such-bucket").put("x", b"1")


def test_a_file_that_cannot_be_written_is_an_error_of_the_output(bucket: str, tmp_path: Path) -> None:
    Bucket(bucket).put("x", b"1")
    with pytest.raises(OutputError, match="missing"):
        Bucket(bucket).fetch("x", tmp_path / "missing" / "x")


def test_a_server_that_is_not_there_is_given_up_with_a_sentence(
    bucket: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "0.2")
    with pytest.raises(InputError, match=rf"{bucket}/x cannot be looked at: .*takes no connections") as caught:
        Bucket(f"{bucket}/x").find()
    text = caplog.text + str(caught.value) + repr(caught.value.__cause__)
    assert not any(secret in text for secret in (ACCESS_KEY, SECRET_KEY, TOKEN))


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("AWS_ENDPOINT_URL", "http://storage.example.com", "unencrypted"),
        ("AWS_ENDPOINT_URL", "http://key:hush@127.0.0.1:1", "without credentials"),
        ("AWS_ENDPOINT_URL", "127.0.0.1:9000", "https://HOST:PORT"),
        ("SCAMAC_OBJECT_TIMEOUT_S", "soon", "no number of seconds"),
    ],
)
def test_settings_of_the_environment_are_checked_before_any_request(
    bucket: str, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=said) as caught:
        Bucket(bucket)
    assert "hush" not in str(caught.value)


def test_without_obstore_the_message_names_the_extra(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(MissingExtraError, match=r"scamac-scale\[s3\]"):
        Bucket(bucket)


def test_a_pattern_names_objects_and_folders(bucket: str, object_server: ObjectServer) -> None:
    at = Bucket(bucket)
    for key in (
        "run1/x.h5ad",
        "run2/x.h5ad",
        "run10/x.h5ad",
        "run2/y.zarr/zarr.json",
        ".hidden/x.h5ad",
        "run[1]/x.h5ad",
    ):
        at.put(key, b"1")
    assert list(map(str, glob(f"{bucket}/run*/x.h5ad"))) == [
        f"{bucket}/{name}/x.h5ad" for name in ("run1", "run10", "run2", "run[1]")
    ]
    assert list(map(str, glob(f"{bucket}/run?/*"))) == [
        f"{bucket}/{name}" for name in ("run1/x.h5ad", "run2/x.h5ad", "run2/y.zarr")
    ]
    assert list(map(str, glob(f"{bucket}/run[[]1]/x.h5ad"))) == [f"{bucket}/run[1]/x.h5ad"]
    assert list(map(str, glob(f"{bucket}/*/x.h5ad"))) == list(map(str, glob(f"{bucket}/run*/x.h5ad")))
    assert glob(f"{bucket}/nothing*") == []
    with pytest.raises(ConfigError, match=r"\*\*"):
        glob(f"{bucket}/**/x.h5ad")


def test_markers_of_folders_are_no_objects(bucket: str, object_server: ObjectServer) -> None:
    client = object_server.client()
    for key, content in (("x/", b""), ("x/y/", b""), ("x/y/z", b"1"), ("x/empty", b"")):
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=key, Body=content)
    at = Bucket(f"{bucket}/x")
    assert [entry.key for entry in at.listing()] == ["empty", "y/z"]
    assert [entry.key for entry in at.level()[1]] == ["empty"]
    client.put_object(Bucket=bucket.removeprefix("s3://"), Key="new/", Body=b"")
    assert Bucket(f"{bucket}/new").kind() is None


@pytest.mark.parametrize("key", ["a//b", "../b", "./b", "\x01b", "a\\b"])
def test_keys_that_are_no_paths_are_refused_with_a_sentence(key: str, bucket: str, object_server: ObjectServer) -> None:
    object_server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=f"x/{key}", Body=b"1")
    with pytest.raises(InputError, match=r"a key below it has|is not followed"):
        Bucket(f"{bucket}/x").listing()


@pytest.mark.parametrize(("key", "named"), [("a//b", "'x/a//b'"), ("../b", "'x/../b'"), ("tab\tb", r"'x/tab\\tb'")])
def test_a_key_that_no_listing_takes_is_named(key: str, named: str, bucket: str, object_server: ObjectServer) -> None:
    """The client hands out none of a page with such a key; what is asked for by its name is read all the same."""
    for name in (key, "b"):
        object_server.client().put_object(Bucket=bucket.removeprefix("s3://"), Key=f"x/{name}", Body=b"1")
    with pytest.raises(InputError, match=f"a key below it has .*: {named}; rename that object"):
        Bucket(f"{bucket}/x").listing()
    assert Bucket(f"{bucket}/x/b").read() == b"1"


def test_a_listing_of_many_pages_has_every_object_once(bucket: str, object_server: ObjectServer) -> None:
    client, names = object_server.client(), [f"k{number:05}" for number in range(3001)]
    for name in names:
        client.put_object(Bucket=bucket.removeprefix("s3://"), Key=f"many/{name}", Body=b"")
    at = Bucket(f"{bucket}/many")
    assert [entry.key for entry in at.listing()] == names
    assert [entry.key for entry in at.level()[1]] == names
    assert at.delete_below() == 3001
    assert at.listing() == []


def test_an_object_that_is_replaced_while_it_is_read_is_never_a_mixture(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, real = Bucket(bucket), Bucket.read_range
    at.put("x", b"1" * 20_000_000)

    def read_range(self: Bucket, key: str, start: int, size: int, etag: str = "") -> bytes:
        found = real(self, key, start, size, etag)
        at.put("x", b"2" * 20_000_000)
        return found

    monkeypatch.setattr(Bucket, "read_range", read_range)
    monkeypatch.setattr(module, "THREADS", 1)
    with pytest.raises(InputError, match="replaced while it was read"):
        at.fetch("x", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_key_may_have_a_hash_sign(bucket: str, object_server: ObjectServer) -> None:
    Bucket(f"{bucket}/a#b/c#1.h5ad").put("", b"1")
    assert (
        object_server.client().get_object(Bucket=bucket.removeprefix("s3://"), Key="a#b/c#1.h5ad")["Body"].read()
        == b"1"
    )
    assert [entry.key for entry in Bucket(f"{bucket}/a#b").listing()] == ["c#1.h5ad"]
    assert Bucket(f"{bucket}/a#b/c#1.h5ad").read() == b"1"


def test_what_was_tried_once_is_not_counted(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("SCAMAC_OBJECT_PATIENCE_S", "0.01")
    with pytest.raises(InputError, match="takes no connections; see whether"):
        Bucket(f"{bucket}/x").find()


def test_a_process_that_was_forked_off_is_refused(bucket: str) -> None:
    at = Bucket(bucket)
    at._pid = -1
    with pytest.raises(PlanError, match="forked off"):
        at.find("x")
