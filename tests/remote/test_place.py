"""URLs of object storage: what is one, and what is refused without being repeated."""

from pathlib import Path

import pytest

from scamac_scale.errors import ConfigError
from scamac_scale.remote.place import BucketPlace, is_url, parse


@pytest.mark.parametrize("text", ["s3://bkt/a/b.h5ad", "gs://bkt/x", "az://container/x", "s3://bkt", "S3://bkt/x"])
def test_a_url_is_told_from_a_path(text: str) -> None:
    assert is_url(text)
    assert str(parse(text)).lower() == text.lower()


@pytest.mark.parametrize("text", ["atlas.h5ad", "/data/s3/x", "s3/x", Path("a/b"), "C:x", None, 3, "~/s3:x"])
def test_a_path_is_no_url(text: object) -> None:
    assert not is_url(text)


def test_a_path_that_was_made_of_a_url_is_the_url() -> None:
    path = Path("s3://bkt/a/b.h5ad")
    assert is_url(path)
    assert str(parse(path)) == "s3://bkt/a/b.h5ad"


def test_places_are_joined_and_taken_apart() -> None:
    place = parse("s3://bkt/runs/one/")
    assert str(place / "model" / "config.json") == "s3://bkt/runs/one/model/config.json"
    assert (place / "x.store.zarr").suffix == ".zarr"
    assert place.name == "one"
    assert str(place.parent.parent) == "s3://bkt"
    assert parse("s3://bkt").name == "bkt"
    assert place / "" == place == BucketPlace("s3", "bkt", "runs/one")


@pytest.mark.parametrize(
    "text",
    [
        "s3://key:hush@bkt/x",
        "s3://hush@bkt/x",
        "s3://bkt/x.h5ad?X-Amz-Signature=hush&X-Amz-Credential=hush",
        "s3://bkt?versionId=hush",
        "az://container/x?sv=hush",
    ],
)
def test_credentials_and_queries_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match="environment") as caught:
        parse(text)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3a://bkt/x", "Did you mean s3://"),
        ("gcs://bkt/x", "Did you mean gs://"),
        ("https://host/x.h5ad", "Fetch it first"),
        ("file:///data/x", "Give the path alone"),
        ("ftp://host/x", "expected a path, s3://"),
        ("s3://", "no name of a bucket"),
        ("s3:///x", "no name of a bucket"),
        ("s3://bkt/a//b", "empty part"),
        ("s3://bkt/a/../b", r"\.\."),
        ("s3://bkt/./b", r"\.\."),
        ("s3://bkt/a\nb", "cannot be printed"),
        ("s3://bkt/" + "x" * 1100, "longer than"),
    ],
)
def test_other_urls_are_refused_with_a_sentence(text: str, said: str) -> None:
    assert is_url(text)
    with pytest.raises(ConfigError, match=said):
        parse(text)
